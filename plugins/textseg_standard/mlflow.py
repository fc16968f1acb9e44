"""MLflow: the settings, curves, pictures and scores of a training in a tracking service or a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textseg import Run

if TYPE_CHECKING:
    from lightning.pytorch.loggers import MLFlowLogger


class MLflow:
    """A run of MLflow, set up by `MLFLOW_TRACKING_URI` and the like; without these in log/mlruns."""

    def __init__(self, run: Run, step: int) -> None:
        self.run = run
        self.identity = run.folder / "log" / "mlflow.id"

    @cached_property
    def logger(self) -> MLFlowLogger:
        """Lightning's logger, opened when there is something to write; a resumed run goes on in the same one."""
        from lightning.pytorch.loggers import MLFlowLogger

        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its small package has no other store for log/mlruns
        folder = self.run.folder
        identity = self.identity.read_text(encoding="utf-8") if self.identity.exists() else None
        logger = MLFlowLogger(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", "textseg"),
            run_name=f"{folder.parent.name}/{folder.name}",
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", (folder / "log" / "mlruns").resolve().as_uri()),
            run_id=identity,
        )
        if identity is None:
            logger.log_hyperparams(dict(plain_settings(self.run.recipe)))
            self.identity.parent.mkdir(parents=True, exist_ok=True)
            self.identity.write_text(str(logger.run_id), encoding="utf-8")
        return logger

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Record the numbers of an epoch."""
        self.logger.log_metrics(dict(row), step)

    def show(self, picture: Path, step: int) -> None:
        """Record validation slices as an artifact."""
        self.logger.experiment.log_artifact(self.logger.run_id, str(picture), "validation")

    def log_results(self, results: Mapping[str, float], step: int) -> None:
        """Record the test scores as `test_<metric>`."""
        self.log({f"test_{metric}": value for metric, value in results.items()}, step)

    def close(self, *, failed: bool) -> None:
        """Mark the run as finished or failed."""
        if "logger" in vars(self):
            self.logger.finalize("failed" if failed else "success")


def plain_settings(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, bool | float | str]]:
    """Yield settings by dotted key; values other than numbers, flags and text become JSON."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from plain_settings(value, f"{above}{key}.")
        elif value is not None:
            yield f"{above}{key}", value if isinstance(value, str | int | float) else json.dumps(value)
