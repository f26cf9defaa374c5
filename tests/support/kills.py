"""Runs in processes of their own that are killed: at a chosen write, or at a chosen moment."""

import math
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hymate_training.cli import finetune as _  # noqa: F401 - so that the processes below need not import them
from hymate_training.cli import pretrain as __  # noqa: F401
from hymate_training.cli.main import main
from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from tests.support.runs import TASK

WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}

# processes come from a server that has imported everything and started no threads, which a fork would not survive
CONTEXT = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else None
if CONTEXT is not None:
    CONTEXT.set_forkserver_preload([__name__])


def killed_at_write(data: Path, output: Path, options: dict[str, Any], at: float, resume: bool = False) -> bool:
    """Fine-tunes in a process that is killed just before its `at`-th write below `output`.

    Returns:
        Whether it was killed; if it ended before, its number of writes lies in the file `writes` beside `output`.
    """
    assert CONTEXT is not None
    process = CONTEXT.Process(target=_run, args=(data, output, options, at, resume))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def num_writes(data: Path, output: Path, options: dict[str, Any]) -> int:
    """How often a whole run writes below `output`."""
    assert not killed_at_write(data, output, options, math.inf)
    return int(output.with_name("writes").read_text())


def _run(data: Path, output: Path, options: dict[str, Any], at: float, resume: bool) -> None:
    writes = 0

    def kill(event: str, arguments: tuple) -> None:
        nonlocal writes
        is_write = event in WRITES or (event == "open" and isinstance(arguments[1], str) and "w" in arguments[1])
        if is_write and str(arguments[0]).startswith(str(output)):
            writes += 1
            if writes == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    finetune(data, TASK, output, FinetuneOptions(**options), resume=resume)
    output.with_name("writes").write_text(str(writes))


def start_command(arguments: Sequence[object], processes: int, log: Path) -> list[BaseProcess]:
    """Starts `hymate` in one process, or in several as torchrun starts them; all that they say goes to `log`."""
    assert CONTEXT is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log.write_text("")
    started = []
    for rank in range(processes):
        launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}
        environment = {name: str(value) for name, value in launched.items()} if processes > 1 else {}
        process = CONTEXT.Process(target=_command, args=(list(map(str, arguments)), environment, log))
        process.start()
        started.append(process)
    return started


def _command(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    os.environ.update(environment, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main(arguments))


def killed_after(
    run: Sequence[BaseProcess], seconds: float, first: Sequence[int] = (), log: Path | None = None
) -> bool:
    """Kills the processes of a run after some time; False where it was over before.

    Args:
        run: as `start_command` returns it.
        seconds: from now.
        first: which of them are killed, and the others a moment later, as when one runs out of memory; all at once
            where it is empty.
        log: what is shown of a run that failed by itself.
    """
    until = time.monotonic() + seconds
    for process in run:
        process.join(max(0.0, until - time.monotonic()))
    if not any(process.is_alive() for process in run):
        assert [process.exitcode for process in run] == [0] * len(run), log and log.read_text()[-3000:]
        return False
    for rank in first:
        run[rank].kill()
    if first:
        time.sleep(0.5)  # in which the others notice
    for process in run:
        process.kill()
        process.join()
    return True
