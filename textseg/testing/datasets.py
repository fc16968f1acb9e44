"""Checks of readers: unique case ids, patients, and mask values that belong to the atlas."""

from __future__ import annotations

import itertools
import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np

from textseg.contracts import IGNORED, ArrayImage, Atlas, Case, Dataset
from textseg.data.preparation import missing_channels
from textseg.testing.conformance import Subject, check
from textseg.testing.promises import promise
from textseg.testing.surroundings import undisturbed
from textseg.volumes.files import read_labels

KIND = "dataset"


@check("construction", KIND, fundamental=True)
def _construction(subject: Subject) -> None:
    """Check that the reader has an atlas and finds cases."""
    dataset: Dataset = subject.build()
    atlas = getattr(dataset, "atlas", None)
    promise(isinstance(atlas, Atlas), "an attribute `atlas`, a textseg.contracts.Atlas", atlas)
    for name in ("cases", "label_map", "official_split"):
        promise(callable(getattr(dataset, name, None)), f"a method `{name}`", "none")
    cases = dataset.cases()
    promise(cases, "at least one case in the data that the settings name", "none")
    promise(all(isinstance(case, Case) for case in cases), "cases that are textseg.contracts.Case", cases[0])


@check("surroundings", KIND, tolerant=True)
def _surroundings(subject: Subject) -> None:
    """Construction and listing touch no network and no file outside the settings' folders, and read no voxel."""
    images = {str(path) for case in subject.build().cases() for path in (*case.channels.values(), case.mask) if path}
    for _ in range(2):
        with undisturbed("construction and listing", allowed=subject.settings.values(), besides=images):
            subject.build().cases()


@check("cases", KIND)
def _cases(subject: Subject) -> None:
    """Check that cases have unique ids, a patient and existing files, and are sorted by id, equal at each call."""
    dataset: Dataset = subject.build()
    cases = dataset.cases()
    ids = [case.id for case in cases]
    twice = [name for name, count in Counter(ids).items() if count > 1]
    promise(not twice, "an id of its own for each case", f"'{twice[0] if twice else ''}' more than once")
    swapped = (f"'{b}' after '{a}'" for a, b in itertools.pairwise(ids) if _natural(a) > _natural(b))
    promise(ids in (sorted(ids), sorted(ids, key=_natural)), "cases sorted by id", next(swapped, ids))
    promise([case.id for case in subject.build().cases()] == ids, "the same cases each time", "others")
    for case in cases:
        promise(isinstance(case.patient, str) and case.patient, f"a patient of case '{case.id}'", repr(case.patient))
        promise(case.channels, f"an image of case '{case.id}'", dict(case.channels))
        parts = {f"the image ('{name}') of case '{case.id}'": pixels for name, pixels in case.channels.items()}
        if case.mask is not None:
            parts[f"the mask of case '{case.id}', or None"] = case.mask
        for part, pixels in parts.items():
            promise(isinstance(pixels, Path | ArrayImage), f"{part} as a Path or an ArrayImage", repr(pixels))
            promise(not isinstance(pixels, Path) or pixels.is_file(), part, f"no file '{pixels}'")
    missing = missing_channels({case.id: tuple(case.channels) for case in cases})
    promise(not missing, "the same channels in each case", next(iter(missing.values()), ""))
    for case in cases:
        texts = [*case.facts, *case.facts.values()]
        promise(all(isinstance(text, str) for text in texts), f"facts of '{case.id}' that are texts", dict(case.facts))
        promise(pickle.loads(pickle.dumps(case)) == case, "a case that is equal after pickle", case)


def _natural(text: str) -> list[tuple[int, str]]:
    """Digits as numbers: case 2 before case 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", text) if part]


@check("labels", KIND)
def _labels(subject: Subject) -> None:
    """Check that values map to classes of the atlas, 0 to the background, and the first mask has no other values."""
    dataset: Dataset = subject.build()
    classes = dataset.atlas.class_count
    cases = dataset.cases()
    for case in cases:
        labels = dataset.label_map(case)
        beyond = sorted({*labels.values()} - {*range(classes), IGNORED})
        promise(not beyond, f"classes 0 to {classes - 1} of atlas '{dataset.atlas.name}' for '{case.id}'", f"{beyond}")
        promise(labels.get(0, 0) == 0, f"the background for 0 in case '{case.id}'", labels.get(0))
    for case, mask in [(case, case.mask) for case in cases if case.mask][:1]:  # reading more would be slow
        values = set(np.unique(read_labels(mask, dataset.atlas.plane).array).tolist())
        unknown = sorted(values - set(dataset.label_map(case)))
        promise(not unknown, f"a class for every value in the mask of '{case.id}'", f"none for {unknown}")


@check("split", KIND)
def _split(subject: Subject) -> None:
    """An official split names patients that exist, each on one side."""
    dataset: Dataset = subject.build()
    patients = {case.patient for case in dataset.cases()}
    split = dataset.official_split()
    if split is None:
        return
    promise(set(split) == {"train", "test"}, "the parts train and test, or None", sorted(split))
    for part, names in split.items():
        unknown = sorted(set(names) - patients)
        promise(not unknown, f"patients of cases in '{part}'", f"'{unknown[0] if unknown else ''}', who has none")
        once = len(set(names)) == len(names)
        promise(once, f"each patient once in '{part}'", f"{len(names)} names of {len(set(names))}")
    both = sorted(set(split["train"]) & set(split["test"]))
    promise(not both, "each patient on one side", f"'{both[0] if both else ''}' in both")


CHECKS = (_surroundings, _construction, _cases, _labels, _split)
