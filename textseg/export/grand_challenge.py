"""A bundle as the folder of a container for Grand Challenge, with what checks it where there is no Docker."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from torch import nn

from textseg.errors import DataError, RunError
from textseg.export.bundle import export_bundle
from textseg.inference.bundles import check_bundle
from textseg.inference.trained_model import TrainedModel
from textseg.runs.folder import RunFolder
from textseg.system.files import write_atomically
from textseg.volumes.mask import label_values

TEMPLATES = Path(__file__).with_name("grand_challenge_templates")
FILES = ("Dockerfile", "README.md", "check.py", "inference.py", "wheels/README.md")
LABELS = "spider"  # vertebrae from 1 and discs from 201, both from the bottom, the canal 100
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}


def export_container(folder: RunFolder, model: TrainedModel, output: Path, *, slug: str, labels: str = LABELS) -> str:
    """Write the container of a run into the new folder `output`, whole or not at all; says what was written.

    Args:
        folder: of the run.
        model: its model.
        output: the new folder.
        slug: of the images that the challenge gives and takes: "INPUT:OUTPUT", or one for both.
        labels: the values in its masks, as `textseg.volumes.mask.label_values` takes them.

    Raises RunError where `output` exists or can't be written, and for a slug that is none; DataError for labels that
    the atlas does not have.
    """
    given, _, taken = slug.partition(":")
    slugs = {"input": given, "output": taken or given}
    if wrong := [name for name in slugs.values() if not SLUG.fullmatch(name)]:
        raise RunError(f"--slug: '{wrong[0]}' is no slug: small letters, digits, hyphens, such as sagittal-spine-mr.")
    try:
        values = label_values(model.atlas, labels)
    except DataError as error:
        raise DataError(f"--labels: {error}") from None
    if output.exists():
        raise RunError(f"'{output}' exists. Name another folder for the container.")
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    try:
        export_bundle(folder, model, temporary / "bundle")
        plugins = check_bundle(temporary / "bundle")["plugins"].values()
        needed = {part["distribution"] for part in plugins} | made_of(model.segmenter)
        pinned = requirements(["textseg", *sorted(needed)])
        said = {"slugs": slugs, "labels": labels, "values": values, "sequence": model.atlas.sequence}
        write_atomically(temporary / "container.json", json.dumps(said, indent=1, ensure_ascii=False) + "\n")
        write_atomically(temporary / "requirements.txt", "\n".join(pinned) + "\n")
        words = {"name": model.name, "python": f"{sys.version_info.major}.{sys.version_info.minor}", **slugs}
        for name in FILES:
            write_atomically(temporary / name, _written(name, {**words, "labels": labels}))
        temporary.rename(output)
    except OSError as error:
        raise RunError(f"The container '{output}' can't be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(output)


def _written(name: str, words: Mapping[str, str]) -> str:
    template = TEMPLATES / f"{name.replace('/', '_')}.template"
    return Template(template.read_text(encoding="utf-8")).substitute(words)


def made_of(network: nn.Module) -> set[str]:
    """The distributions that the parts of a network come from, among them such as only an extra brings."""
    packages = {type(part).__module__.partition(".")[0] for part in network.modules()}
    known = importlib.metadata.packages_distributions()
    return {distribution for package in packages for distribution in known.get(package, ())}


def requirements(distributions: Sequence[str]) -> list[str]:
    """These distributions and all that they need on Linux, each with the version that is installed here.

    What is needed there alone, such as the libraries of a GPU, is left to pip.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pinned: dict[str, str] = {}
    asked: list[tuple[str, frozenset[str]]] = [(name, frozenset()) for name in distributions]
    seen = set()
    while asked:
        name, extras = asked.pop()
        if (canonicalize_name(name), extras) in seen:
            continue
        seen.add((canonicalize_name(name), extras))
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        public = found.version.partition("+")[0]  # "+cpu" is no version that an index of everybody has
        pinned[canonicalize_name(name)] = f"{found.metadata['Name']}=={public}"
        for line in found.requires or ():
            needed = Requirement(line)
            places = [{**LINUX, "extra": extra} for extra in ("", *extras)]
            if needed.marker is None or any(needed.marker.evaluate(place) for place in places):
                asked.append((needed.name, frozenset(needed.extras)))
    return [pinned[name] for name in sorted(pinned)]
