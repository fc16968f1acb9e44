"""task.json: what a trained model is for, so that it segments volumes where its data set is not at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from textseg.contracts import Atlas, Structure, Task
from textseg.errors import RunError
from textseg.system.files import write_atomically


@dataclass(frozen=True)
class TaskRecord:
    """A task, and by the hash of its image file each case that the weights or their choice have seen."""

    task: Task
    seen: Mapping[str, str]  # SHA-256 -> "training case 12_t2"

    def written(self) -> str:
        """As JSON."""
        return json.dumps({"task": asdict(self.task), "seen": dict(self.seen)}, indent=1) + "\n"


def write_task(path: Path, record: TaskRecord) -> None:
    """Write task.json atomically."""
    write_atomically(path, record.written())


def read_task(path: Path) -> TaskRecord:
    """The record in a task.json. Raises RunError where it is missing or damaged."""
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        task = written["task"]
        atlas = _atlas(task.pop("atlas"))
        size = tuple(task.pop("image_size"))
        return TaskRecord(Task(image_size=size, atlas=atlas, **task), written["seen"])
    except FileNotFoundError:
        raise RunError(
            f"'{path}' does not exist: the run stems from an earlier version. Write it with: textseg evaluate "
            f"{path.parent}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"'{path}' is damaged ({error}). Write it anew with: textseg evaluate {path.parent}") from error


def _atlas(written: dict[str, Any]) -> Atlas:
    return Atlas(
        name=written["name"],
        structures=tuple(Structure(**structure) for structure in written["structures"]),
        sequence=tuple(written["sequence"]),
        groups={name: tuple(group) for name, group in written["groups"].items()},
        adjacent=tuple((one, other) for one, other in written["adjacent"]),
        label_schemes={
            name: {int(value): said for value, said in scheme.items()}
            for name, scheme in written["label_schemes"].items()
        },
        plane=written.get("plane", "sagittal"),  # as all were before there were others
    )
