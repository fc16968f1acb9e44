"""The layout of a run on disk, its lock, and what it records of where it came from."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textseg.errors import RunError
from textseg.system.files import remove_unfinished, replacing, write_atomically

if TYPE_CHECKING:
    from torch import nn

    from textseg.recipe.loading import Recipe
    from textseg.registry.discovery import Component

LIBRARIES = ("torch", "lightning", "monai", "transformers", "numpy", "scipy", "SimpleITK", "omegaconf")
_SEED_FOLDER = re.compile(r"seed\d+(_fold\d+)?")  # what --fresh moved aside is called otherwise


class RunFolder:
    """`runs/<name>/seed<seed>[_fold<k>]`; see docs/reference/run_folder.md."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.record = path / "run.json"
        self.split = path / "split.json"
        self.task = path / "task.json"
        self.prompts = path / "prompts.jsonl"
        self.visible = path / "visible.csv"
        self.scores = path / "scores.csv"
        self.group_scores = path / "group_scores.csv"
        self.enumeration = path / "enumeration.json"
        self.predictions = path / "predictions"
        self.predictions_index = self.predictions / "cases.json"
        self.log = path / "log"
        self.report = path / "report.html"

    @classmethod
    def of(cls, recipe: Recipe, output: Path) -> RunFolder:
        """Where the runs of a recipe stand."""
        fold = "" if recipe.split.fold is None else f"_fold{recipe.split.fold}"
        return cls(output / recipe.name / f"seed{recipe.seed}{fold}")

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """A run that a person named; raises RunError where there is none, or several."""
        if (path / "run.json").exists():
            return cls(path)
        below = [folder for folder in cls.repeats(path) if folder.record.exists()]
        if len(below) == 1:
            return below[0]
        if below:
            raise RunError(f"'{path}' holds {len(below)} runs; name one: {', '.join(str(run.path) for run in below)}.")
        raise RunError(f"'{path}' is no run: it has no run.json. Make one with: textseg run RECIPE")

    @classmethod
    def repeats(cls, path: Path) -> list[RunFolder]:
        """The seeds and folds below runs/<name>, finished or not; without those that `--fresh` moved aside."""
        below = sorted(path.iterdir()) if path.is_dir() else []
        return [cls(folder) for folder in below if folder.is_dir() and cls(folder).is_repeat]

    def evaluation(self, source: str | None) -> RunFolder:
        """Where the scores with prompts of another source stand; `compare` reads it like a run."""
        return RunFolder(self.path / "evaluations" / (source or "none"))

    @property
    def trained_in(self) -> RunFolder:
        """The run whose weights these scores are of: another one for what stands in `evaluations`."""
        return RunFolder(self.path.parent.parent) if self.path.parent.name == "evaluations" else self

    @property
    def is_repeat(self) -> bool:
        """Whether it is named as a seed, or a fold of one, below runs/<name>."""
        return _SEED_FOLDER.fullmatch(self.path.name) is not None

    def checkpoint(self, name: str) -> Path:
        """`last` or `best`."""
        return self.path / "checkpoints" / f"{name}.ckpt"

    def overlay(self, epoch: int) -> Path:
        """Where the picture of a validation stands; epochs count from 1."""
        return self.log / "overlays" / f"epoch_{epoch:04d}.png"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time; the operating system frees the lock of a killed one, whose unfinished files go."""
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"'{self.path}' is in use by another process. Wait for it, or choose another --output."
            ) from None
        try:
            for folder in (
                self.path,
                self.checkpoint("last").parent,
                self.predictions,
                self.log,
                self.overlay(1).parent,
            ):
                remove_unfinished(folder)
            yield
        finally:
            lock.release()

    @property
    def in_use(self) -> bool:
        """Whether a process holds the lock; nothing is written to find out."""
        from filelock import FileLock, Timeout

        if not (self.path / ".lock").exists():
            return False
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def move_aside(self) -> Path | None:
        """Give an old run another name, so that a fresh one can take its place."""
        if not self.path.exists():
            return None
        aside = self.path.with_name(f"{self.path.name}_until_{datetime.now():%Y%m%d_%H%M%S_%f}")
        self.path.rename(aside)
        return aside

    def read(self) -> dict[str, Any]:
        """run.json, or an empty record before the first one is written; raises RunError for a damaged one."""
        try:
            record: dict[str, Any] = json.loads(self.record.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise RunError(
                f"'{self.record}' is damaged ({error}). Restore it, or add --fresh to `textseg run` to start anew."
            ) from error
        return record

    def read_split(self) -> dict[str, Any]:
        """split.json, or nothing where there is none."""
        try:
            split: dict[str, Any] = json.loads(self.split.read_text())
        except (OSError, ValueError):
            return {}
        return split

    def update(self, **facts: Any) -> dict[str, Any]:
        """Write facts into run.json beside those that stand there."""
        record = {**self.read(), **facts}
        write_atomically(self.record, json.dumps(record, indent=1) + "\n")
        return record

    def write_history(self, history: Sequence[Mapping[str, float]]) -> None:
        """log/metrics.csv: a row per epoch."""
        columns = list(dict.fromkeys(key for row in history for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_atomically(self.log / "metrics.csv", text.getvalue())

    def read_history(self) -> list[dict[str, str]]:
        """The rows of log/metrics.csv; none before the first epoch."""
        path = self.log / "metrics.csv"
        return list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a checkpoint under a temporary name in its folder, sync, rename."""
        import torch

        content = {**state, "record": self.read()}  # a checkpoint that is copied elsewhere says where it came from
        # Into an open file: of a path, torch hides why it could not be written.
        with replacing(self.checkpoint(name)) as temporary, temporary.open("wb") as file:
            torch.save(content, file)

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """Plain Python and tensors only; raises RunError for a damaged or missing file."""
        return load_checkpoint(self.checkpoint(name))

    def check_bound(self, bound: Mapping[str, Any]) -> None:
        """Refuse to go on with a run under settings that would make it another experiment: raises RunError."""
        recorded = self.read().get("bound")
        if not recorded:
            raise RunError(
                f"'{self.path}' holds a checkpoint but no run.json that says of which experiment. Restore run.json, "
                "add --fresh to move the old run aside, or choose another --output."
            )
        # Through JSON, as the record went: tuples are lists there.
        before, now = flat(recorded), flat(json.loads(json.dumps(bound)))
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if changed:
            lines = change_lines({key: (before.get(key), now.get(key)) for key in changed})
            raise RunError(
                f"'{self.path}' holds a run of another experiment:\n" + "\n".join(lines) + "\nUndo the change, add "
                "--fresh to move the old run aside, or choose another --output or name."
            )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint from its file."""
    import torch

    if not path.exists():
        raise RunError(f"The checkpoint '{path}' does not exist.")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RunError(
            f"The checkpoint '{path}' is damaged or no checkpoint of textseg ({first_line(error)}). Restore it from a "
            "copy, or add --fresh to `textseg run` to move the run aside and train anew."
        ) from error
    return state


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], mismatch: str, advice: str = "") -> None:
    """Load the weights of a checkpoint; raises RunError, which begins with `mismatch`, for those of another model."""
    try:
        model.load_state_dict(checkpoint["model"])
    except (KeyError, RuntimeError) as error:
        raise RunError(f"{mismatch}: {first_line(error)} {advice}".rstrip()) from error


def first_line(error: BaseException) -> str:
    """The first line of a long message, with the second where it ends in a colon; the name of an error without one."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def flat(nested: Any, prefix: str = "") -> dict[str, Any]:
    """The innermost values of run.json, by keys with dots between them."""
    if not isinstance(nested, Mapping):
        return {prefix.rstrip("."): nested}
    return {key: value for name, part in nested.items() for key, value in flat(part, f"{prefix}{name}.").items()}


def change_lines(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """What was and what is, a line for each key; None is what was not given."""
    said = {key: ["not given" if value is None else value for value in pair] for key, pair in changes.items()}
    return [f"  {key}: was {was}, is {now}" for key, (was, now) in said.items()]


def environment(components: Sequence[Component]) -> dict[str, Any]:
    """Versions, plug-ins, git commit and hardware, for run.json."""
    import torch

    from textseg.version import __version__

    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    libraries["torch"] = str(torch.__version__)  # which names its build, such as +cu130
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "versions": {"textseg": __version__, "python": platform.python_version(), **libraries},
        "plugins": {component.plugin: f"{component.distribution} {component.version}" for component in components},
        "git_commit": _git_commit(),
        "hardware": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cuda": cuda,
            "platform": platform.platform(),
        },
        "command": shlex.join(sys.argv),
    }


def _git_commit() -> str | None:
    """Of the checkout that textseg runs from, "-dirty" behind it where files were changed; None outside of one."""
    folder = Path(__file__).parent
    try:
        tracked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", __file__]
        subprocess.run(tracked, capture_output=True, check=True)
        describe = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
