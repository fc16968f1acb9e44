"""Text-guided medical image segmentation with plug-ins.

Offers plug-ins the decorator and the data classes of hooks, and users the functions `load` and `run`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textseg.hookspecs import PublishedMethod, PublishedTable, ReportSection, Run, hookimpl
from textseg.version import API_VERSION, __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from textseg.inference.onnx_networks import Engine
    from textseg.inference.predictor import Predictor

__all__ = [
    "API_VERSION",
    "PublishedMethod",
    "PublishedTable",
    "ReportSection",
    "Run",
    "__version__",
    "hookimpl",
    "load",
    "run",
]


def load(
    path: Path | str,
    *others: Path | str,
    device: str | None = None,
    engine: Engine | None = None,
    trust_code: bool = False,
) -> Predictor:
    """Load the trained model of a run folder or a bundle; several paths give an ensemble.

    `mask = load("bundle")("scan.mha", visible="T10:L5")`; see `textseg.inference.loading.load`. That module
    is imported at the first call, because `import textseg` must not import torch.
    """
    from textseg.inference.loading import load as load_trained

    return load_trained(path, *others, device=device, engine=engine, trust_code=trust_code)


def run(
    recipe: Path,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    output: Path | None = None,
    fresh: bool = False,
    dry_run: bool = False,
    trust_code: bool = False,
    changed_code: bool = False,
) -> Path:
    """Run a recipe like `textseg run`: prepare, train or resume, evaluate. Returns the run folder.

    See `textseg.training.run.run`. Raises a TextsegError for a mistake of the user.
    """
    from textseg.training.run import run as run_recipe

    folders = {} if output is None else {"output": output}
    return run_recipe(
        recipe,
        overrides=overrides,
        seed=seed,
        fresh=fresh,
        dry_run=dry_run,
        trust_code=trust_code,
        changed_code=changed_code,
        **folders,
    )
