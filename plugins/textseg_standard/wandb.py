"""Weights & Biases: the curves, pictures and scores of a training at a tracking service."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from textseg import Run

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger


class Wandb:
    """A run at Weights & Biases, set up by `WANDB_MODE`, `WANDB_PROJECT` and the like; a resumed run goes on there."""

    def __init__(self, run: Run, step: int) -> None:
        self.run = run
        self.identity = run.folder / "log" / "wandb.id"

    @cached_property
    def logger(self) -> WandbLogger:
        """Lightning's logger, opened when there is something to write."""
        from lightning.pytorch.loggers import WandbLogger

        folder = self.run.folder
        logger = WandbLogger(
            name=f"{folder.parent.name}/{folder.name}",
            project=os.environ.get("WANDB_PROJECT", "textseg"),
            group=self.run.recipe["name"],
            save_dir=folder / "log",
            id=self.identity.read_text(encoding="utf-8") if self.identity.exists() else None,
            resume="allow",
            config=dict(self.run.recipe),
        )
        self.identity.parent.mkdir(parents=True, exist_ok=True)
        self.identity.write_text(logger.experiment.id, encoding="utf-8")
        return logger

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Record the numbers of an epoch."""
        self.logger.log_metrics(dict(row), step)

    def show(self, picture: Path, step: int) -> None:
        """Record validation slices."""
        self.logger.log_image("validation", [str(picture)], step)

    def log_results(self, results: Mapping[str, float], step: int) -> None:
        """Record the test scores as `test_<metric>`."""
        self.log({f"test_{metric}": value for metric, value in results.items()}, step)

    def close(self, *, failed: bool) -> None:
        """Upload the rest, and end the run there."""
        if "logger" in vars(self):
            self.logger.finalize("failed" if failed else "success")
            self.logger.experiment.finish(exit_code=int(failed))
