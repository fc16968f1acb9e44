"""Runs in several processes: start them, watch them, and end all when one is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path

import torch

from textseg.errors import RecipeError, RunError, TextsegError
from textseg.recipe.schema import TrainingSettings
from textseg.system import children
from textseg.system.messages import counted
from textseg.training.signals import on_termination

PAUSE = 0.1  # seconds between two checks of the processes
GRACE = 5.0  # seconds that a process with an error waits, so that the process that caused the error ends first
LAUNCHED = "TEXTSEG_LAUNCHED"  # set in the processes that `run_together` starts


def run_command(
    recipe: Path,
    overrides: Sequence[str],
    seed: int | None,
    output: Path,
    code: Sequence[Path | str] = (),
    **flags: bool,
) -> list[str]:
    """Return the command line that does one run alone; `flags` are options without a value, such as `fresh`."""
    values = [part for file in code for part in ("--code", str(file))]
    values += [part for value in overrides for part in ("--set", value)]
    options = [f"--{name.replace('_', '-')}" for name, given in flags.items() if given]
    seeds = [] if seed is None else ["--seeds", str(seed)]
    # -P: nothing is imported from the current folder, which may be one that somebody sent.
    program = [sys.executable, "-P", "-m", "textseg", "run"]
    return [*program, str(recipe), *values, *seeds, "--output", str(output), *options]


def launched() -> bool:
    """Return True if textseg, torchrun or SLURM's srun has started this process as one of several."""
    return "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1


def launched_by_textseg() -> bool:
    """Return True if `run_together` has started this process."""
    return LAUNCHED in os.environ


def launched_rank() -> int:
    """Return the number of this process among several, before they are connected; the first is 0."""
    keys = ("LOCAL_RANK",) if launched_by_textseg() else ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((int(os.environ[key]) for key in keys if key in os.environ), 0)


def check_devices(settings: TrainingSettings) -> None:
    """Raise RecipeError for more devices than this machine has, before a process is started for each of them."""
    if torch.cuda.is_available():
        available, kind = torch.cuda.device_count(), "CUDA device"
    else:
        available, kind = os.cpu_count() or 1, "CPU core"
    if settings.devices > available:
        raise RecipeError(
            f"training.devices is {settings.devices}, and this machine has {counted(available, kind)}. Set it to at "
            f"most {available}."
        )


def check_shares(size: int, batching: str, count: int) -> None:
    """Raise RecipeError if a batch of `size` slices can't be divided into equal parts for `count` processes."""
    if count > 1 and batching == "volume":
        raise RecipeError(
            f"training.devices: the network reads a whole volume in a step, which {count} processes can't share. Train "
            "it on one device."
        )
    if size % count:
        possible = ", ".join(str(number) for number in range(1, size + 1) if size % number == 0)
        raise RecipeError(
            f"training.devices: a batch of {counted(size, 'slice')} can't be divided among {count} processes. "
            f"Its parts must be equal: with this batch, {possible} are possible."
        )


def run_together(command: Sequence[str], count: int) -> None:
    """Run the command in `count` processes of this machine until all have ended; when one is lost, end the others.

    Raises RunError for a lost process, SystemExit with its code for one that has printed a user's mistake, and
    KeyboardInterrupt after a termination signal, when all processes have saved and ended.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {**children.environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared |= {"NODE_RANK": "0", LAUNCHED: "1"}
    shared.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    signals: list[int] = []
    passed_on = 0  # of these signals
    processes = [
        # A session of its own: Ctrl-C reaches only this process, which passes it on once.
        subprocess.Popen(command, env={**shared, "LOCAL_RANK": str(rank)}, start_new_session=True)
        for rank in range(count)
    ]
    try:
        with on_termination(lambda: signals.append(signal.SIGKILL if signals else signal.SIGINT)):
            while True:
                codes = [process.poll() for process in processes]
                if lost := [rank for rank, code in enumerate(codes) if code not in (None, 0, 130)]:
                    raise _ending(lost, codes)
                if None not in codes:
                    break
                for number in signals[passed_on:]:
                    for process in processes:
                        process.send_signal(number)
                passed_on = len(signals)
                time.sleep(PAUSE)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    if any(codes):
        raise KeyboardInterrupt


def _ending(lost: Sequence[int], codes: Sequence[int | None]) -> BaseException:
    """Return the exception for a run that has lost processes."""
    # Exit codes of killed processes are negative. They caused the errors of the others, so they come first.
    rank = min(lost, key=lambda number: codes[number] or 0)
    code = codes[rank]
    assert code is not None
    if code == 2:
        return SystemExit(2)  # the process has printed what was wrong
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}; see above"
    return RunError(
        f"Process {rank + 1} of {len(codes)} {how}, and the run with it. What was saved is kept: the same command goes "
        "on from there. Where memory ran out, lower training.batch_size."
    )


@contextmanager
def one_of_several(rank: int) -> Iterator[None]:
    """Make this one process of several: only the first one prints, and it is the first to report a mistake."""
    try:
        with Path(os.devnull).open("w") as null, redirect_stdout(null) if rank else nullcontext():
            yield
    except Exception as error:
        # A mistake that all processes see is printed by the first one at once. Any other error may only be the loss of
        # the connection to a process that failed before.
        if rank or not isinstance(error, TextsegError):
            time.sleep(GRACE)
        raise
