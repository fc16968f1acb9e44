"""Text-guided medical image segmentation, assembled from plug-ins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textseg.compatibility import API_VERSION
from textseg.hookspecs import ReportSection, Run, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from textseg.onnx_network import Engine
    from textseg.trained import TrainedModel

__version__ = "0.1.0"
__all__ = ["API_VERSION", "ReportSection", "Run", "__version__", "hookimpl", "load"]


def load(
    path: Path | str, *others: Path | str, device: str | None = None, engine: Engine | None = None
) -> TrainedModel:
    """The trained model of a run folder or a bundle; several paths are one ensemble.

    `mask = load("bundle")("scan.mha", visible="T10:L5")`; see `textseg.loading.load`. It is imported when it is called:
    `import textseg` must not import torch.
    """
    from textseg.loading import load as load_trained

    return load_trained(path, *others, device=device, engine=engine)
