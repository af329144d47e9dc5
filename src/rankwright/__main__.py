"""``python -m rankwright``."""

from rankwright.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
