"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  let drawn = false;

  const stored = (value) => {
    // a browser may refuse storage to files
    try {
      if (value) localStorage.setItem("rankwright-theme", value);
      return localStorage.getItem("rankwright-theme");
    } catch {
      return null;
    }
  };
  const theme = () => root.dataset.theme || (dark.matches ? "dark" : "light");

  function faint(hex, alpha) {
    const n = parseInt(hex.slice(1), 16);
    return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${alpha})`;
  }

  // a figure in the colours of the page
  function painted(figure) {
    const style = getComputedStyle(root);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const copy = JSON.parse(JSON.stringify(figure));
    const narrow = window.innerWidth < 640;
    for (const trace of copy.data) {
      const own = color(trace.meta.role);
      if (trace.type === "bar") {
        trace.marker.color = own;
        trace.marker.pattern = { ...trace.marker.pattern, fgcolor: color("card") };
      } else {
        trace.line = { ...trace.line, color: own };
        trace.marker = { size: 6, ...trace.marker, color: own };
        if (trace.fill) trace.fillcolor = faint(own, 0.14);
      }
    }
    const layout = copy.layout;
    layout.font = { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 12.5, color: color("text") };
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.hoverlabel = { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("text") } };
    for (const axis of [layout.xaxis, layout.yaxis]) {
      Object.assign(axis, { gridcolor: color("line"), linecolor: color("muted"), tickcolor: color("line"), showline: true, tickfont: { color: color("muted") } });
      if (narrow) axis.nticks = 6;
    }
    layout.xaxis.showgrid = false;
    if (narrow && layout.xaxis.tickangle === undefined) layout.xaxis.tickangle = "auto";
    for (const shape of layout.shapes || []) shape.line.color = color(shape.name);
    for (const label of layout.annotations || []) label.font = { color: color(label.name), size: 11 };
    return copy;
  }

  function draw() {
    for (const [id, figure] of Object.entries(figures)) {
      const element = document.getElementById(id);
      const { data, layout } = painted(figure);
      layout.height = Number(element.dataset.height);
      Plotly.react(element, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
    }
    button.textContent = theme() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${theme() === "dark" ? "light" : "dark"} colours`);
    button.setAttribute("aria-pressed", String(theme() === "dark"));
    root.dataset.drawn = theme();
    drawn = true;
  }

  const kept = stored();
  if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  button.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    stored(root.dataset.theme);
    draw();
  });
  dark.addEventListener("change", () => draw());
  window.matchMedia("(max-width: 639px)").addEventListener("change", () => draw());

  for (const all of document.querySelectorAll("button.all")) {
    all.addEventListener("click", () => {
      const open = all.getAttribute("aria-expanded") !== "true";
      for (const one of document.getElementById(all.dataset.target).querySelectorAll("details")) one.open = open;
      all.setAttribute("aria-expanded", String(open));
      all.textContent = open ? "Close all" : "Open all";
    });
  }

  // paper is light, and nothing can be opened on it
  let before = null;
  window.addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme, closed: [...document.querySelectorAll("details.query:not([open])")] };
    root.dataset.theme = "light";
    for (const one of before.closed) one.open = true;
    draw();
  });
  window.addEventListener("afterprint", () => {
    if (!before) return;
    if (before.theme) root.dataset.theme = before.theme;
    else delete root.dataset.theme;
    for (const one of before.closed) one.open = false;
    before = null;
    draw();
  });
  if (!drawn) draw();
})();
