from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from textseg.contracts import Atlas, Case, Structure
from textseg.testing import ConformanceError, check_atlas, check_dataset


class Pairs:
    """Images and masks of three cases, two of one patient: keeps every promise."""

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder)
        self.atlas = Atlas("two", (Structure("L2", "vertebra", 1), Structure("L1", "vertebra", 2)))

    def cases(self) -> Sequence[Case]:
        return [self.case(name) for name in ("case2_a", "case2_b", "case10_a")]

    def case(self, name: str) -> Case:
        image, mask = (self.folder / f"{name}_{part}.nii.gz" for part in ("image", "mask"))
        return Case(name, name[:-2], image, mask, {"sequence": "T2"})

    def label_map(self, case: Case) -> Mapping[int, int]:
        return {0: 0, 4: 1, 7: 2}

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        return {"train": ["case2"], "test": ["case10"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    array = np.zeros((2, 4, 4), np.uint8)
    array[:, 1], array[:, 2] = 4, 7
    for name in ("case2_a", "case2_b", "case10_a"):
        for part in ("image", "mask"):
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), folder / f"{name}_{part}.nii.gz")
    return folder


class Empty(Pairs):
    """Finds nothing."""

    def cases(self) -> Sequence[Case]:
        return []


class Homeless(Pairs):
    """Has no atlas."""

    def __init__(self, *, folder: str) -> None:
        super().__init__(folder=folder)
        del self.atlas


class Looking(Pairs):
    """Looks into each image to list it."""

    def cases(self) -> Sequence[Case]:
        for case in super().cases():
            case.image.read_bytes()
        return super().cases()


class Straying(Pairs):
    """Reads what lies elsewhere."""

    def cases(self) -> Sequence[Case]:
        (Path(__file__).parents[2] / "LICENSE").read_bytes()
        return super().cases()


class Twice(Pairs):
    """A case two times."""

    def cases(self) -> Sequence[Case]:
        return [*super().cases(), self.case("case10_a")]


class Reversed(Pairs):
    """From the last to the first."""

    def cases(self) -> Sequence[Case]:
        return super().cases()[::-1]


class Anonymous(Pairs):
    """Nobody's case."""

    def case(self, name: str) -> Case:
        return replace(super().case(name), patient="")


class Missing(Pairs):
    """A mask that is not there."""

    def case(self, name: str) -> Case:
        return replace(super().case(name), mask=self.folder / "no.nii.gz")


class Numeric(Pairs):
    """A number as a fact."""

    def case(self, name: str) -> Case:
        return replace(super().case(name), facts={"age": 50})  # type: ignore[dict-item]


class Beyond(Pairs):
    """A class that the atlas does not have."""

    def label_map(self, case: Case) -> Mapping[int, int]:
        return {0: 0, 4: 1, 7: 3}


class Shifted(Pairs):
    """Background as a structure."""

    def label_map(self, case: Case) -> Mapping[int, int]:
        return {0: 1, 4: 1, 7: 2}


class Forgetful(Pairs):
    """Does not know a value."""

    def label_map(self, case: Case) -> Mapping[int, int]:
        return {0: 0, 4: 1}


class Parted(Pairs):
    """Other names of parts."""

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        return {"training": [], "testing": []}


class Strange(Pairs):
    """A patient who has no case."""

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        return {"train": ["case2"], "test": ["case3"]}


class Leaking(Pairs):
    """A patient on both sides."""

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        return {"train": ["case2", "case10"], "test": ["case10"]}


class Repeated(Pairs):
    """Series for patients."""

    def official_split(self) -> Mapping[str, Sequence[str]] | None:
        return {"train": ["case2", "case2"], "test": ["case10"]}


def test_a_reader_that_keeps_every_promise_passes(folder: Path) -> None:
    check_dataset(Pairs, settings={"folder": str(folder)})


@pytest.mark.parametrize(
    ("wrong", "broken", "message"),
    [
        (Empty, "construction", "at least one case in the data that the settings name, came none"),
        (Homeless, "construction", "an attribute `atlas`, a textseg.contracts.Atlas, came None"),
        (Looking, "surroundings", "came reading '"),
        (Straying, "surroundings", "LICENSE'"),
        (Twice, "cases", "an id of its own for each case, came 'case10_a' more than once"),
        (Reversed, "cases", "cases sorted by id, came 'case2_b' after 'case10_a'"),
        (Anonymous, "cases", "a patient of case 'case2_a', came ''"),
        (Missing, "cases", "the mask of case 'case2_a', or None, came no file"),
        (Numeric, "cases", "facts of 'case2_a' that are texts, came {'age': 50}"),
        (Beyond, "labels", "classes 0 to 2 of atlas 'two' for 'case2_a', came [3]"),
        (Shifted, "labels", "the background for 0 in case 'case2_a', came 1"),
        (Forgetful, "labels", "a class for every value in the mask of 'case2_a', came none for [7]"),
        (Parted, "split", "the parts train and test, or None, came ['testing', 'training']"),
        (Strange, "split", "patients of cases in 'test', came 'case3', who has none"),
        (Leaking, "split", "each patient on one side, came 'case10' in both"),
        (Repeated, "split", "each patient once in 'train', came 2 names of 1"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_wrong_reader_is_caught(folder: Path, wrong: Any, broken: str, message: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_dataset(wrong, settings={"folder": str(folder)})
    (line,) = [line for line in str(caught.value).splitlines() if f"'{wrong.__name__}' breaks '{broken}'" in line]
    assert message in line


STRUCTURES = (Structure("L2", "vertebra", 1), Structure("L1", "vertebra", 2), Structure("SC", "canal", 3))


@pytest.mark.parametrize(
    ("atlas", "broken", "message"),
    [
        ("L1", "construction", "a textseg.contracts.Atlas, came str"),
        (Atlas("x", ()), "structures", "at least one structure, came none"),
        (Atlas("x", (Structure("L1:L2", "vertebra", 1),)), "structures", "names without ':' and ','"),
        (Atlas("x", (Structure("L1", "", 1),)), "structures", "a family of 'L1', the words that prompts say"),
        (Atlas("x", (Structure("L1", "vertebra", 1, synonyms=("L,1",)),)), "structures", "names without ':' and ','"),
        (
            Atlas("x", (Structure("LV", "ventricle", 1), Structure("vein", "vein", 2, synonyms=("lv",)))),
            "structures",
            "one structure for each name and synonym, in any case, came 'lv' names two",
        ),
        (
            Atlas("x", tuple(Structure(f"s{n}", "many", n) for n in range(1, 257))),
            "structures",
            "at most 254 structures, came 256",
        ),
        (Atlas("x", STRUCTURES, ("L1", "L2", "L1")), "order", "each name once in the sequence"),
        (Atlas("x", STRUCTURES, adjacent=(("L1", "L1"),)), "order", "two structures in each adjacent pair"),
        (Atlas("x", STRUCTURES, adjacent=(("L1", "L2"), ("L2", "L1"))), "order", "each adjacent pair once"),
        (Atlas("x", STRUCTURES, groups={"none": ()}), "groups", "a structure in group 'none', came none"),
        (
            Atlas("x", STRUCTURES, groups={"one": ("L1",), "other": ("L1", "SC")}),
            "groups",
            "each structure in one group at most, came L1 in two",
        ),
        (
            Atlas("x", STRUCTURES, label_schemes={"s": {0: "L1"}}),
            "groups",
            "no name for 0, the background, in label scheme 's', came L1",
        ),
        (
            Atlas("x", STRUCTURES, label_schemes={"s": {1: "C1"}}),
            "groups",
            "a structure of the atlas in label scheme 's', came none",
        ),
    ],
)
def test_a_wrong_atlas_is_caught(atlas: Any, broken: str, message: str) -> None:
    def example() -> Atlas:
        """An atlas."""
        given: Atlas = atlas
        return given

    with pytest.raises(ConformanceError) as caught:
        check_atlas(example)
    (line,) = [line for line in str(caught.value).splitlines() if f"atlas 'example' breaks '{broken}'" in line]
    assert message in line


def test_an_atlas_that_reads_a_file() -> None:
    def example() -> Atlas:
        """Names of a file."""
        (Path(__file__).parents[2] / "LICENSE").read_text()
        return Atlas("x", STRUCTURES)

    with pytest.raises(ConformanceError, match="atlas 'example' breaks 'surroundings'.*LICENSE"):
        check_atlas(example)
