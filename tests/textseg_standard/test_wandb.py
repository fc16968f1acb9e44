from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

from textseg import Run
from textseg_standard.wandb import Wandb

pytest.importorskip("wandb")


@pytest.mark.filterwarnings("ignore")  # theirs
def test_a_run_that_goes_on_is_one_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    imsave(tmp_path / "epoch_0003.png", np.zeros((8, 8, 3)))
    run = Run(tmp_path / "tiny" / "seed1", {"name": "tiny", "training": {"learning_rate": 0.01}}, {})
    for step in (12, 24):
        logger = Wandb(run, step)
        logger.log({"validation_dsc": 0.5}, step)
        logger.show(tmp_path / "epoch_0003.png", step)
        logger.close(failed=False)
    identity = (run.folder / "log" / "wandb.id").read_text()
    assert len(list((run.folder / "log" / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))) == 2
    assert list((run.folder / "log" / "wandb").rglob("validation_*.png"))
