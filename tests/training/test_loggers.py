from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from textseg.drawing.pictures import OverlayPicture
from textseg.errors import RecipeError
from textseg.recipe.loading import Recipe, load_recipe
from textseg.runs.folder import RunFolder
from textseg.training import loggers as module
from textseg.training.loggers import Watch, check_loggers, describe, drawn_in, duration, flat, peak_memory, watching

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
    ("seconds", "said"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3570, "1 h 0 min"), (12_000, "3 h 20 min"), (190_000, "2 d 4 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_pictures_are_drawn_at_the_first_validation_that_is_due() -> None:
    epochs = range(1, 21)
    assert [e for e in epochs if drawn_in(e, every=5, validate_every=1, last=False)] == [5, 10, 15, 20]
    validated = range(3, 21, 3)
    assert [e for e in validated if drawn_in(e, every=5, validate_every=3, last=False)] == [6, 12, 15]
    assert drawn_in(7, every=100, validate_every=1, last=True)
    assert not any(drawn_in(e, every=None, validate_every=1, last=True) for e in epochs)


def test_tensorboard_has_the_curves_and_the_picture(tiny_recipe: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path)
    with watching(recipe(tiny_recipe, "tensorboard"), folder, 0) as watch:
        watch.log(ROW, 12)
        watch.show([picture(), picture()], 3)
    assert (tmp_path / "log" / "overlays" / "epoch_0003.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == ROW.keys() - {"epoch"}
    (event,) = events.Scalars("validation_dsc_vertebrae")
    assert (event.step, event.value) == (12, pytest.approx(0.7))
    (image,) = events.Images("validation")
    assert (image.step, image.height > image.width / 4) == (12, True)


def test_no_logger_at_all_is_a_choice_and_csv_stays(tiny_recipe: Path, tmp_path: Path) -> None:
    with watching(recipe(tiny_recipe), RunFolder(tmp_path), 0) as watch:
        watch.log(ROW, 12)
        assert watch.loggers == {}
    assert list(tmp_path.iterdir()) == []


class Recorder:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def finalize(self, status: str) -> None:
        self.seen.append(status)


def test_loggers_are_told_how_it_ended(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(Watch, "_open_tensorboard", lambda self, recipe: recorder)
    with watching(recipe(tiny_recipe, "tensorboard"), RunFolder(tmp_path), 0):
        pass
    with pytest.raises(KeyboardInterrupt), watching(recipe(tiny_recipe, "tensorboard"), RunFolder(tmp_path), 0):
        raise KeyboardInterrupt
    assert recorder.seen == ["success", "failed"]


def test_a_missing_package_is_a_message(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r'training.loggers: \'wandb\' needs .* pip install "textseg\[wandb\]"'):
        check_loggers(recipe(tiny_recipe, "wandb"))


def test_settings_by_dotted_key() -> None:
    nested: dict[str, Any] = {"a": {"b": 1, "c": [1, 2], "d": None}, "e": "x", "f": True}
    assert dict(flat(nested)) == {"a.b": 1, "a.c": "[1, 2]", "e": "x", "f": True}


def test_memory_is_counted() -> None:
    before = peak_memory(torch.device("cpu"))
    assert before > 2**24
    held = np.ones(2**23)  # 64 MiB
    assert peak_memory(torch.device("cpu")) >= before
    del held


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.filterwarnings("ignore")  # theirs
def test_wandb_keeps_one_run_offline(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = RunFolder(tmp_path / "tiny" / "seed1")
    names = []
    for step in (12, 24):
        with watching(recipe(tiny_recipe, "wandb"), folder, step) as watch:
            watch.log(ROW, step)
            watch.show([picture()], 3)
            names.append(watch.loggers["wandb"].experiment.id)
    assert names[0] == names[1] == folder.read()["logged_as"]["wandb"]
    assert len(list((folder.log / "wandb").glob(f"offline-run-*-{names[0]}/run-{names[0]}.wandb"))) == 2
    assert list((folder.log / "wandb").rglob("validation_*.png"))


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
@pytest.mark.filterwarnings("ignore")  # theirs
def test_mlflow_keeps_one_run_in_the_folder(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = RunFolder(tmp_path / "tiny" / "seed1")
    for step in (12, 24):
        with watching(recipe(tiny_recipe, "mlflow"), folder, step) as watch:
            watch.log(ROW, step)
            watch.show([picture()], 3)
    (run,) = (folder.log / "mlruns").glob("*/" + folder.read()["logged_as"]["mlflow"])
    steps = [line.split()[2] for line in (run / "metrics" / "validation_dsc").read_text().splitlines()]
    assert steps == ["12", "24"]
    assert (run / "params" / "training.learning_rate").read_text() == "0.01"
    assert list(run.rglob("epoch_0003.png"))
    assert json.loads((folder.record).read_text())["logged_as"].keys() == {"mlflow"}
