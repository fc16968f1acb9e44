from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from textseg.data.splits import PARTS, Split, make_split
from textseg.errors import DataError
from textseg.recipe.schema import SplitSettings

PATIENTS = [f"p{number:02}" for number in range(40)]
OFFICIAL = {"train": PATIENTS[:30], "test": PATIENTS[30:]}


def split(patients: list[str] = PATIENTS, **settings: Any) -> Split:
    return make_split(SplitSettings(**settings), patients, None)


def require_whole(result: Split, patients: list[str]) -> None:
    everybody = [patient for part in PARTS for patient in getattr(result, part)]
    assert sorted(everybody) == sorted(patients)  # nobody twice, nobody missing
    assert all(list(getattr(result, part)) == sorted(getattr(result, part)) for part in PARTS)


FORMS = [
    {"fractions": (0.7, 0.1, 0.2)},
    {"fractions": (0.34, 0.33, 0.33)},
    {"folds": 5, "fold": 3},
    {"folds": 3, "fold": 0, "validation": 0.3},
    {"official": True, "official_patients": OFFICIAL},
]


@pytest.mark.parametrize("form", FORMS)
def test_every_patient_is_on_one_side(form: dict[str, Any]) -> None:
    settings = {key: value for key, value in form.items() if key != "official_patients"}
    result = make_split(SplitSettings(**settings), PATIENTS, form.get("official_patients"))
    require_whole(result, PATIENTS)


@pytest.mark.parametrize("form", FORMS)
def test_the_order_and_number_of_a_patients_cases_do_not_matter(form: dict[str, Any]) -> None:
    settings = SplitSettings(**{key: value for key, value in form.items() if key != "official_patients"})
    official = form.get("official_patients")
    result = make_split(settings, PATIENTS, official)
    again = make_split(settings, [*reversed(PATIENTS), *PATIENTS[:7]], official)
    assert again == result
    assert again.hash == result.hash
    second = make_split(settings.model_copy(update={"seed": 1}), PATIENTS, official)
    assert second != result
    assert second.hash != result.hash


def test_fractions_are_of_the_patients() -> None:
    result = split(fractions=(0.7, 0.1, 0.2))
    assert [len(getattr(result, part)) for part in PARTS] == [28, 4, 8]


def test_folds_test_every_patient_exactly_once() -> None:
    tested = []
    for fold in range(7):
        result = split(folds=7, fold=fold, validation=0.2)
        require_whole(result, PATIENTS)
        assert len(result.test) in (5, 6)
        assert len(result.validation) == round(0.2 * (40 - len(result.test)))
        tested += result.test
    assert sorted(tested) == PATIENTS


def test_the_official_test_patients_stay_and_validation_comes_from_the_training_patients() -> None:
    result = make_split(SplitSettings(official=True, validation=0.2), PATIENTS, OFFICIAL)
    assert list(result.test) == OFFICIAL["test"]
    assert len(result.validation) == 6
    assert sorted((*result.train, *result.validation)) == OFFICIAL["train"]


def test_an_official_split_leaves_out_whom_it_does_not_name() -> None:
    result = make_split(SplitSettings(official=True), [*PATIENTS, "extra"], OFFICIAL)
    require_whole(result, PATIENTS)


def test_a_patient_more_moves_few_others() -> None:
    before, after = split(fractions=(0.5, 0.25, 0.25)), split([*PATIENTS, "p40"], fractions=(0.5, 0.25, 0.25))
    assert len(set(before.train) - set(after.train)) <= 1


def test_the_hash_is_of_who_is_where_however_it_came_about(tmp_path: Path) -> None:
    drawn = split(fractions=(0.7, 0.1, 0.2))
    path = tmp_path / "split.json"
    path.write_text(json.dumps({part: list(reversed(getattr(drawn, part))) for part in PARTS}))
    read = split(file=path)
    assert read == drawn
    assert read.hash == drawn.hash
    swapped = Split(drawn.validation, drawn.train, drawn.test)
    assert swapped.hash != drawn.hash


def test_a_run_folders_own_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["1", 2, "1"], "validation": [3], "test": [4], "hash": "x"}))
    assert split(["1", "2", "3", "4", "5"], file=path) == Split(("1", "2"), ("3",), ("4",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["p01"], "validation": ["p02"], "test": ["p03", "p01"]}, "both train and test have p01"),
        ({"train": ["p01"], "validation": ["p01"], "test": ["p03"]}, "both train and validation have p01"),
        ({"train": ["p01"], "validation": ["p02"], "test": ["q7", "q1"]}, "the data set lacks.*: q1, q7"),
        ({"train": ["p01"], "validation": [], "test": ["p03"]}, "no patient is left for validation"),
        ({"train": ["p01"], "test": ["p03"]}, "must be JSON with one list"),
        ({"train": "p01", "validation": ["p02"], "test": ["p03"]}, "must be JSON with one list"),
        (["p01"], "must be JSON with one list"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        split(file=path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        split(file=tmp_path / "missing.json")
    with pytest.raises(DataError, match="can't be read: Is a directory"):
        split(file=tmp_path)
    (tmp_path / "broken.json").write_bytes(b'{"train": ["\xff')
    with pytest.raises(DataError, match="broken.json:1: this is not UTF-8"):
        split(file=tmp_path / "broken.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_of_another_editor_is_read(tmp_path: Path, encoding: str) -> None:
    content = json.dumps({"train": ["p01"], "validation": ["p02"], "test": ["p03"]})
    (tmp_path / "split.json").write_bytes(content.encode(encoding))
    assert split(file=tmp_path / "split.json") == Split(("p01",), ("p02",), ("p03",))


CASES = {f"{patient}_{number}": patient for patient in PATIENTS for number in (1, 2)}


def folds_of(path: Path, *folds: dict[str, list[str]]) -> Path:
    path.write_text(json.dumps(folds))
    return path


def test_a_fold_of_nnunet_tests_on_its_val_and_validates_on_a_part_of_its_train(tmp_path: Path) -> None:
    val = [case for case in CASES if CASES[case] in PATIENTS[:4]]
    fold = {"train": [case for case in CASES if case not in val and CASES[case] != PATIENTS[-1]], "val": val}
    path = folds_of(tmp_path / "splits_final.json", {"train": val, "val": fold["train"]}, fold)
    settings = SplitSettings(file=path, fold=1, validation=0.2)
    result = make_split(settings, CASES.values(), None, cases=CASES)
    assert result.test == tuple(PATIENTS[:4])
    assert sorted(result.train + result.validation) == PATIENTS[4:-1]
    assert len(result.validation) == round(0.2 * len(PATIENTS[4:-1]))
    assert SplitSettings(**settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([{"train": ["p01_1"], "val": ["p02_1"]}], "names some cases of patient p01, and not p01_2, p02_2"),
        ([{"train": ["p01_1"], "val": ["p01_2"]}], "both train and val have p01"),
        ([{"train": ["p01"], "val": ["x"]}], "names cases that the data set lacks.*: x"),
        ([], "must be a splits_final.json of nnU-Net"),
        ([{"train": ["p01"]}], "must be a splits_final.json of nnU-Net"),
        ({"train": [], "validation": [], "test": []}, "If it has one split of patients, remove 'fold'"),
    ],
)
def test_a_wrong_fold_is_refused(tmp_path: Path, folds: Any, message: str) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(DataError, match=message):
        make_split(SplitSettings(file=tmp_path / "splits_final.json", fold=0), CASES.values(), None, cases=CASES)


def test_a_fold_that_is_not_there_and_folds_without_a_number(tmp_path: Path) -> None:
    path = folds_of(tmp_path / "splits_final.json", {"train": ["p01"], "val": ["p02"]})
    with pytest.raises(DataError, match="has 1 folds, counted from 0, and no fold 3"):
        split(file=path, fold=3)
    with pytest.raises(DataError, match="It has the folds of nnU-Net: a recipe names one with"):
        split(file=path)


@pytest.mark.parametrize(
    ("patients", "settings", "message"),
    [
        (["a", "b"], {"fractions": (0.8, 0.1, 0.1)}, "split.fractions: no patient is left for validation and test"),
        (["a", "b", "c"], {"fractions": (0.5, 0.5, 0.0)}, "no patient is left for test .3 in all"),
        (["a", "b", "c"], {"folds": 5, "fold": 4}, "split.folds: no patient is left for test"),
        (["a", "b"], {"folds": 2, "fold": 0}, "no patient is left for train"),
        ([], {"folds": 2, "fold": 0}, "no patient is left"),
        (["a", "b"], {"official": True}, "no official split; use fractions"),
    ],
)
def test_a_part_without_a_patient_is_refused(patients: list[str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(patients, **settings)


def test_an_official_split_with_a_patient_on_two_sides_is_refused() -> None:
    official = {"train": ["a", "b", "c"], "test": ["c", "d"]}
    with pytest.raises(DataError, match="split.official: both train and test have c"):
        make_split(SplitSettings(official=True), ["a", "b", "c", "d"], official)


def test_an_official_split_without_a_known_test_patient_is_refused() -> None:
    with pytest.raises(DataError, match="split.official: no patient is left for test"):
        make_split(SplitSettings(official=True), PATIENTS[:30], OFFICIAL)


def test_an_official_split_without_one_of_its_sides() -> None:
    with pytest.raises(DataError, match="split.official: .* no list of patients for test"):
        make_split(SplitSettings(official=True), PATIENTS, {"train": OFFICIAL["train"]})


STRATA = {patient: "three" if number % 4 == 0 else "one" for number, patient in enumerate(PATIENTS)}


@pytest.mark.parametrize("seed", range(5))
def test_stratified_parts_have_their_share_of_every_kind(seed: int) -> None:
    for form in ({"fractions": (0.6, 0.2, 0.2)}, {"folds": 5, "fold": 2, "validation": 0.25}):
        result = make_split(SplitSettings(**form, stratify=True, seed=seed), PATIENTS, None, STRATA)
        require_whole(result, PATIENTS)
        assert [sum(STRATA[patient] == "three" for patient in getattr(result, part)) for part in PARTS] == [6, 2, 2]


def test_an_unstratified_division_does_not_change_with_the_setting_off() -> None:
    assert make_split(SplitSettings(fractions=(0.6, 0.2, 0.2), stratify=False), PATIENTS, None) == split(
        fractions=(0.6, 0.2, 0.2)
    )


def test_kinds_of_one_patient_each_are_spread_over_the_parts() -> None:
    alone = {patient: patient for patient in PATIENTS}
    result = [make_split(SplitSettings(folds=4, fold=k, stratify=True), PATIENTS, None, alone) for k in range(4)]
    assert sorted(patient for fold in result for patient in fold.test) == sorted(PATIENTS)
    drawn = make_split(SplitSettings(fractions=(0.6, 0.2, 0.2), stratify=True), PATIENTS, None, alone)
    require_whole(drawn, PATIENTS)
    assert {patient > PATIENTS[19] for patient in drawn.test} == {True, False}
