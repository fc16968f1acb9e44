"""The folder of a run: its files, its lock, and the record of its origin."""

from __future__ import annotations

import importlib.metadata
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
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from pydantic import BaseModel, ConfigDict

from textseg.errors import DataError, RunError
from textseg.registry.source import core_source
from textseg.system.files import is_locked, remove_leftovers, replacing, write_atomically
from textseg.system.messages import counted
from textseg.system.own_files import damaged, read_json
from textseg.system.user_files import csv_text, read_rows

if TYPE_CHECKING:
    from torch import nn

    from textseg.recipe.schema import Recipe

LIBRARIES = ("torch", "lightning", "monai", "transformers", "numpy", "scipy", "SimpleITK")
_SEED_FOLDER = re.compile(r"seed\d+(_fold\d+)?")  # a run that --fresh moved aside has another name


class RunFacts(BaseModel):
    """The types of the keys of run.json that textseg reads; others are free."""

    model_config = ConfigDict(extra="allow", strict=True)
    name: str = ""
    seed: int | None = None
    fold: int | None = None
    scored_step: int | None = None
    failure: str | None = None
    wall_seconds: float = 0
    peak_memory_bytes: float = 0
    test: dict[str, float | None] = {}
    hashes: dict[str, Any] = {}
    groups: dict[str, list[str]] = {}
    structures_in_training: list[str] = []
    bound: dict[str, Any] = {}
    settings: dict[str, dict[str, Any]] = {}
    evaluation: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    components: dict[str, dict[str, Any]] = {}
    earlier: list[dict[str, Any]] = []
    hardware: dict[str, Any] = {}
    precision: dict[str, Any] = {}
    best: dict[str, float] = {}
    obedience: dict[str, Any] | None = None
    code: dict[str, dict[str, str]] = {}
    local_code: dict[str, str] = {}


class RunFolder:
    """The files in `runs/<name>/seed<seed>[_fold<k>]`; see docs/reference/run_folder.md."""

    def __init__(self, path: Path) -> None:
        self.path, self.log = path, path / "log"
        # The inputs of a run and its record.
        self.recipe, self.record = path / "recipe.yaml", path / "run.json"
        self.split, self.task = path / "split.json", path / "task.json"
        self.code = path / "code"
        self.prompts, self.visible = path / "prompts.jsonl", path / "visible.csv"
        # Its results.
        self.predictions, self.predictions_index = path / "predictions", path / "predictions" / "cases.json"
        self.scores, self.group_scores = path / "scores.csv", path / "group_scores.csv"
        self.enumeration, self.report = path / "enumeration.json", path / "report.html"
        self.fields_of_view, self.obedience = path / "fields_of_view.csv", path / "obedience.csv"

    @classmethod
    def of(cls, recipe: Recipe, output: Path) -> RunFolder:
        """Return the folder for a run of a recipe."""
        fold = "" if recipe.split.fold is None else f"_fold{recipe.split.fold}"
        return cls(output / recipe.name / f"seed{recipe.seed}{fold}")

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """Return the run that a user named; raises RunError if there is none, or several."""
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
        """Return the seeds and folds below runs/<name>, finished or not, without those that `--fresh` moved aside."""
        below = sorted(path.iterdir()) if path.is_dir() else []
        return [cls(folder) for folder in below if folder.is_dir() and cls(folder).is_repeat]

    def evaluation(self, source: str | None) -> RunFolder:
        """Return the folder for scores with prompts of another source; `compare` reads it like a run."""
        return RunFolder(self.path / "evaluations" / (source or "none"))

    @property
    def trained_in(self) -> RunFolder:
        """The run whose weights have these scores; for a folder in `evaluations`, the run above it."""
        return RunFolder(self.path.parent.parent) if self.path.parent.name == "evaluations" else self

    @property
    def is_repeat(self) -> bool:
        """True if the name of the folder is that of a seed, or of a fold of a seed."""
        return _SEED_FOLDER.fullmatch(self.path.name) is not None

    def checkpoint(self, name: str) -> Path:
        """Return the file of the checkpoint `last` or `best`."""
        return self.path / "checkpoints" / f"{name}.ckpt"

    def overlay(self, epoch: int) -> Path:
        """Return the file for the picture of a validation; epochs count from 1."""
        return self.log / "overlays" / f"epoch_{epoch:04d}.png"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for one process, and delete unfinished files of an earlier one that was killed."""
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        try:
            acquired = FileLock(self.path / ".lock").acquire(timeout=0)
        except Timeout:
            in_use = f"'{self.path}' is in use by another process. Wait for it, or choose another --output."
            raise RunError(in_use) from None
        with acquired:
            checkpoints, overlays = self.checkpoint("last").parent, self.overlay(1).parent
            for folder in (self.path, checkpoints, self.predictions, self.log, overlays):
                remove_leftovers(folder)
            yield

    @property
    def in_use(self) -> bool:
        """True if a process holds the lock; the check writes nothing."""
        return is_locked(self.path / ".lock")

    def move_aside(self) -> Path | None:
        """Give an old run another name, and return it, so that a new run can use the folder."""
        if not self.path.exists():
            return None
        aside = self.path.with_name(f"{self.path.name}_until_{datetime.now():%Y%m%d_%H%M%S_%f}")
        self.path.rename(aside)
        return aside

    def read(self) -> dict[str, Any]:
        """Return run.json, or an empty record before it is written; raises RunError for a damaged file."""
        remedy = "Restore it, or add --fresh to `textseg run` to start anew."
        try:
            return dict(read_json(self.record, RunFacts, remedy))
        except FileNotFoundError:
            return {}

    def read_split(self) -> dict[str, Any]:
        """Return split.json, or an empty mapping where it can't be read."""
        try:
            return dict(read_json(self.split, dict[str, Any], ""))
        except (FileNotFoundError, RunError):
            return {}

    def update(self, **facts: Any) -> dict[str, Any]:
        """Add facts to run.json, and return all facts in it."""
        record = {**self.read(), **facts}
        write_atomically(self.record, json.dumps(record, indent=1) + "\n")
        return record

    def write_history(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write log/metrics.csv, a row for each epoch."""
        columns = list(dict.fromkeys(key for row in history for key in row))
        rows = [[row.get(column) for column in columns] for row in history]
        write_atomically(self.log / "metrics.csv", csv_text(columns, rows))

    def read_history(self) -> list[dict[str, str]]:
        """Return the rows of log/metrics.csv, numbers as text; none before the first epoch. Raises RunError."""
        path = self.log / "metrics.csv"
        if not path.exists():
            return []
        try:
            (_, header), *lines = read_rows(path) or [(1, list[str]())]
            rows = [dict(zip(header, cells, strict=True)) for _, cells in lines]
            for row in rows:
                int({key: float(value) for key, value in row.items() if value}["epoch"])
        except (DataError, ValueError, KeyError, OverflowError) as error:
            raise damaged(path, str(error), "Delete it; the next epoch of the run writes it anew.") from None
        return rows

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a checkpoint under a temporary name in its folder, sync, rename."""
        import torch

        content = {**state, "record": self.read()}  # so that a copied checkpoint still names its origin
        # Into an open file, because for a path torch hides the reason of a failure.
        with replacing(self.checkpoint(name)) as temporary, temporary.open("wb") as file:
            torch.save(content, file)

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """Return a checkpoint, plain Python and tensors; raises RunError for a damaged or missing file."""
        return load_checkpoint(self.checkpoint(name))

    def check_bound(self, bound: Mapping[str, Any], causes: Mapping[str, Sequence[str]] = {}) -> None:
        """Raise RunError, with the changed keys, if these settings would make the run another experiment.

        `causes` are sentences by key, which a person understands better than two hashes.
        """
        recorded = self.read().get("bound")
        if not recorded:
            raise RunError(
                f"'{self.path}' holds a checkpoint but no run.json that says of which experiment. Restore run.json, "
                "add --fresh to move the old run aside, or choose another --output."
            )
        versions = recorded.get("draws", 1), bound.get("draws", 1)
        if versions[0] != versions[1]:
            raise RunError(
                f"'{self.path}' was begun by a version of textseg with other random draws (version {versions[0]}; this "
                f"one makes draws of version {versions[1]}), so its training would not go on as it began. Add --fresh "
                "to move it aside and start anew."
            )
        if changed := changes(recorded, bound):
            sentences = [sentence for key in changed for sentence in causes.get(key, ())]
            # Another report changes the text, too.
            hashes = {key for key in changed if causes.get(key)} | ({"text"} if sentences else set())
            lines = change_lines({key: pair for key, pair in changed.items() if key not in hashes})
            lines += [f"  {sentence}" for sentence in sentences]
            raise RunError(
                f"'{self.path}' holds a run of another experiment:\n" + "\n".join(lines) + "\nUndo the "
                "change, add --fresh to move the old run aside, or choose another --output or name."
            )


def measured_obedience(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `obedience` of a run.json, or None without it and if it belongs to an earlier checkpoint."""
    obedience = record.get("obedience")
    if not isinstance(obedience, Mapping) or obedience.get("scored_step") != record.get("scored_step"):
        return None
    return dict(obedience)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the checkpoint in a file, plain Python and tensors; raises RunError for a damaged or missing file."""
    import torch

    if not path.exists():
        raise RunError(f"The checkpoint '{path}' does not exist.")
    try:
        _check_sums(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged archive or pickle fails in any way
        # The text of torch advises to read the file without protection.
        objects = isinstance(error, UnpicklingError)
        reason = "no checkpoint of textseg (it holds objects)" if objects else "damaged or no checkpoint of textseg"
        raise RunError(
            f"The checkpoint '{path}' is {reason}. Restore it from a copy, or add --fresh to `textseg "
            "run` to move the run aside and train anew."
        ) from error


def _check_sums(path: Path) -> None:
    """Raise an error for a checkpoint whose content differs from its checksums, which torch writes but never checks."""
    with ZipFile(path) as archive:
        if any(member.compress_type != ZIP_STORED for member in archive.infolist()) or archive.testzip():
            raise BadZipFile


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], mismatch: str, advice: str = "") -> None:
    """Load the weights of a checkpoint; raises RunError, which begins with `mismatch`, for those of another model."""
    try:
        model.load_state_dict(checkpoint["model"])
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        weights, expected = checkpoint.get("model"), model.state_dict()
        difference = _difference(weights, expected) if isinstance(weights, Mapping) else "it holds no weights."
        raise RunError(f"{mismatch}: {difference or first_line(error)} {advice}".rstrip()) from error


def _difference(weights: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Return a sentence on the tensors that are missing, unknown or of another size; empty without such tensors."""
    names = {
        "missing": [name for name in expected if name not in weights],
        "unknown": [name for name in weights if name not in expected],
        "of another size": [
            name
            for name, tensor in expected.items()
            if name in weights and getattr(weights[name], "shape", None) != tensor.shape
        ],
    }
    parts = [f"{counted(len(some), 'tensor')} {what}, such as '{some[0]}'" for what, some in names.items() if some]
    return f"{'; '.join(parts)}." if parts else ""


def first_line(error: BaseException) -> str:
    """Return the first line of a message, with the second after a colon; for an empty message the error's name."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def flat(nested: Any, prefix: str = "") -> dict[str, Any]:
    """Return the innermost values of run.json by dotted key."""
    if not isinstance(nested, Mapping):
        return {prefix.rstrip("."): nested}
    return {key: value for name, part in nested.items() for key, value in flat(part, f"{prefix}{name}.").items()}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of each innermost key that differs; None stands for a missing value."""
    # run.json turns tuples into lists, so both sides are converted to JSON.
    old, new = (flat(json.loads(json.dumps(facts))) for facts in (before, now))
    return {key: (old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)}


def change_lines(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return a line for each key with its old and its new value; None stands for a value that is not given."""
    values = {key: ["not given" if value is None else value for value in pair] for key, pair in changes.items()}
    return [f"  {key}: was {was}, is {now}" for key, (was, now) in values.items()]


def environment() -> dict[str, Any]:
    """Return versions, git commit, a hash of the code of textseg, and hardware, for run.json."""
    import torch

    from textseg.version import __version__

    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    libraries["torch"] = str(torch.__version__)  # it names the build, such as +cu130
    return {
        "versions": {"textseg": __version__, "python": platform.python_version(), **libraries},
        "git_commit": _git_commit(),
        "core_source": core_source(),
        "hardware": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
            "platform": platform.platform(),
        },
        "command": shlex.join(sys.argv),
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout that textseg runs from, with "-dirty" if files changed; None without one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True)
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
