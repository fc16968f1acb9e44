"""Several runs, one after the other or some at once, each in a separate process, with a leaderboard at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from textseg.data.splits import read_folds
from textseg.errors import RecipeError, RunError
from textseg.recipe.loading import load_recipe
from textseg.recipe.schema import Recipe
from textseg.registry.local_code import load_code
from textseg.runs.folder import RunFolder
from textseg.system import children
from textseg.system.files import open_owned
from textseg.system.messages import counted
from textseg.training.launching import PAUSE, run_command
from textseg.training.signals import on_termination


@dataclass(frozen=True)
class PlannedRun:
    """A recipe with the values that this run gives it, and the folder of the run."""

    recipe: Path
    overrides: tuple[str, ...]
    seed: int | None
    folder: Path
    output: Path
    code: tuple[Path, ...] = ()

    def command(self, **flags: bool) -> list[str]:
        """Return the command line that does this run alone."""
        return run_command(self.recipe, self.overrides, self.seed, self.output, self.code, **flags)


def plan_runs(
    recipes: Sequence[Path],
    overrides: Sequence[str],
    seeds: Sequence[int | None],
    folds: str | None,
    output: Path,
    *,
    code: Sequence[Path] = (),
    trust_code: bool = False,
) -> list[PlannedRun]:
    """Return a run for each recipe, fold and seed; all recipes are checked before the first run trains for hours.

    `folds` is "0,1" or "all". `code` are files with components that are not installed. Raises RecipeError for a mistake
    in a recipe, for a fold that does not exist, and for two runs that would use the same folder.
    """
    for file in code:
        load_code(file)
    planned: dict[Path, PlannedRun] = {}
    for recipe in dict.fromkeys(recipes):
        for fold in _folds(folds, recipe, load_recipe(recipe, overrides, trust_code=trust_code)):
            for seed in seeds:
                values = (*overrides, *fold)
                seeded = [*values, *([] if seed is None else [f"seed={seed}"])]
                resolved = load_recipe(recipe, seeded, trust_code=trust_code)
                run = PlannedRun(recipe, values, seed, RunFolder.of(resolved, output).path, output, tuple(code))
                if (first := planned.setdefault(run.folder, run)) is not run:
                    raise RecipeError(
                        f"'{first.recipe}' and '{recipe}' would both run in '{run.folder}'. Give each its own name or "
                        "seed, or start them apart with another --output."
                    )
    return list(planned.values())


def run_all(runs: Sequence[PlannedRun], *, jobs: int = 1, dry_run: bool = False, **flags: bool) -> int:
    """Do the runs, at most `jobs` at once, continue after a failed one, and print the failures and a leaderboard.

    `flags` are options of `textseg run` without a value: see `run_command`.

    Returns the exit code: 0 if all finished, 2 if each failure is a mistake of the user, else 1. Raises
    KeyboardInterrupt after a termination signal, when the current runs have ended.
    """
    waiting, going, failed = deque(enumerate(runs, start=1)), list[_Process](), list[tuple[PlannedRun, int, str]]()
    signals: list[int] = []
    with on_termination(lambda: signals.append(signal.SIGKILL if signals else signal.SIGINT)):
        while going or (waiting and not signals):
            while waiting and len(going) < jobs and not signals:
                number, run = waiting.popleft()
                print(f"run {number} of {len(runs)}: {run.folder}", flush=True)
                going.append(_Process(run, run.command(dry_run=dry_run, **flags), jobs))
            time.sleep(PAUSE)
            for process in list(going):
                process.pass_on(signals)
                if (code := process.poll()) is not None:
                    going.remove(process)
                    line = process.end()
                    if code:
                        failed.append((process.run, code, line))
                    if jobs > 1:
                        print(f"{process.run.folder} {'failed' if code else 'finished'}: {process.output}", flush=True)
    if signals:
        print("interrupted: the same command continues from here")
        raise KeyboardInterrupt
    print(f"\n{len(runs) - len(failed)} of {counted(len(runs), 'run')} finished")
    for run, code, line in failed:
        print(f"  {run.folder} failed ({_meaning(code)}): {line or 'it said nothing'}")
    if not dry_run:
        broken = [run for run, _, _ in failed]
        _print_leaderboards([run.folder for run in runs if run not in broken])
    return 0 if not failed else 2 if {code for _, code, _ in failed} == {2} else 1


class _Process:
    """A run in a separate process; if several run at once, its output is written to a file beside its folder."""

    def __init__(self, run: PlannedRun, command: Sequence[str], jobs: int) -> None:
        self.run = run
        self.output = run.folder.with_name(f"{run.folder.name}.out") if jobs > 1 else None
        env = children.environment()
        self.errors: IO[bytes]
        if self.output is None:
            self.errors, stdout = tempfile.TemporaryFile(), None  # noqa: SIM115  read as long as the process lives
        else:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.errors = stdout = open_owned(self.output)
            stdout.truncate()
            env["OMP_NUM_THREADS"] = str(max(1, _threads() // jobs))
        self.shown = self.passed_on = 0  # bytes of its errors; signals
        # A session of its own: Ctrl-C reaches only this process, which passes it on once.
        self.process = subprocess.Popen(command, stdout=stdout, stderr=self.errors, env=env, start_new_session=True)

    def pass_on(self, signals: Sequence[int]) -> None:
        """Send new signals to the process: the first asks it to end, the next kills it."""
        for number in signals[self.passed_on :]:
            self.process.send_signal(number)
        self.passed_on = len(signals)

    def poll(self) -> int | None:
        """Return the exit code, or None while the process lives; its new errors are printed."""
        code = self.process.poll()
        if self.output is None:
            new = os.pread(self.errors.fileno(), 2**20, self.shown)
            self.shown += len(new)
            sys.stderr.write(new.decode(errors="replace"))
            sys.stderr.flush()
        return code

    def end(self) -> str:
        """Return the last line of the output."""
        with self.errors as errors:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _threads() -> int:
    """Return the threads that all runs share: as many as the caller grants, or as there are cores."""
    granted = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(granted) if granted.isdecimal() else cores


def _meaning(code: int) -> str:
    """Return the meaning of an exit code as text."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}{', out of memory?' if code == -signal.SIGKILL else ''}"
    return f"exit code {code}"


def _print_leaderboards(folders: Sequence[Path]) -> None:
    from textseg.comparison.compare import comparable, compare  # a single run does not need it
    from textseg.comparison.text import print_leaderboard

    for group in comparable(folders):
        if len(group) > 1:
            print()
            try:
                print_leaderboard(compare(group), sys.stdout)
            except RunError as error:
                print(error, file=sys.stderr)


def _folds(text: str | None, path: Path, recipe: Recipe) -> list[list[str]]:
    """Return the overrides of each fold; one empty list where no folds are asked for."""
    if text is None:
        return [[]]
    split = recipe.split
    count = len(read_folds(split.file)) if split.file and split.fold is not None else split.folds
    if count is None:
        raise RecipeError(
            f"--folds: '{path}' has no folds to choose from. Write `split: {{folds: 5, fold: 0}}` in it, or add "
            "--set 'split={folds: 5, fold: 0}'."
        )
    folds = [str(fold) for fold in range(count)]
    chosen = folds if text == "all" else list(dict.fromkeys(fold.strip() for fold in text.split(",")))
    if unknown := [fold for fold in chosen if fold not in folds]:
        raise RecipeError(
            f"--folds: '{path}' has folds {', '.join(folds)}, and {', '.join(unknown)} is none of them. Name some, "
            "with commas between them, or write all."
        )
    return [[f"split.fold={fold}"] for fold in chosen]
