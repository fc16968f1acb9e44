"""Commands that messages print with values in them: each is built here, quoted for the shell and for YAML.

Messages write out commands without values, such as `textseg run RECIPE`. A test executes or parses all of them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path


def shell(*words: object) -> str:
    """Return words as one command line for a POSIX shell."""
    return shlex.join(map(str, words))


def pip_install(*packages: str) -> str:
    """Return the command that installs packages, such as `textseg[onnx]` or `my-plugin==1.0`."""
    return shell("pip", "install", *packages)


def evaluate(folder: Path, *options: object) -> str:
    """Return the command that writes the scores in a folder again: of a run, of its evaluations, of another tool."""
    run, prompts = folder, list[object]()
    if folder.parent.name == "evaluations":
        run = folder.parent.parent
        source = {"simulated": "interactive", "none": None}.get(folder.name, folder.name)
        prompts = ["--prompts", source] if source else []
        if folder.name == "interactive":
            prompts += ["--visible", folder / "visible.csv"]
    try:
        masks = json.loads((run / "run.json").read_bytes()).get("predictions")
    except (OSError, ValueError, AttributeError, RecursionError):
        masks = None
    if masks:  # of another tool
        return shell("textseg", "score", masks, "--dataset", "DATASET", "--output", run)
    return shell("textseg", "evaluate", run, *prompts, *options)


def leave_out(case_ids: Iterable[str]) -> str:
    """Return the option that trains without these cases, whatever characters their names have."""
    # JSON keeps "010" and "a, b" as texts in YAML; "${" would begin an interpolation.
    names = json.dumps([case_id.replace("${", "\\${") for case_id in case_ids], ensure_ascii=False)
    return shell("--set", "leave_out=" + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in names))
