from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from textseg.contracts import Structure, Task
from textseg.errors import RunError
from textseg.runs.task_record import TaskRecord, read_task, write_task


@pytest.fixture
def record() -> TaskRecord:
    from textseg.registry.discovery import installed_registry

    atlas = installed_registry().build("atlas", "lumbar_spider", settings={})
    fingerprint = {"native_sizes": [[15, 640, 512]], "native_spacings_mm": [[4.0, 0.5, 0.5]]}
    return TaskRecord(Task(1, (48, 40), 20, atlas, 16, 217, fingerprint), {"a1": "training case 5"})


def test_what_is_written_is_read(tmp_path: Path, record: TaskRecord) -> None:
    write_task(tmp_path / "task.json", record)
    assert read_task(tmp_path / "task.json") == record
    axial = replace(record, task=replace(record.task, atlas=replace(record.task.atlas, plane="axial")))
    write_task(tmp_path / "task.json", axial)
    assert read_task(tmp_path / "task.json") == axial


def test_a_run_without_it_says_how_it_comes_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"earlier version. Write it with: textseg evaluate {tmp_path}"):
        read_task(tmp_path / "task.json")


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"task": {}}', '{"task": {"atlas": 3}, "seen": {}}'])
def test_a_damaged_one_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "task.json").write_text(damage)
    with pytest.raises(RunError, match="task.json' is damaged"):
        read_task(tmp_path / "task.json")


def test_a_field_that_a_later_version_added_is_named(tmp_path: Path, record: TaskRecord) -> None:
    written = json.loads(record.written())
    written["task"]["planes"] = 3
    (tmp_path / "task.json").write_text(json.dumps(written))
    with pytest.raises(RunError, match="is damaged .*planes"):
        read_task(tmp_path / "task.json")


def test_a_file_of_a_version_without_planes_and_concepts_is_read(tmp_path: Path) -> None:
    atlas = {
        "name": "spine",
        "structures": [{"name": "L5", "family": "lumbar vertebra", "index": 1}],
        "sequence": ["L5"],
    }
    atlas |= {"groups": {"vertebrae": ["L5"]}, "adjacent": [], "label_schemes": {"spider": {"1": "L5"}}}
    task = {"image_channels": 1, "image_size": [48, 40], "class_count": 2, "atlas": atlas, "text_size": None}
    task |= {"text_length": None, "fingerprint": {"native_sizes": [[15, 640, 512]]}}
    (tmp_path / "task.json").write_text(json.dumps({"task": task, "seen": {"a1": "training case 5"}}))
    record = read_task(tmp_path / "task.json")
    assert record.task.image_size == (48, 40)
    assert record.task.atlas.plane == "sagittal"
    assert record.task.atlas.groups == {"vertebrae": ("L5",)}
    assert record.task.atlas.label_schemes == {"spider": {1: "L5"}}
    assert record.task.atlas.structures == (Structure("L5", "lumbar vertebra", 1),)
    assert record.task.fingerprint == {"native_sizes": [[15, 640, 512]]}
    assert record.seen == {"a1": "training case 5"}


def test_an_atlas_that_contradicts_itself_is_a_damaged_file(tmp_path: Path, record: TaskRecord) -> None:
    content = json.loads(record.written())
    content["task"]["atlas"]["structures"][0]["index"] = 7
    (tmp_path / "task.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"is damaged \(task.atlas: .* the index of structures\[i\] must be i \+ 1"):
        read_task(tmp_path / "task.json")
