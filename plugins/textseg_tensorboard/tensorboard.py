"""The curves and pictures of a training in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter

from textseg import Run
from textseg_tensorboard.summaries import LOG


class TensorBoard:
    """Event files in the folder `log` of a run; what an interrupted run wrote behind `step` is hidden."""

    def __init__(self, run: Run, step: int) -> None:
        self.folder, self.step = run.folder / LOG, step
        self.opened = False

    @cached_property
    def writer(self) -> SummaryWriter:
        """The event file of this part of the run, made when there is something to write."""
        self.opened = True
        return SummaryWriter(str(self.folder), purge_step=self.step)

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)

    def show(self, picture: Path, step: int) -> None:
        """Add validation slices under IMAGES."""
        from matplotlib.image import imread

        pixels = imread(picture, format="png")  # [H, W, 4] in 0..1
        self.writer.add_image("validation", pixels[..., :3], step, dataformats="HWC")

    def log_results(self, results: Mapping[str, float], step: int) -> None:
        """Do nothing: `textseg_run_finished` writes the test scores together with the settings."""

    def close(self, *, failed: bool) -> None:
        """Write what is still in memory."""
        if self.opened:
            self.writer.close()
