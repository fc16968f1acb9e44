"""Export of a run as a container for Grand Challenge, with a check that runs without Docker."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from torch import nn

from textseg.errors import DataError, RunError
from textseg.export.bundle import export_bundle, written_whole
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
    """Write the container of a run into the new folder `output`, or nothing; return its path.

    Args:
        folder: of the run.
        model: its model.
        output: the new folder.
        slug: of the images that the challenge gives and takes: "INPUT:OUTPUT", or one for both; INPUT has one name for
            each channel that the model reads, with commas between them.
        labels: the values in its masks, as `textseg.volumes.mask.label_values` takes them.

    Raises RunError where `output` exists or can't be written, and for a slug that is none; DataError for labels that
    the atlas does not have.
    """
    given, _, taken = slug.partition(":")
    inputs, channels = given.split(","), model.task.channel_names
    slugs = {"input": inputs, "output": taken or given}
    if len(inputs) not in (1, len(channels)):
        raise RunError(f"--slug: '{model.name}' reads {', '.join(channels)}, and '{given}' has {len(inputs)} names.")
    if wrong := [name for name in (*inputs, taken or given) if not SLUG.fullmatch(name)]:
        raise RunError(f"--slug: '{wrong[0]}' is no slug: small letters, digits, hyphens, such as sagittal-spine-mr.")
    try:
        values = label_values(model.atlas, labels)
    except DataError as error:
        raise DataError(f"--labels: {error}") from None
    with written_whole(output, "container") as container:
        export_bundle(folder, model, container / "bundle")
        plugins = check_bundle(container / "bundle")["plugins"].values()
        needed = {part["distribution"] for part in plugins} | made_of(model.segmenter)
        pinned = requirements(["textseg", *sorted(needed)])
        settings = {"slugs": slugs, "labels": labels, "values": values, "sequence": model.atlas.sequence, "facts": {}}
        write_atomically(container / "container.json", json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        write_atomically(container / "requirements.txt", "\n".join(pinned) + "\n")
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        words = {"name": model.name, "python": version, "output": taken or given}
        words["inputs"] = " and ".join(f"`/input/images/{name}/*.mha`" for name in inputs)
        words["scans"] = " ".join(f"{name}.mha" for name in inputs) if len(inputs) > 1 else "scan.mha"
        for name in FILES:
            write_atomically(container / name, _written(name, {**words, "labels": labels}))
    return str(output)


def _written(name: str, words: Mapping[str, str]) -> str:
    template = TEMPLATES / f"{name.replace('/', '_')}.template"
    return Template(template.read_text(encoding="utf-8")).substitute(words)


def made_of(network: nn.Module) -> set[str]:
    """Return the distributions that the modules of a network come from, including those of extras."""
    packages = {type(part).__module__.partition(".")[0] for part in network.modules()}
    known = importlib.metadata.packages_distributions()
    return {distribution for package in packages for distribution in known.get(package, ())}


def requirements(distributions: Sequence[str]) -> list[str]:
    """Pin distributions and all that they need on Linux to the versions that are installed here.

    Packages that only Linux needs, such as the libraries of a GPU, are left to pip.
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
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        public = installed.version.partition("+")[0]  # public package indexes have no versions such as "+cpu"
        pinned[canonicalize_name(name)] = f"{installed.metadata['Name']}=={public}"
        for line in installed.requires or ():
            needed = Requirement(line)
            environments = [{**LINUX, "extra": extra} for extra in ("", *extras)]
            if needed.marker is None or any(map(needed.marker.evaluate, environments)):
                asked.append((needed.name, frozenset(needed.extras)))
    return [pinned[name] for name in sorted(pinned)]
