"""The conformance kit: checks that a component keeps the promises of its contract, for any test runner.

May import `comparison`, `reports` and the packages below them. Offers one function for each kind,
`check_<kind>`, which takes the name of an installed component, or a builder. It raises ConformanceError with one line
for each broken promise: the expected value, the actual value, and the page to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textseg.contracts import Atlas, Features
from textseg.testing.conformance import (
    IMAGE_SIZE,
    PYRAMID,
    Check,
    ConformanceError,
    Subject,
    checks,
    examine,
    subjects_of,
)

__all__ = [
    "Check",
    "ConformanceError",
    "Subject",
    "check_atlas",
    "check_auxiliary_loss",
    "check_dataset",
    "check_fusion",
    "check_network",
    "check_plugin",
    "check_prompt_generator",
    "check_text_encoder",
    "check_vision_encoder",
    "checks",
    "subjects_of",
]

Settings = Mapping[str, Any] | None
Size = tuple[int, int]  # H, W


def check_vision_encoder(component: object, *, settings: Settings = None, image_size: Size = IMAGE_SIZE) -> None:
    """Check a vision encoder, built with `settings`, on images of about `image_size`. Raises ConformanceError."""
    examine(Subject.of("vision_encoder", component, settings, image_size=image_size))


def check_fusion(component: object, *, settings: Settings = None, features: Features = PYRAMID) -> None:
    """Check a fusion on a pyramid of these `features`. Raises ConformanceError."""
    examine(Subject.of("fusion", component, settings, features=features))


def check_auxiliary_loss(component: object, *, settings: Settings = None, features: Features = PYRAMID) -> None:
    """Check an auxiliary loss on a fused pyramid of these `features`. Raises ConformanceError."""
    examine(Subject.of("auxiliary_loss", component, settings, features=features))


def check_network(
    component: object, *, settings: Settings = None, image_size: Size = IMAGE_SIZE, atlas: Atlas | str | None = None
) -> None:
    """Check a network on images of about `image_size`, of the structures of `atlas`. Raises ConformanceError."""
    examine(Subject.of("network", component, settings, image_size=image_size, atlas=atlas))


def check_prompt_generator(component: object, *, settings: Settings = None, atlas: Atlas | str | None = None) -> None:
    """Check a prompt generator on every visibility of an atlas: a given atlas, one of its plug-in, or an example.

    Raises ConformanceError.
    """
    examine(Subject.of("prompt_generator", component, settings, atlas=atlas))


def check_text_encoder(component: object, *, settings: Settings = None) -> None:
    """Check a text encoder. Raises ConformanceError."""
    examine(Subject.of("text_encoder", component, settings))


def check_dataset(component: object, *, settings: Settings = None) -> None:
    """Check a reader on the data that its settings name; one case is read. Raises ConformanceError."""
    examine(Subject.of("dataset", component, settings))


def check_atlas(component: object, *, settings: Settings = None) -> None:
    """Check that an atlas is consistent. Raises ConformanceError."""
    examine(Subject.of("atlas", component, settings))


def check_plugin(name: str, *, settings: Mapping[tuple[str, str], Settings] | None = None) -> None:
    """Check every component of an installed plug-in, by its entry point ("cervical") or package ("textseg_cervical").

    Args:
        name: the name of the plug-in.
        settings: the settings of a component by its kind and name: `{("dataset", "cervical"): {"folder": "data"}}`.
            None instead of settings leaves the component out. A component without an entry is built with its defaults.

    Raises ConformanceError, and PluginError if no such plug-in is installed.
    """
    examine(*subjects_of([name], settings or {}))
