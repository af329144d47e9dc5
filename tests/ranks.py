"""Several processes of this machine (gloo), as a launcher starts them, but forked from one.

Run as a module, this trains the cases of a file, one after the other, in one process group, and
does the commands behind them; or, with the words of a command, it is one process of a launcher's.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any


def train_cases(
    path: Path,
    cases: dict[str, dict[str, Any]],
    world: int,
    commands: Sequence[list[str]] = (),
    **variables: str,
) -> str:
    """Train every case on ``world`` processes, output folders beside ``path`` by their names.

    Args:
        path: the file of the cases, to be written.
        cases: arguments of ``rankwright.train``; with ``spoiled``, a query whose scores are NaN,
            the training has to end with an error that names it, or to leave its steps out; with
            ``stopped``, a step in which SIGTERM reaches the last process alone, it has to stop and
            goes on with ``--resume``; with ``refused``, what an error has to say, none begins.
        world: how many processes.
        commands: words of commands to do then.
        **variables: of the environment.

    Returns:
        What the processes wrote to standard error.
    """
    named = [{**case, "output_dir": str(path.parent / name)} for name, case in cases.items()]
    path.write_text(json.dumps([named, list(commands)]))
    return run(["-m", "tests.ranks", str(path), str(world)], **variables)


def run(words: list[str], *, timeout: int = 300, **variables: str) -> str:
    """Run Python to its good end; returns what it wrote to standard error.

    What it forked ends with it, also where one waits for another that is gone.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    with subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            errors: str = process.communicate(timeout=timeout)[1]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors[-8000:]
    return errors


def errors_of(processes: Sequence[subprocess.Popen[str]], *, timeout: int) -> list[str]:
    """What processes write to standard error until they end; what has not ended then is killed.

    They are read side by side: one that waits for the room of its pipe may keep another waiting.
    """
    with ThreadPoolExecutor(len(processes)) as threads:
        try:
            read = threads.map(lambda process: process.communicate(timeout=timeout)[1], processes)
            return list(read)
        finally:
            for process in processes:
                process.kill()


def free_port() -> int:
    """A port of the loopback device that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def fork(world: int, work: Callable[[], None]) -> int:
    """Do ``work`` in so many processes with torchrun's variables; what is imported is shared.

    Returns:
        0 where all ended well.
    """
    port = str(free_port())
    children = []
    for rank in range(world):
        if (child := os.fork()) > 0:
            children.append(child)
            continue
        code = 1
        try:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def _begin_deepspeed() -> None:
    """Let DeepSpeed run on CPUs.

    accelerate looks for a back end on accelerators only, unless its state is there already; that
    the arguments are to take it up says ``use_configured_state``.
    """
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    del os.environ["ACCELERATE_USE_DEEPSPEED"]


def _begin_fsdp() -> None:
    """Let FSDP run on CPUs: accelerate would have every process train all weights, in silence.

    It cuts the weights where processes are of accelerators, by the state that is there already.
    """
    from accelerate import DistributedType, PartialState
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _train_spoiled(case: dict[str, Any], query: str) -> None:
    """Every process is told of the scores that one of them has."""
    import pytest

    import rankwright
    from rankwright.errors import DataError
    from tests.test_guards import spoil

    if case.get("on_nan") == "skip":
        with pytest.MonkeyPatch.context() as patch:
            spoil(patch, "scores", math.nan, query)
            rankwright.train(**case)
        return
    told = rf"the scores became nan at step \d on the queries {query}; lower"
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, "scores", math.nan, query)
        with pytest.raises(DataError, match=told):
            rankwright.train(**case)


def _refuse(case: dict[str, Any], told: str) -> None:
    """Every process is told why it does not begin."""
    import pytest
    from accelerate.state import AcceleratorState

    import rankwright
    from rankwright.errors import ConfigError

    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ConfigError, match=told):
        rankwright.train(**case)
    # the first process's lock goes when that one has ended, too
    assert {path.name for path in Path(case["output_dir"]).glob("*")} <= {".lock"}


def _train_stopped(case: dict[str, Any], step: int) -> None:
    """Every process stops behind the next step, when it was told of the signal; then it goes on."""
    import pytest
    import transformers

    import rankwright
    from rankwright.trainer import Interrupted

    class Stop(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step + 1 == step and args.process_index == args.world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    watch = case.pop("callbacks")
    with pytest.raises(Interrupted, match=rf"stopped at step {step + 1} of"):
        rankwright.train(**case, callbacks=[*watch, Stop()])
    folder = Path(case["output_dir"])
    assert max(int(path.name[11:]) for path in folder.glob("checkpoint-*")) == step + 1
    _set_up(case)
    rankwright.train(**case, callbacks=watch, resume=True)


def _watch(case: dict[str, Any]) -> None:
    """Have the training say whether its engine is the one that was asked for."""
    import transformers
    from accelerate.state import AcceleratorState

    from rankwright.models.sharding import is_sharded

    engine = "FSDP" if "fsdp" in case else "DEEPSPEED" if "deepspeed" in case else "MULTI_CPU"

    class Engine(transformers.TrainerCallback):  # type: ignore[misc]
        begun = False

        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            engines = AcceleratorState()
            assert engines.distributed_type.name == engine
            if engine == "FSDP":
                whole = not case.get("fsdp_config", {}).get("reshard_after_forward", True)
                assert engines.fsdp_plugin.reshard_after_forward == (not whole)
            if engine != "DEEPSPEED":
                assert is_sharded(model) == (engine == "FSDP")
            else:
                zero = engines.deepspeed_plugin.deepspeed_config["zero_optimization"]
                asked = case["deepspeed"]
                asked = {"stage": int(asked[-1])} if isinstance(asked, str) else asked
                asked = asked.get("zero_optimization", asked)
                assert engines.deepspeed_plugin.zero_stage == zero["stage"] == asked["stage"]
                assert is_sharded(model) == (asked["stage"] == 3)
                assert "offload_optimizer" not in asked or zero["offload_optimizer"]
            if case.get("gradient_checkpointing"):
                assert model.is_activation_checkpointing
            # a run that goes on has not begun anew
            assert bool(state.global_step) == bool(case.get("resume") or self.begun)
            self.begun = True

    case["callbacks"] = [*case.get("callbacks", ()), Engine()]


def _set_up(case: dict[str, Any]) -> None:
    """Let a training of several processes begin."""
    if "deepspeed" in case or "fsdp" in case:
        (_begin_deepspeed if "deepspeed" in case else _begin_fsdp)()
        case["accelerator_config"] = {"use_configured_state": True}


def _work(cases: list[dict[str, Any]], commands: list[list[str]], ports: list[int]) -> None:
    import torch

    import rankwright
    from rankwright import cli

    def engine_variables() -> dict[str, str]:
        return {n: v for n, v in os.environ.items() if n.startswith(("ACCELERATE_", "FSDP_"))}

    before = engine_variables()
    for case in cases:
        if (told := case.pop("refused", None)) is not None:
            _refuse(case, told)
            assert engine_variables() == before
            continue
        _set_up(case)
        _watch(case)
        query, step = case.pop("spoiled", None), case.pop("stopped", None)
        if query is not None:
            _train_spoiled(case, query)
        elif step is not None:
            _train_stopped(case, step)
        else:
            rankwright.train(**case)
            # also behind the others, who do not write it
            assert (Path(case["output_dir"]) / "rankwright.json").is_file()
        # or the next one would have this one's engine
        assert engine_variables() == before
    if cases:
        torch.distributed.destroy_process_group()
    for words, port in zip(commands, ports, strict=True):
        # one that has served another group still tells of that one's addresses
        os.environ["MASTER_PORT"] = str(port)
        assert cli.main(words) == 0


def _command(words: list[str]) -> int:
    """A command under FSDP, in one of the processes that a launcher has started."""
    from accelerate.state import AcceleratorState

    from rankwright import cli

    _begin_fsdp()
    code = cli.main(words)
    assert code or AcceleratorState().distributed_type.name == "FSDP"
    return code


if __name__ == "__main__":
    if sys.argv[1] == "train":
        sys.exit(_command(sys.argv[1:]))

    import transformers

    import rankwright.trainer  # noqa: F401 - before the fork
    from rankwright import shares

    shares.BLOCK = 8  # so that few rows are shared
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    given = json.loads(Path(sys.argv[1]).read_text())
    ports = [free_port() for _ in given[1]]
    sys.exit(fork(int(sys.argv[2]), lambda: _work(*given, ports)))
