from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from textseg.drawing.pictures import OverlayPicture
from textseg.errors import RecipeError
from textseg.hookspecs import LoggerOffer, Run
from textseg.recipe.loading import load_recipe
from textseg.recipe.schema import Recipe
from textseg.registry.discovery import Registry, installed_registry
from textseg.runs.folder import RunFolder
from textseg.system.progress import progress_bar
from textseg.training import loggers as module
from textseg.training.loggers import (
    TrainingDisplay,
    check_loggers,
    describe,
    drawn_in,
    duration,
    logging_to,
    peak_memory,
    plain_settings,
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


def recipe(tiny_recipe: Path, *loggers: str) -> Recipe:
    return load_recipe(tiny_recipe, [f"training.loggers=[{','.join(loggers)}]"])


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

    def __init__(self, run: Run, step: int) -> None:
        CALLS.append(("open", run.folder.name, step))

    def log(self, row: Mapping[str, float], step: int) -> None:
        CALLS.append(("log", dict(row), step))

    def show(self, picture: Path, step: int) -> None:
        CALLS.append(("show", picture.name, step))

    def log_results(self, results: Mapping[str, float], step: int) -> None:
        CALLS.append(("results", dict(results), step))

    def close(self, *, failed: bool) -> None:
        CALLS.append(("close", failed))


CALLS: list[tuple[Any, ...]] = []
RECORDER = LoggerOffer("recorder", f"{__name__}:Recorder", "json", "json")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry whose only logger is a recorder."""
    CALLS.clear()
    registry = Registry()
    monkeypatch.setattr(registry, "loggers", (RECORDER,), raising=False)
    return registry


def run_in(folder: Path, *loggers: str) -> Run:
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
    monkeypatch.setattr(installed_registry(), "loggers", (RECORDER,))
    (copied / "report.html").unlink()
    run(tiny_recipe, output=copied.parent.parent, overrides=["training.loggers=[recorder]"])
    record = RunFolder(copied).read()
    assert CALLS[1:] == [("results", record["test"], record["scored_step"]), ("close", False)]


def test_a_missing_package_is_a_message(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"training.loggers: 'wandb' needs .* pip install 'textseg\[wandb\]'"):
        check_loggers(recipe(tiny_recipe, "wandb"), installed_registry())


def test_an_unknown_logger_is_a_message(tiny_recipe: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"training\.loggers.*unknown value 'wand'\. Did you mean 'wandb'\? Possible: "
    ):
        recipe(tiny_recipe, "wand")
    without_plugins = Registry()
    with pytest.raises(RecipeError, match=r"training\.loggers: unknown value 'tensorboard'"):
        check_loggers(load_recipe(tiny_recipe), without_plugins)


def test_settings_by_dotted_key() -> None:
    nested: dict[str, Any] = {"a": {"b": 1, "c": [1, 2], "d": None}, "e": "x", "f": True}
    assert plain_settings(nested) == {"a.b": 1, "a.c": "[1, 2]", "e": "x", "f": True}


def test_memory_is_counted() -> None:
    before = peak_memory(torch.device("cpu"))
    assert before > 2**24
    held = np.ones(2**23)  # 64 MiB
    assert peak_memory(torch.device("cpu")) >= before
    del held


def log_twice(tiny_recipe: Path, folder: RunFolder, name: str) -> None:
    """Log an epoch and a picture, and once more as a run that goes on."""
    settings = recipe(tiny_recipe, name).model_dump(mode="json")
    for step in (12, 24):
        run = Run(folder.path, settings, folder.read())
        with logging_to(installed_registry(), run, step) as loggers, progress_bar() as bar:
            display = TrainingDisplay(bar, loggers, folder, 50, 2)
            display.show_epoch({**ROW, "step": step}, "")
            display.show_pictures([picture()], 3, step)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.filterwarnings("ignore")  # theirs
def test_wandb_keeps_one_run_offline(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = RunFolder(tmp_path / "tiny" / "seed1")
    log_twice(tiny_recipe, folder, "wandb")
    identity = folder.read()["logged_as"]["wandb"]
    assert len(list((folder.log / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))) == 2
    assert list((folder.log / "wandb").rglob("validation_*.png"))


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
@pytest.mark.filterwarnings("ignore")  # theirs
def test_mlflow_keeps_one_run_in_the_folder(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = RunFolder(tmp_path / "tiny" / "seed1")
    log_twice(tiny_recipe, folder, "mlflow")
    (run,) = (folder.log / "mlruns").glob("*/" + folder.read()["logged_as"]["mlflow"])
    steps = [line.split()[2] for line in (run / "metrics" / "validation_dsc").read_text().splitlines()]
    assert steps == ["12", "24"]
    assert (run / "params" / "training.learning_rate").read_text() == "0.01"
    assert list(run.rglob("epoch_0003.png"))
    assert json.loads((folder.record).read_text())["logged_as"].keys() == {"mlflow"}
