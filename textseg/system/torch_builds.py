"""The builds of torch and torchvision, which may not fit each other; Lightning and transformers import both."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from importlib.metadata import version
from typing import Any

from textseg.errors import PluginError
from textseg.system.commands import pip_install

OPERATORS = ("nms", "qnms")  # those that torchvision looks for when it is imported
_defined: list[Any] = []  # operators exist as long as this refers to them


@functools.cache
def usable_torchvision() -> str | None:
    """Make an installed torchvision importable; if it was built for another torch, return and print a message.

    Its operators are then declared without code, so that everything that never calls them can be used. Raises
    PluginError if it can't be imported even so.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        if "torchvision::" in str(error):
            _declare_operators()
            try:
                importlib.import_module("torchvision")
            except Exception as second:
                raise PluginError(f"{_misfit()} It can't be imported: {second}") from second
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print(f"Warning: {_misfit()}", file=sys.stderr)
            return _misfit()
        raise PluginError(f"{_misfit()} It can't be imported: {error}") from error
    return None


def _declare_operators() -> None:
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _defined.append(library)


def _misfit() -> str:
    """Return the message about the pair, with the command that installs the torchvision of this torch."""
    torch, vision = version("torch"), version("torchvision")
    release, _, build = torch.partition("+")
    _, minor, patch = release.split(".")[:3]
    fitting = f"0.{int(minor) + 15}.{patch}"  # torch 2.13.0 and torchvision 0.28.0 belong together
    index = ["--index-url", f"https://download.pytorch.org/whl/{build}"] if build else []
    return (
        f"torchvision {vision} was not built for torch {torch}, so its operators are missing. Install the build that "
        f"fits: {pip_install('--force-reinstall', '--no-deps', f'torchvision=={fitting}', *index)}"
    )
