from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from textseg.drawing.pictures import OverlayPicture, overlay_png
from textseg.hookspecs import Run
from textseg_tensorboard.tensorboard import TensorBoard


def accumulated(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "log"))
    events.Reload()
    return events


def test_curves_and_pictures(tmp_path: Path) -> None:
    mask = np.zeros((12, 16), np.uint8)
    mask[3:9, 4:10] = 1
    image = np.random.default_rng(0).random((12, 16))
    overlay = OverlayPicture("case a", image, mask, mask, {1: "L5"})
    (tmp_path / "epoch.png").write_bytes(overlay_png(overlay, overlay))
    logger = TensorBoard(Run(tmp_path, {}, {}), 0)
    logger.log({"train_loss": 0.5, "validation_dsc_vertebrae": 0.7}, 12)
    logger.show(tmp_path / "epoch.png", 12)
    logger.close(failed=False)
    events = accumulated(tmp_path)
    assert set(events.Tags()["scalars"]) == {"train_loss", "validation_dsc_vertebrae"}
    (event,) = events.Scalars("validation_dsc_vertebrae")
    assert (event.step, event.value) == (12, pytest.approx(0.7))
    (shown,) = events.Images("validation")
    assert (shown.step, shown.height > shown.width / 4) == (12, True)


def test_what_an_interrupted_run_wrote_later_is_hidden(tmp_path: Path) -> None:
    for first, steps in ((0, (1, 2, 3)), (2, (2, 3))):
        logger = TensorBoard(Run(tmp_path, {}, {}), first)
        for step in steps:
            logger.log({"loss": first + step}, step)
        logger.close(failed=first == 0)
    assert [(event.step, event.value) for event in accumulated(tmp_path).Scalars("loss")] == [(1, 1), (2, 4), (3, 5)]


def test_a_logger_that_gets_nothing_writes_no_file(tmp_path: Path) -> None:
    logger = TensorBoard(Run(tmp_path, {}, {}), 4)
    logger.log_results({"dsc": 0.5}, 4)
    logger.close(failed=False)
    assert list(tmp_path.iterdir()) == []
