"""The file task.json: the task of a trained model. With it, prediction does not need the data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from textseg.contracts import Atlas, Structure, Task
from textseg.errors import RunError
from textseg.system.commands import evaluate
from textseg.system.files import write_atomically


@dataclass(frozen=True)
class TaskRecord:
    """A task, and the cases that training or the choice of the best checkpoint has seen, by hash of the image file."""

    task: Task
    seen: Mapping[str, str]  # SHA-256 -> "training case 12_t2"

    def written(self) -> str:
        """Return the record as JSON."""
        return json.dumps({"task": asdict(self.task), "seen": dict(self.seen)}, indent=1) + "\n"


def write_task(path: Path, record: TaskRecord) -> None:
    """Write task.json atomically."""
    write_atomically(path, record.written())


def read_task(path: Path) -> TaskRecord:
    """Return the record in a task.json. Raises RunError where it is missing or damaged."""
    try:
        return _RECORD.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RunError(
            f"'{path}' does not exist: the run stems from an earlier version. Write it with: {evaluate(path.parent)}"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        problem = ": ".join(part for part in (".".join(map(str, first["loc"])), first["msg"]) if part)
        again = f"Write it anew with: {evaluate(path.parent)}"
        raise RunError(f"'{path}' is damaged ({problem}). {again}") from error


# With this attribute, pydantic refuses unknown fields of data classes that are not its own.
_PARTS: tuple[Any, ...] = (TaskRecord, Task, Atlas, Structure)
for _part in _PARTS:
    _part.__pydantic_config__ = ConfigDict(extra="forbid")
_RECORD = TypeAdapter(TaskRecord)
