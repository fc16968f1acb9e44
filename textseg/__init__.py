"""Text-guided medical image segmentation with plug-ins.

Offers plug-ins the decorator and the data classes of hooks, and users of Python the functions `load_recipe`, `build`,
`run`, `load` and `component`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from textseg.hookspecs import Epoch, Fit, PublishedMethod, PublishedTable, ReportSection, Run, hookimpl
from textseg.version import API_VERSION, __version__

if TYPE_CHECKING:
    from textseg.inference.loading import load
    from textseg.recipe.loading import load_recipe
    from textseg.registry.local_code import component
    from textseg.runs.experiment import build
    from textseg.training.run import run

# Imported at their first use, because `import textseg` must not import torch.
_MODULES = {
    "build": "textseg.runs.experiment",
    "component": "textseg.registry.local_code",
    "load": "textseg.inference.loading",
    "load_recipe": "textseg.recipe.loading",
    "run": "textseg.training.run",
}

__all__ = [
    "API_VERSION",
    "Epoch",
    "Fit",
    "PublishedMethod",
    "PublishedTable",
    "ReportSection",
    "Run",
    "__version__",
    "build",
    "component",
    "hookimpl",
    "load",
    "load_recipe",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'textseg' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
