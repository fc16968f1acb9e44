"""Splits: the patients of training, validation and test. A patient is never in two parts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from textseg.errors import DataError
from textseg.recipe.schema import SplitSettings
from textseg.system.files import content_hash
from textseg.system.user_files import read_json

PARTS = ("train", "validation", "test")
FOLD_PARTS = ("train", "val")  # of nnU-Net, which has no test part


@dataclass(frozen=True)
class Split:
    """Patients of each part, sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def hash(self) -> str:
        """The hash of all parts; equal splits have equal hashes, no matter how they were made."""
        return content_hash(asdict(self))


def make_split(
    settings: SplitSettings,
    patients: Iterable[str],
    official: Mapping[str, Sequence[str]] | None,
    strata: Mapping[str, str] | None = None,
    *,
    cases: Mapping[str, str] = {},
) -> Split:
    """Divide `patients` as the recipe says; the same patients and `split.seed` give the same split.

    `cases` holds the patient of each case, by its id, since the folds of nnU-Net list cases.
    With `strata` (the kind of each patient) every part that is drawn has its share of every kind. Patients that an
    official split doesn't name are left out. Raises DataError where a part would be empty, a patient is on two sides,
    or a file names one that is unknown.
    """
    known = sorted(set(patients))
    if settings.file is not None and settings.fold is None:
        where, parts = f"split.file: '{settings.file}'", read_parts(settings.file)
        split = _split(parts["train"], parts["validation"], parts["test"], where)
        if unknown := sorted({*split.train, *split.validation, *split.test} - set(known)):
            raise DataError(f"{where} names patients that the data set lacks, or has no mask of: {', '.join(unknown)}.")
        return split
    # A hash orders the patients: the order is random, but does not depend on which other patients there are.
    drawn = sorted(known, key=lambda patient: hashlib.sha256(f"{settings.seed}:{patient}".encode()).digest())
    if strata is not None:
        drawn = _spread(drawn, strata)
    if settings.fractions is not None:
        first = round(settings.fractions[0] * len(drawn))
        second = first + round(settings.fractions[1] * len(drawn))
        return _split(drawn[:first], drawn[first:second], drawn[second:], "split.fractions")
    if settings.folds is not None:
        # Dealt out like cards, so that folds differ in size by one at most, also within each stratum.
        dealt = drawn if strata is None else sorted(drawn, key=strata.__getitem__)
        test = dealt[settings.fold :: settings.folds]
        where = "split.folds"
    elif settings.file is not None and settings.fold is not None:
        where = f"split.file: '{settings.file}', fold {settings.fold}"
        fold = _patients_of_fold(settings.file, settings.fold, known, cases)
        _require_apart(fold, where)
        test = [patient for patient in drawn if patient in fold["val"]]
        drawn = [patient for patient in drawn if patient in {*fold["train"], *test}]
    elif official is None:
        raise DataError("split.official: this data set has no official split; use fractions, folds or file.")
    else:
        where = "split.official"
        if missing := [part for part in ("train", "test") if part not in official]:
            raise DataError(
                f"{where}: the official split of this data set has no list of patients for {' and '.join(missing)}; "
                "use fractions, folds or file."
            )
        _require_apart({"train": official["train"], "test": official["test"]}, where)
        test = [patient for patient in drawn if patient in official["test"]]
        drawn = [patient for patient in drawn if patient in {*official["train"], *test}]
    rest = [patient for patient in drawn if patient not in test]
    held = max(1, round(settings.validation * len(rest)))
    return _split(rest[held:], rest[:held], test, where)


def _spread(drawn: Sequence[str], strata: Mapping[str, str]) -> list[str]:
    """Reorder patients so that every stretch of the list has about its share of every stratum."""
    sizes, seen = Counter(strata[patient] for patient in drawn), Counter[str]()
    positions = {}
    for patient in drawn:
        stratum = strata[patient]
        # A start of its own for each stratum: strata of one patient each would otherwise meet in the middle
        start = int.from_bytes(hashlib.sha256(f"{drawn[0]}:{stratum}".encode()).digest()[:4]) / 2**32
        positions[patient] = (seen[stratum] + start) / sizes[stratum]
        seen[stratum] += 1
    return sorted(drawn, key=positions.__getitem__)


def read_parts(path: Path) -> dict[str, list[str]]:
    """Read the patients of each part of a split file, in its order. Raises DataError."""
    parts = _lists(content := read_json(path), PARTS)
    if parts is None:
        advice = " It has the folds of nnU-Net: a recipe names one with `split: {file: ..., fold: 0}`."
        raise DataError(
            f"'{path}' must be JSON with one list of patients for each of {', '.join(PARTS)}."
            f"{advice if _are_folds(content) else ''}"
        )
    return parts


def read_folds(path: Path) -> list[dict[str, list[str]]]:
    """Read the cases of `train` and `val` in each fold of nnU-Net's splits_final.json. Raises DataError."""
    content = read_json(path)
    if not _are_folds(content):
        raise DataError(
            f"'{path}' must be a splits_final.json of nnU-Net: a list with `train` and `val` for each fold. If it "
            "has one split of patients, remove 'fold'."
        )
    return [{part: list(map(str, fold[part])) for part in FOLD_PARTS} for fold in content]


def _patients_of_fold(path: Path, number: int, known: Sequence[str], cases: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the patients of `train` and `val` in a fold, which names cases or patients."""
    folds = read_folds(path)
    if number >= len(folds):
        raise DataError(f"split.fold: '{path}' has {len(folds)} folds, counted from 0, and no fold {number}.")
    names = {name for part in FOLD_PARTS for name in folds[number][part]}
    patients = {**{patient: patient for patient in known}, **cases}
    if unknown := sorted(names - patients.keys()):
        raise DataError(
            f"'{path}', fold {number}, names cases that the data set lacks, or has no mask of: {', '.join(unknown)}."
        )
    whole = {patients[name] for name in names}
    if rest := sorted(case for case, patient in cases.items() if patient in whole and not names & {case, patient}):
        raise DataError(
            f"'{path}', fold {number}, names some cases of patient {patients[rest[0]]}, and not {', '.join(rest)}. "
            "Name all of them, since a patient is on one side with all cases, or leave them out with `leave_out`."
        )
    return {part: [patients[name] for name in folds[number][part]] for part in FOLD_PARTS}


def _are_folds(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and all(_lists(fold, FOLD_PARTS) is not None for fold in content)


def _lists(content: Any, keys: Sequence[str]) -> dict[str, list[str]] | None:
    """Return the names under each key; None if the content is of another kind."""
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        return None
    return {key: [str(name) for name in content[key]] for key in keys}


def _split(train: Sequence[str], validation: Sequence[str], test: Sequence[str], where: str) -> Split:
    parts = dict(zip(PARTS, (train, validation, test), strict=True))
    _require_apart(parts, where)
    if empty := [part for part, patients in parts.items() if not patients]:
        count = sum(map(len, parts.values()))
        raise DataError(
            f"{where}: no patient is left for {' and '.join(empty)} ({count} in all); each part needs one. Use another "
            "division, or more patients."
        )
    return Split(*(tuple(sorted(set(parts[part]))) for part in PARTS))


def _require_apart(parts: Mapping[str, Sequence[str]], where: str) -> None:
    for (first, patients), (second, others) in combinations(parts.items(), 2):
        if twice := sorted(set(patients) & set(others)):
            raise DataError(f"{where}: both {first} and {second} have {', '.join(twice)}; one patient, one side.")
