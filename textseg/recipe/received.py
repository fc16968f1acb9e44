"""The code that a recipe runs from outside textseg and its plug-ins, and the consent that it needs.

A recipe that a person wrote consents with `remote_code: true`. A recipe that came with a run or a bundle can't consent
for the person who uses it, so that person says it at the command line.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from textseg.errors import RecipeError, RunError, TextsegError
from textseg.recipe.schema import ComponentSpec
from textseg.registry.discovery import Registry
from textseg.registry.kinds import KINDS
from textseg.registry.local_code import load_code
from textseg.system.hub import HubModel
from textseg.system.own_files import read_json

LOCAL_CODE = "code"  # the folder of a run with the files of `--code`
CONSENT = "remote_code"  # the setting of a component that runs code of a model
BESIDE = ("run.json", "bundle.json")  # files beside a recipe that came with a run or a bundle
SHOWN = 5  # files that a message names


class _Record(BaseModel):
    """The part of run.json that this module reads."""

    code: dict[str, dict[str, str]] = {}
    local_code: dict[str, str] = {}
    components: dict[str, dict[str, Any]] = {}


def load_local_code(path: Path, registry: Registry, builds: Container[str], *, trust_code: bool) -> set[str]:
    """Execute the files of `--code` that a run folder holds, if the components to build come from them.

    `path` is the recipe of the run. A file that is loaded already, with the same content, needs no other consent.
    Returns the "kind name" of each component that is left out, since nobody builds it. Raises RecipeError without
    consent, and for a file that is not the one that the run was trained with.
    """
    if (path.parent / "bundle.json").exists():
        return set()  # a bundle holds no code
    try:
        record = read_json(path.parent / "run.json", _Record, "Restore it.")
    except FileNotFoundError:
        return set()
    except RunError as error:  # who needs the record says what is wrong with it
        if (path.parent / LOCAL_CODE).exists():
            raise RecipeError(f"{path}: {error}") from error
        return set()
    files: dict[str, str] = record.get("local_code", {})
    local = {key for key, facts in record.get("components", {}).items() if facts.get("distribution") in files}
    if not all(kind in builds for kind in KINDS) and not any(key.partition(" ")[0] in builds for key in local):
        return local
    for name, digest in sorted(files.items()):
        loaded, file = registry.local_code.get(name), path.parent / LOCAL_CODE / name
        if loaded is not None and loaded.sha256 == digest:
            continue
        if loaded is not None:
            raise RecipeError(
                f"{path}: this run was made with another '{name}' than the one that is loaded here: its sha256 is "
                f"{digest}, not {loaded.sha256}. Open the run in a process of its own."
            )
        if Path(name).name != name or not file.is_file():
            raise RecipeError(f"{path}: this run was made with --code, and its file '{file}' is missing. Restore it.")
        if not trust_code:
            raise RecipeError(
                f"{path}: this run was made with --code, and would execute '{file}' (sha256 {digest}). Read the code. "
                "If you trust it, add --trust-code (in Python: trust_code=True)."
            )
        load_code(file, registry, recorded=digest)
    return set()


def is_received(path: Path) -> bool:
    """Return True for the recipe of a run folder or a bundle; only there its name is recipe.yaml."""
    return path.stem == "recipe" or any((path.parent / name).exists() for name in BESIDE)


def origin_of(path: Path, kind: str, name: str) -> tuple[str, str] | None:
    """Return distribution and version of a component when the run or bundle beside a recipe was made, if known."""
    for file in BESIDE if path.exists() else ():
        with suppress(FileNotFoundError, RunError):
            facts = read_json(path.parent / file, _Record, "Restore it.").get("components", {})
            if part := facts.get(f"{kind} {name.rpartition('/')[2]}"):
                return str(part.get("distribution")), str(part.get("version"))
    return None


def code_of(components: Iterable[ComponentSpec]) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of each file of code that these components run, by model and name of the file."""
    running = (spec.settings for spec in components if spec.settings.get(CONSENT) is True)
    return {str(settings["model"]): _model(settings).code for settings in running}


def refusal(settings: Mapping[str, Any], path: Path, *, trust_code: bool) -> str | None:
    """Return the reason not to run the code of a component of a received recipe; None if there is no code or no reason.

    The code must have the hashes in the run.json beside the recipe, also for a person who trusts it.
    """
    if settings.get(CONSENT) is not True:
        return None
    name, code, absent = str(settings.get("model")), dict[str, str](), ""
    try:
        code = _model(settings).code
    except TextsegError as error:
        absent = str(error)
    if not trust_code:
        files = [f"'{file}' (sha256 {digest})" for file, digest in code.items()]
        more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
        which = f": {', '.join(files[:SHOWN])}{more}" if files else f", which is not on this machine. {absent}"
        return (
            f"this recipe came with a run or a bundle, and it would run code of '{name}'{which}. Read the code. If you "
            "trust it, add --trust-code (in Python: trust_code=True)."
        )
    if absent:
        return absent
    try:
        recorded = read_json(path.parent / "run.json", _Record, "Restore it.").get("code", {}).get(name, code)
    except FileNotFoundError:  # a bundle
        recorded = code
    except RunError as error:
        return str(error)
    if changed := sorted(file for file in {*code, *recorded} if code.get(file) != recorded.get(file)):
        file = changed[0]
        now, before = code.get(file, "of no file"), recorded.get(file, "no such file")
        return (
            f"'{file}' of '{name}' is not the code that the run was trained with: its sha256 is {now}, and run.json "
            f"records {before}. Restore the file; --trust-code does not allow other code."
        )
    return None


def _model(settings: Mapping[str, Any]) -> HubModel:
    name, revision = str(settings["model"]), settings.get("revision")
    return HubModel(name, revision, remote_code=True, what="Model", error=RecipeError)
