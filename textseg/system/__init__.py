"""The machine: files, processes, devices, downloads, and messages in the terminal.

May import only `errors` and `version`. Offers plug-ins downloads, pretrained weights of the Hugging Face hub, and
readers of the tables, JSON and YAML that people write.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textseg.system.commands import shell
    from textseg.system.fetching import Progress, RemoteFile, fetch_file, unpack_zip
    from textseg.system.hub import CODE, HubModel, carried, quiet_transformers
    from textseg.system.user_files import Row, optional_file, read_json, read_table, read_text, read_yaml, unknown_row

# Imported at their first use, because the help of the command line needs none of them.
_MODULES = {
    "textseg.system.commands": ("shell",),
    "textseg.system.fetching": ("Progress", "RemoteFile", "fetch_file", "unpack_zip"),
    "textseg.system.hub": ("CODE", "HubModel", "carried", "quiet_transformers"),
    "textseg.system.user_files": (
        "Row",
        "optional_file",
        "read_json",
        "read_table",
        "read_text",
        "read_yaml",
        "unknown_row",
    ),
}

__all__ = [
    "CODE",
    "HubModel",
    "Progress",
    "RemoteFile",
    "Row",
    "carried",
    "fetch_file",
    "optional_file",
    "quiet_transformers",
    "read_json",
    "read_table",
    "read_text",
    "read_yaml",
    "shell",
    "unknown_row",
    "unpack_zip",
]


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(module), name)
