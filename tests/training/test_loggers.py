from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from textseg.drawing.pictures import OverlayPicture
from textseg.errors import PluginError
from textseg.hookspecs import Run
from textseg.registry.component import Component
from textseg.registry.discovery import Registry, installed_registry
from textseg.runs.folder import RunFolder
from textseg.system.progress import progress_bar
from textseg.training.loggers import (
    TrainingDisplay,
    describe,
    drawn_in,
    duration,
    logging_to,
    peak_memory,
)
from textseg.training.run import run

ROW = {
    "epoch": 3,
    "step": 12,
    "train_loss": 0.5,
    "train_dice": 0.3,
    "train_focal": 0.2,
    "learning_rate": 1e-3,
    "validation_dsc": 0.61,
    "validation_dsc_vertebrae": 0.7,
    "validation_dsc_spinal_canal": 0.9,
    "slices_per_second": 23.45,
    "memory_bytes": 2**30,
}

pytestmark = pytest.mark.usefixtures("stranger")


def picture() -> OverlayPicture:
    mask = np.zeros((12, 16), np.uint8)
    mask[3:9, 4:10] = 1
    image = np.random.default_rng(0).random((12, 16))
    return OverlayPicture("case a, slice 1 of 1, mean DSC 1.000", image, mask, mask, {1: "L5"})


def test_the_line_of_an_epoch_says_everything() -> None:
    line = describe(ROW, 50, stage="fine", seconds_left=754)
    assert line == (
        "epoch 3 of 50 (fine): loss 0.500 (dice 0.300, focal 0.200), learning rate 1.0e-03, validation DSC 0.610 "
        "(vertebrae 0.700, spinal canal 0.900), 23.4 slices/s, 1.0 GiB, 13 min left"
    )
    plain = {key: value for key, value in ROW.items() if not key.startswith("validation")}
    last = describe({**plain, "epoch": 50}, 50)
    assert "left" not in last
    assert "validation" not in last


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3570, "1 h 0 min"), (12_000, "3 h 20 min"), (190_000, "2 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_pictures_are_drawn_at_the_first_validation_that_is_due() -> None:
    epochs = range(1, 21)
    assert [e for e in epochs if drawn_in(e, every=5, validate_every=1, last=False)] == [5, 10, 15, 20]
    validated = range(3, 21, 3)
    assert [e for e in validated if drawn_in(e, every=5, validate_every=3, last=False)] == [6, 12, 15]
    assert drawn_in(7, every=100, validate_every=1, last=True)
    assert not any(drawn_in(e, every=None, validate_every=1, last=True) for e in epochs)


class Recorder:
    """A logger that keeps what it gets."""

    def __init__(self, run: Run, step: int, *, title: str = "") -> None:
        CALLS.append(("open", title or run.folder.name, step))

    def log(self, row: Mapping[str, float], step: int) -> None:
        CALLS.append(("log", dict(row), step))

    def show(self, picture: Path, step: int) -> None:
        CALLS.append(("show", picture.name, step))

    def log_results(self, results: Mapping[str, float], step: int) -> None:
        CALLS.append(("results", dict(results), step))

    def close(self, *, failed: bool) -> None:
        CALLS.append(("close", failed))


CALLS: list[tuple[Any, ...]] = []
RECORDER = Component("logger", "recorder", Recorder, "here", "here", "1")


@pytest.fixture
def recorded() -> Registry:
    """A registry whose only logger is a recorder."""
    CALLS.clear()
    return Registry((), [RECORDER])


def run_in(folder: Path, *loggers: object) -> Run:
    return Run(folder, {"name": "tiny", "training": {"loggers": list(loggers)}}, {})


def test_a_logger_gets_epochs_and_pictures(recorded: Registry, tmp_path: Path) -> None:
    with logging_to(recorded, run_in(tmp_path, "recorder"), 4) as loggers, progress_bar() as bar:
        display = TrainingDisplay(bar, loggers, RunFolder(tmp_path), 50, 2)
        display.show_epoch(ROW, "")
        display.show_pictures([picture(), picture()], 3, 12)
    assert (tmp_path / "log" / "overlays" / "epoch_0003.png").read_bytes().startswith(b"\x89PNG")
    row = {key: value for key, value in ROW.items() if key != "epoch"}
    calls = [("log", row, 12), ("show", "epoch_0003.png", 12)]
    assert [("open", tmp_path.name, 4), *calls, ("close", False)] == CALLS


def test_a_logger_has_settings(recorded: Registry, tmp_path: Path) -> None:
    with logging_to(recorded, run_in(tmp_path, "recorder", {"use": "recorder", "title": "Second"}), 4):
        assert [("open", tmp_path.name, 4), ("open", "Second", 4)] == CALLS


def test_a_logger_that_can_not_be_built_closes_the_ones_before_it(recorded: Registry, tmp_path: Path) -> None:
    with (
        pytest.raises(PluginError, match="no logger 'other'"),
        logging_to(recorded, run_in(tmp_path, "recorder", "other"), 4),
    ):
        raise AssertionError
    assert CALLS[-1] == ("close", True)


def test_no_logger_at_all_is_a_choice(recorded: Registry, tmp_path: Path) -> None:
    with logging_to(recorded, run_in(tmp_path), 0) as loggers:
        assert loggers == []
    assert CALLS == []
    assert list(tmp_path.iterdir()) == []


def test_loggers_learn_that_a_run_failed(recorded: Registry, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), logging_to(recorded, run_in(tmp_path, "recorder"), 0):
        raise KeyboardInterrupt
    assert CALLS[-1] == ("close", True)


def test_test_scores_reach_a_logger(
    tiny_recipe: Path, copied: Path, recorded: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(installed_registry()._components, ("logger", "recorder"), RECORDER)
    (copied / "report.html").unlink()
    run(tiny_recipe, output=copied.parent.parent, overrides=["training.loggers=[recorder]"])
    record = RunFolder(copied).read()
    assert CALLS[1:] == [("results", record["test"], record["scored_step"]), ("close", False)]


def test_memory_is_counted() -> None:
    before = peak_memory(torch.device("cpu"))
    assert before > 2**24
    held = np.ones(2**23)  # 64 MiB
    assert peak_memory(torch.device("cpu")) >= before
    del held
