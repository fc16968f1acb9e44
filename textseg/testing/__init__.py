"""The conformance kit: checks that a component keeps the promises of its contract, for any test runner.

May import `comparison`, `reports` and the packages below them. Offers one function for each kind,
`check_<kind>`, which takes the name of an installed component, or a builder. It raises ConformanceError with one line
for each broken promise: the expected value, the actual value, and the page to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from textseg.contracts import Atlas, Features
from textseg.registry.kinds import KINDS
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

__all__ = ["Check", "ConformanceError", "Subject", "check_plugin", "checks", "subjects_of"]
__all__ += [f"check_{kind}" for kind in KINDS]

Settings = Mapping[str, Any] | None


class CheckOfKind(Protocol):
    """A function that checks a component of one kind, built with `settings`. Raises ConformanceError.

    Modules are checked on images of about `image_size`, or on a pyramid of these `features`; networks and prompt
    generators for the structures of `atlas`: a given atlas, the name of an installed one, or an example.
    """

    def __call__(
        self,
        component: object,
        *,
        settings: Settings = None,
        image_size: tuple[int, int] = IMAGE_SIZE,  # H, W
        features: Features = PYRAMID,
        atlas: Atlas | str | None = None,
    ) -> None: ...


def __getattr__(name: str) -> CheckOfKind:
    """Return `check_<kind>`."""
    kind = name.removeprefix("check_")
    if kind == name or kind not in KINDS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")

    def check(component: object, *, settings: Settings = None, **more: Any) -> None:
        examine(Subject.of(kind, component, settings, **more))

    check.__name__ = check.__qualname__ = name
    check.__doc__ = CheckOfKind.__doc__
    return check


def check_plugin(name: str, *, settings: Mapping[tuple[str, str], Settings] | None = None) -> None:
    """Check every component of an installed plug-in, by its entry point ("cervical") or package ("textseg_cervical").

    Args:
        name: the name of the plug-in.
        settings: the settings of a component by its kind and name: `{("dataset", "cervical"): {"folder": "data"}}`.
            None instead of settings leaves the component out. A component without an entry is built with its defaults.

    Raises ConformanceError, and PluginError if no such plug-in is installed.
    """
    examine(*subjects_of([name], settings or {}))
