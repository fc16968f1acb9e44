"""A run that is killed at any moment and started again ends as one that was left alone, bit by bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from textseg.errors import RunError
from textseg.models.stages import Stage
from textseg.runs.folder import RunFolder
from textseg.training.checkpoints import Progression, initialize, restore

pytestmark = pytest.mark.usefixtures("stranger")

MEASURED = {"seconds", "slices_per_second", "memory_bytes", "record"}

# One process that imports torch, and forks for each run. What a run does to files, and each step of its training, is an
# event. A killed run is told the event that it dies at; where that is a file given its name, the file is half written.
FORKS = """
import json, os, signal, sys, traceback
from pathlib import Path

recipe, place = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
import matplotlib.pyplot, SimpleITK, torch
import textseg.evaluation.evaluate, textseg.training.loggers, textseg.training.run
from textseg.training.loop import Training

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "tempfile.mkstemp"}
step = Training.training_step


def described(event, arguments):
    if event not in CHANGES or not isinstance(arguments[0], (str, os.PathLike)):
        return None
    path = os.fspath(arguments[0])
    writes = event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if not (writes and path.startswith(str(place))):
        return None
    target = f" to {os.path.basename(arguments[1])}" if event == "os.rename" else ""  # temporary names say nothing
    return f"{event} {os.path.relpath(path, place)}{target}"


def watch(last):
    events, main = [], os.getpid()

    def note(event, arguments):
        if os.getpid() == main and (found := described(event, arguments)):
            happen(found, arguments)

    def happen(event, arguments=()):
        events.append(event)
        if len(events) == last:
            if event.startswith("os.rename") and os.path.isfile(arguments[0]):
                os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def noted_step(self, batch):
        happen(f"step {self.progression.step}")
        return step(self, batch)

    Training.training_step = noted_step
    sys.addaudithook(note)
    return events


def run(folder, last):
    global place
    place = place / folder
    os.environ["TEXTSEG_CACHE"] = str(place / "cache")
    events = watch(last)
    with (place.parent / f"{folder}.out").open("a") as out:
        os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
    values = [f"dataset.folder={place}/data", "training.epochs=2", "evaluation.metrics=[dsc]"]
    textseg.training.run.run(recipe, overrides=values, output=place / "runs")
    sys.stdout.flush()
    (place.parent / f"{folder}.json").write_text(json.dumps(events))


for line in sys.stdin:
    folder, last = line.split()
    child = os.fork()
    if not child:
        code = 1
        try:
            run(folder, int(last))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def moments(events: list[str], count: int) -> list[int]:
    """Return eight events, counted from 1, one of each part of a run; or twenty, those eight among them."""
    first = events.index("step 0")
    last = max(number for number, event in enumerate(events) if event.startswith("step "))
    trained = max(number for number, event in enumerate(events) if "metrics.csv" in event)
    parts: list[tuple[int, Callable[[int, str], bool]]] = [
        (2, lambda number, event: " data" in event),
        (3, lambda number, event: " cache/slices" in event),
        (3, lambda number, event: " cache/text" in event),
        (2, lambda number, event: " runs" in event and number < first),
        (4, lambda number, event: event.startswith("step ")),
        (2, lambda number, event: event.startswith("os.rename") and "last.ckpt" in event),
        (1, lambda number, event: event.startswith("os.rename") and "best.ckpt" in event),
        (3, lambda number, event: number > max(last, trained)),
    ]
    draw, drawn = random.Random(2025), set[int]()
    for of_part, belongs in parts:
        numbers = draw.sample([n + 1 for n, event in enumerate(events) if belongs(n, event)], of_part)
        drawn |= set(numbers if count > len(parts) else numbers[:1])
    assert len(drawn) == count
    return sorted(drawn)


def assert_same(first: Any, second: Any) -> None:
    """Bit by bit, at any depth, but for times and memory."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first.keys() - MEASURED:
            assert_same(first[key], second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert first == second


def files(run: RunFolder) -> set[str]:
    """Return the files of a run; TensorBoard starts a new event file at each start."""
    files = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    return {name for name in files if "events.out.tfevents" not in name}


def assert_same_run(run: RunFolder, whole: RunFolder) -> None:
    assert files(run) == files(whole)
    for name in ("last", "best"):
        assert_same(run.load_checkpoint(name), whole.load_checkpoint(name))
    for name in ("scores.csv", "group_scores.csv", "enumeration.json", "split.json", "prompts.jsonl", "task.json"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    for path in whole.predictions.glob("*.mha"):
        assert (run.predictions / path.name).read_bytes() == path.read_bytes(), path.name
    rows = [[{k: v for k, v in row.items() if k not in MEASURED} for row in r.read_history()] for r in (run, whole)]
    assert rows[0] == rows[1]


def test_a_precision_without_a_scale_of_the_loss_leaves_a_scaler_as_it_is(tmp_path: Path) -> None:
    run, scaler = RunFolder(tmp_path), torch.amp.GradScaler("cpu", init_scale=8.0)
    for state, scale in (({}, 8.0), ({**scaler.state_dict(), "scale": 2.0}, 2.0)):
        run.save_checkpoint("last", {"precision": state, "progression": asdict(Progression())})
        restore(run, {"precision": scaler}, [Stage("", 0, 1)], 1)
        assert scaler.get_scale() == scale


def test_weights_that_do_not_fit_say_what_they_are(tmp_path: Path) -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(2, 3))
    weights = model.state_dict()
    different = {"0.weight": torch.zeros(3, 5), "1.bias": torch.zeros(1)}
    contents = {
        "lightning": {"state_dict": weights, "pytorch-lightning_version": "2"},
        "plain": weights,
        "list": [1],
        "different": {"model": different},
        "fits": {"model": weights},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.ckpt")
    (tmp_path / "truncated.ckpt").write_bytes((tmp_path / "fits.ckpt").read_bytes()[:-200])
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "folder").mkdir()
    messages = {
        "gone.ckpt": "' does not exist. Name a run folder or its checkpoints/best.ckpt",
        "lightning.ckpt": "' is a checkpoint of Lightning: it has no key 'model'",
        "plain.ckpt": "' is no checkpoint of textseg: it has no key 'model'",
        "list.ckpt": "' is damaged, or no checkpoint of textseg. Name",
        "truncated.ckpt": "' is damaged, or no checkpoint of textseg. Name",
        "empty.ckpt": "' is damaged, or no checkpoint of textseg. Name",
        "folder": "' is no run: it has no run.json",
        "different.ckpt": (
            "' does not fit the model of this recipe: 1 tensor missing, such as '0.bias'; 1 tensor unknown, "
            "such as '1.bias'; 1 tensor of another size, such as '0.weight'. Name"
        ),
    }
    for name, message in messages.items():
        with pytest.raises(RunError) as caught:
            initialize(model, tmp_path / name)
        assert str(caught.value).startswith(f"training.initialize_from: '{tmp_path / name}{message}"), name
        assert "--fresh" not in str(caught.value)
    initialize(model, tmp_path / "fits.ckpt")


def test_other_epochs_are_said_where_they_change_the_schedule() -> None:
    def always(before: int) -> bool:
        return True

    progression = Progression(planned_epochs=5)
    assert progression.plan(5, always) == ""
    assert progression.plan(8, always).startswith("the length of the training is 8 epochs and was 5: the ")
    assert progression.plan(8, always) == ""  # from now on
    assert progression.plan(6, always).startswith("the length of the training is 6 epochs and was 8: ")  # fewer, too
    assert progression.plan(9, lambda before: before != 6) == ""  # a constant learning rate
    assert Progression(step=3).plan(5, always) == ""  # of a version that did not say it


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, pytest.param(20, marks=pytest.mark.nightly)])
def test_killed_at_any_moment_and_started_again_is_the_same(count: int, tiny_recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKS, str(tiny_recipe), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as forks:

        def run(folder: str, last: int) -> int:
            assert forks.stdin is not None
            assert forks.stdout is not None
            forks.stdin.write(f"{folder} {last}\n")
            forks.stdin.flush()
            return int(forks.stdout.readline())

        def said(folder: str) -> str:
            return (tmp_path / f"{folder}.out").read_text()

        assert run("whole", 0) == 0, said("whole")
        events = json.loads((tmp_path / "whole.json").read_text())
        whole = RunFolder(tmp_path / "whole/runs/tiny/seed2025")
        total = sum(event.startswith("step ") for event in events)
        for last in moments(events, count):
            folder = f"killed_at_{last}"
            assert run(folder, last) == -signal.SIGKILL, (events[last - 1], said(folder))
            killed = RunFolder(tmp_path / folder / "runs/tiny/seed2025")
            begun = killed.checkpoint("last").exists()
            saved = killed.load_checkpoint("last")["progression"]["step"] if begun else 0
            assert run(folder, 0) == 0, (events[last - 1], said(folder))
            again = json.loads((tmp_path / f"{folder}.json").read_text())
            assert [event for event in again if event.startswith("step ")] == [f"step {n}" for n in range(saved, total)]
            assert_same_run(killed, whole)
