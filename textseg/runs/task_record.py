"""The file task.json: the task of a trained model. With it, prediction does not need the data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from textseg.contracts import Atlas, Structure, Task
from textseg.errors import RunError
from textseg.system.commands import evaluate
from textseg.system.files import write_atomically
from textseg.system.own_files import damaged

_Size = Annotated[int, Field(ge=1, le=2**16)]
_Spacing = Annotated[float, Field(gt=0, le=1e6)]


@dataclass(frozen=True)
class TaskRecord:
    """A task, the cases that training or the choice of the best checkpoint has seen, and the facts that it knew."""

    task: Task
    seen: Mapping[str, str]  # SHA-256 -> "training case 12_t2"
    facts: tuple[Mapping[str, str], ...] = ()  # each set of facts that texts of training stated, such as sequence: T2

    def written(self) -> str:
        """Return the record as JSON."""
        facts = {"facts": [dict(known) for known in self.facts]} if self.facts else {}
        return json.dumps({"task": asdict(self.task), "seen": dict(self.seen), **facts}, indent=1) + "\n"


def write_task(path: Path, record: TaskRecord) -> None:
    """Write task.json atomically."""
    write_atomically(path, record.written())


def read_task(path: Path) -> TaskRecord:
    """Return the record in a task.json. Raises RunError where it is missing or damaged."""
    again = f"Write it anew with: {evaluate(path.parent)}"
    try:
        record = _RECORD.validate_json(path.read_bytes())
        _Bounds.model_validate(record.task, from_attributes=True)
        if record.task.class_count != record.task.atlas.class_count:
            raise damaged(path, f"class_count {record.task.class_count} is not that of its atlas", again)
        return record
    except FileNotFoundError:
        raise RunError(
            f"'{path}' does not exist: the run stems from an earlier version. Write it with: {evaluate(path.parent)}"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        problem = ": ".join(part for part in (".".join(map(str, first["loc"])), first["msg"]) if part)
        raise damaged(path, problem, again) from error
    except OSError as error:
        raise damaged(path, str(error.strerror), again) from error


class _Fingerprint(BaseModel):
    """The facts of the training data in a task; an empty list for a task without them."""

    native_sizes: list[tuple[_Size, _Size, _Size]] = []
    native_spacings_mm: list[tuple[_Spacing, _Spacing, _Spacing]] = []
    spacings_mm: list[tuple[_Spacing, _Spacing, _Spacing]] = []
    intensities: list[tuple[Annotated[tuple[float, ...], Field(min_length=3)], ...]] = []  # case, channel, percentile


class _Bounds(BaseModel):
    """The bounds of a task, checked before memory is taken for its model."""

    image_channels: Annotated[int, Field(ge=1, le=64)]
    image_size: tuple[_Size, _Size]
    text_size: _Size | None
    text_length: _Size | None
    fingerprint: _Fingerprint


# With this attribute, pydantic refuses unknown fields of data classes that are not its own.
_PARTS: tuple[Any, ...] = (TaskRecord, Task, Atlas, Structure)
for _part in _PARTS:
    _part.__pydantic_config__ = ConfigDict(extra="forbid")
_RECORD = TypeAdapter(TaskRecord)
