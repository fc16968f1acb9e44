from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imsave

from textseg import Run
from textseg_standard.mlflow import MLflow, plain_settings


def test_settings_by_dotted_key() -> None:
    nested: dict[str, Any] = {"a": {"b": 1, "c": [1, 2], "d": None}, "e": "x", "f": True}
    assert dict(plain_settings(nested)) == {"a.b": 1, "a.c": "[1, 2]", "e": "x", "f": True}


@pytest.mark.filterwarnings("ignore")  # theirs
def test_a_run_that_goes_on_is_one_run_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    imsave(tmp_path / "epoch_0003.png", np.zeros((8, 8, 3)))
    run = Run(tmp_path / "tiny" / "seed1", {"name": "tiny", "training": {"learning_rate": 0.01}}, {})
    for step in (12, 24):
        logger = MLflow(run, step)
        logger.log({"validation_dsc": 0.5}, step)
        logger.show(tmp_path / "epoch_0003.png", step)
        logger.close(failed=False)
    identity = (run.folder / "log" / "mlflow.id").read_text()
    (logged,) = (run.folder / "log" / "mlruns").glob(f"*/{identity}")
    steps = [line.split()[2] for line in (logged / "metrics" / "validation_dsc").read_text().splitlines()]
    assert steps == ["12", "24"]
    assert (logged / "params" / "training.learning_rate").read_text() == "0.01"
    assert list(logged.rglob("epoch_0003.png"))
