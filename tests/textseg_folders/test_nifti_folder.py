from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from textseg.errors import DataError, RecipeError
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg_folders.nifti_folder import NiftiFolder

LABELS = {0: "background", 1: "L5", 2: "L4", 7: "SC", 9: "background"}


def lay_out(folder: Path, *names: str, **files: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


def reader(folder: Path, **settings: Any) -> NiftiFolder:
    return NiftiFolder(folder=str(folder), **{"atlas": "lumbar_spider", "labels": LABELS, **settings})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = ("images/b_2.nii.gz", "images/a_1.mha", "images/a_2.NII", "images/.x.nii.gz", "images/readme.txt")
    return lay_out(tmp_path, *images, "masks/a_1.nii.gz", "masks/b_2.nrrd")


def test_cases_are_images_with_the_mask_of_their_name(folder: Path) -> None:
    cases = [(case.id, case.patient, case.mask and case.mask.name) for case in reader(folder).cases()]
    assert cases == [("a_1", "a_1", "a_1.nii.gz"), ("a_2", "a_2", None), ("b_2", "b_2", "b_2.nrrd")]
    assert reader(folder).official_split() is None


def test_channels_lie_in_folders_or_have_suffixes(tmp_path: Path) -> None:
    lay_out(tmp_path, "t1/a.nii.gz", "t2/a.mha", "t2/b.nii.gz", "masks/a.nii.gz")
    first, second = reader(tmp_path, images={"T1": "t1", "T2": "t2"}).cases()
    assert dict(first.channels) == {"T1": tmp_path / "t1/a.nii.gz", "T2": tmp_path / "t2/a.mha"}
    assert (second.id, list(second.channels), first.mask) == ("b", ["T2"], tmp_path / "masks/a.nii.gz")
    lay_out(tmp_path, "images/a_t1.nii", "images/a_t2.nii", "images/a_fat_t2.nii", "images/b_t2.nii")
    suffixes = {"T2": "_t2", "T1": "_t1", "fat": "_fat_t2"}
    cases = reader(tmp_path, channel_suffixes=suffixes).cases()
    assert [(case.id, list(case.channels)) for case in cases] == [("a", ["T2", "T1", "fat"]), ("b", ["T2"])]
    with pytest.raises(DataError, match=r"a_fat_t2.nii: its name must end with the suffix of a channel: _t1"):
        reader(tmp_path, channel_suffixes={"T1": "_t1"}).cases()
    with pytest.raises(DataError, match="Give one of them"):
        reader(tmp_path, images={"T1": "t1"}, channel_suffixes=suffixes)
    for settings in ({"images": {"T1": "t1", "T2": "t1"}}, {"channel_suffixes": {"T1": "_t1", "T2": "_t1"}}):
        with pytest.raises(DataError, match="two channels have the same files"):
            reader(tmp_path, **settings)


def test_channels_in_subfolders_have_the_same_paths(tmp_path: Path) -> None:
    lay_out(tmp_path, "t1/p/a.nii.gz", "t2/p/a.nii.gz", "masks/p/a.nii.gz")
    settings = {"images": {"T1": "t1", "T2": "t2"}, "patient_pattern": "^([^/]+)/"}
    (case,) = reader(tmp_path, **settings).cases()
    assert (case.id, case.patient, list(case.channels), case.mask is not None) == ("p/a", "p", ["T1", "T2"], True)


def test_a_pattern_finds_the_patient(folder: Path) -> None:
    assert [case.patient for case in reader(folder, patient_pattern=r"^(\w)_").cases()] == ["a", "a", "b"]


def test_a_table_gives_patients_split_and_facts(folder: Path) -> None:
    table = "case,patient,split,sequence\r\na_1,7 ,train,T2\r\na_2,7,Training,T1\r\nb_2,9,test,\r\n"
    (folder / "cases.csv").write_bytes(table.encode())
    data = reader(folder, patient_pattern="(x)")
    assert [(case.patient, case.facts) for case in data.cases()] == [
        ("7", {"sequence": "T2"}), ("7", {"sequence": "T1"}), ("9", {}),
    ]  # fmt: skip
    assert data.official_split() == {"train": ["7"], "test": ["9"]}


@pytest.mark.parametrize("header", ["case, patient", "case,Patient", "Case;PATIENT ", "case\tpatient"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_series_of_a_patient_stay_together_however_the_table_is_written(
    folder: Path, header: str, encoding: str
) -> None:
    table = "\n".join((header, "a_1,Jörg", "a_2,Jörg", "b_2,9"))
    separator = next((mark for mark in ";\t" if mark in header), ",")
    (folder / "cases.csv").write_bytes(table.replace(",", separator).encode(encoding))
    assert [(case.patient, case.facts) for case in reader(folder).cases()] == [("Jörg", {}), ("Jörg", {}), ("9", {})]


NESTED = ("pat1/ses-1/T2.nii.gz", "pat1/ses-2/T2.nii.gz", "pat2/T2.mha")


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), (".", "masks"), ("images", "images/masks")])
def test_cases_are_read_in_subfolders(tmp_path: Path, images: str, masks: str) -> None:
    lay_out(tmp_path, *(f"{images}/{name}" for name in NESTED), *(f"{masks}/{name}" for name in NESTED[1:]))
    data = reader(tmp_path, images=images, masks=masks, patient_pattern="^([^/]+)/")
    cases = [(case.id, case.patient, case.mask) for case in data.cases()]
    assert cases == [
        ("pat1/ses-1/T2", "pat1", None),
        ("pat1/ses-2/T2", "pat1", tmp_path / masks / NESTED[1]),
        ("pat2/T2", "pat2", tmp_path / masks / NESTED[2]),
    ]


def test_a_pattern_or_a_table_finds_the_patient_of_a_case_in_a_subfolder(tmp_path: Path) -> None:
    data = lay_out(tmp_path, "images/T1/a.mha", "images/T2/a.mha", "images/T2/b.mha")
    assert [case.patient for case in reader(data, patient_pattern="/(.+)$").cases()] == ["a", "a", "b"]
    (data / "cases.csv").write_text("case,patient\nT1/a,x\nT2/a,x\nT2/b,y\n")
    assert [case.patient for case in reader(data).cases()] == ["x", "x", "y"]


def test_the_patients_of_cases_in_subfolders_are_stated(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"may be 'T1' or 'pat1'. Write `patient_pattern: '\^\(\[\^/\]\+\)/'`"):
        reader(lay_out(tmp_path, "images/T1/pat1.mha", "images/T2/pat1.mha")).cases()


def test_subfolders_beside_volumes_are_not_read(folder: Path) -> None:
    before = reader(folder).cases()
    lay_out(folder, "images/old/a_1.mha", "masks/old/c.mha")
    assert reader(folder).cases() == before


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    lay_out(tmp_path, "data/images/pat1/T2.mha", "store/T2.mha")
    (tmp_path / "data/images/pat2").symlink_to(tmp_path / "store")
    (tmp_path / "data/images/pat1/up").symlink_to(tmp_path / "data/images")
    cases = reader(tmp_path / "data", patient_pattern="^([^/]+)/").cases()
    assert [case.id for case in cases] == ["pat1/T2", "pat2/T2"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("masks/pat3/T2.mha", "has no image of that name"), ("images/pat2/T2.nii", "which are the same case")],
)
def test_a_wrong_file_in_a_subfolder_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=f"pat[23].*{message}"):
        reader(lay_out(tmp_path, *(f"images/{path}" for path in NESTED), name)).cases()


def test_a_folder_that_can_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "images/pat1/T2.mha", "images/pat2/T2.mha")
    listed = Path.iterdir

    def refuse(path: Path) -> Any:
        if path.name == "pat2":
            raise PermissionError
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match="pat2' can't be listed"):
        reader(tmp_path).cases()


def test_values_are_what_the_recipe_calls_them(folder: Path) -> None:
    data = reader(folder)
    case = data.cases()[0]
    names = ("background", *data.atlas.names)
    assert {value: names[index] for value, index in data.label_map(case).items()} == LABELS
    assert reader(folder, labels=None).label_map(case) == {index: index for index in range(20)}
    scheme = reader(folder, labels="totalspineseg").label_map(case)
    assert (names[scheme[45]], names[scheme[100]], names[scheme[2]], names[scheme[50]]) == (
        "L5",
        "L5/S",
        "SC",
        "background",
    )


def test_labels_may_be_synonyms_of_the_atlas(folder: Path) -> None:
    data = reader(folder, labels={0: "Background", 1: "th12", 2: "lumbosacral disc", 3: "vertebral canal"})
    named = {value: data.atlas.names[index - 1] for value, index in data.label_map(data.cases()[0]).items() if index}
    assert named == {1: "T12", 2: "L5/S", 3: "SC"}


def test_a_file_beside_the_folders_may_say_it(folder: Path) -> None:
    (folder / "labels.yaml").write_text("atlas: lumbar_mrspineseg\nlabels: {1: S, 2: L5}\n")
    data = NiftiFolder(folder=str(folder))
    assert data.atlas.name == "lumbar_mrspineseg"
    assert data.label_map(data.cases()[0]) == {0: 0, 1: 1, 2: 2}
    assert reader(folder).atlas.name == "lumbar_spider"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"atlas": "lumbar_spyder"}, "no atlas 'lumbar_spyder'. Did you mean 'lumbar_spider'"),
        ({"atlas": None}, "needs an atlas"),
        ({"labels": {1: "L7"}}, "dataset.labels: value 1 is 'L7', which atlas 'lumbar_spider' lacks"),
        ({"labels": {-1: "L5"}}, "-1 is no value of a mask"),
        ({"labels": {0: "L5"}}, "0 is the background, and can't be 'L5'"),
        ({"labels": "spyder"}, "no label scheme 'spyder'. Did you mean 'spider'"),
        ({"images": "scans"}, "No image in '.*scans'"),
        ({"patient_pattern": "("}, "is no regular expression"),
        ({"patient_pattern": "a"}, "finds no patient in 'a_1'"),
        ({"patient_pattern": r"^(b)_"}, "finds no patient in 'a_1'"),
    ],
)
def test_a_wrong_setting_is_named(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        reader(folder, **settings).cases()


@pytest.mark.parametrize(
    ("names", "files", "message"),
    [
        (("masks/c.nii.gz",), {}, "has no image of that name"),
        (("images/a_1.nii.gz",), {}, "'a_1.mha' and 'a_1.nii.gz', which are the same case"),
        ((), {"cases_csv": "case\nz\n"}, "no image of case 'z'"),
        ((), {"cases_csv": "case\na_1\na_1\n"}, "cases.csv:3: 'a_1' has a row already, in line 2"),
        ((), {"cases_csv": "case,patient_id\na_1,7\n"}, "the column 'patient_id' may be meant as 'patient'"),
        ((), {"cases_csv": "case,subject\na_1,7\n"}, "the column 'subject' may be meant as 'patient'"),
        ((), {"cases_csv": "case,patient\na_1,7\nb_2,\n"}, "it has no patient of case 'a_2'"),
        ((), {"labels_yaml": "labels: {1: L5, 1: L4}"}, "labels.yaml:1: .*'1' stands twice"),
        ((), {"labels_yaml": "labels: {010: L5}"}, "a scheme or lines such as `1: L5`"),
        ((), {"labels_yaml": "atlas: [1]"}, "a scheme or lines such as `1: L5`"),
        ((), {"cases_csv": "patient\nz\n"}, "no column 'case'"),
        ((), {"labels_yaml": "{"}, "labels.yaml:2: this is no YAML"),
        ((), {"labels_yaml": "labels: {one: L5}"}, "a scheme or lines such as `1: L5`"),
        ((), {"labels_yaml": "label: {1: L5}"}, "a scheme or lines such as `1: L5`"),
    ],
)
def test_a_wrong_folder_is_named(folder: Path, names: tuple[str, ...], files: dict[str, str], message: str) -> None:
    lay_out(folder, *names, **files)
    with pytest.raises(DataError, match=message):
        reader(folder).cases()


def test_a_split_that_is_neither_train_nor_test(folder: Path) -> None:
    (folder / "cases.csv").write_text("case,split\na_1,train\na_2,dev\nb_2,test\n")
    with pytest.raises(DataError, match="the split of 'a_2' is 'dev'"):
        reader(folder).official_split()


@pytest.mark.usefixtures("stranger")
def test_a_recipe_gives_labels_with_numbers_as_keys(tiny_recipe: Path, tmp_path: Path) -> None:
    scans = lay_out(tmp_path / "scans", "images/a.mha")
    settings = f"dataset={{use: nifti_folder, folder: {scans}, atlas: lumbar_spider, labels: {{1: L5, 2: L4}}}}"
    with pytest.raises(DataError, match="has no case with a mask"):
        build(load_recipe(tiny_recipe, [settings]))
    with pytest.raises(RecipeError, match="labels"):
        build(load_recipe(tiny_recipe, [settings.replace("1: L5", "x: L5")]))


@pytest.fixture(scope="module")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (data := os.environ.get("TEXTSEG_DATA")):
        pytest.skip("TEXTSEG_DATA names no folder of real scans")
    folder = tmp_path_factory.mktemp("real")
    for part in ("images", "masks"):
        (folder / part).mkdir()
        for patient in (5, 22, 34):
            name = f"{patient}_t2_SPACE.mha"
            (folder / part / name).symlink_to(Path(data) / "spider" / part / name)
    return folder


@pytest.mark.usefixtures("stranger")
def test_real_scans_are_prepared_as_by_the_reader_of_spider(tiny_recipe: Path, real_folder: Path) -> None:
    split = "split={fractions: [0.34, 0.33, 0.33]}"
    dataset = f"dataset={{use: nifti_folder, folder: {real_folder}, atlas: lumbar_spider, labels: spider}}"
    plain = build(load_recipe(tiny_recipe, [split, dataset]))
    spider = build(load_recipe(tiny_recipe, [split, f"dataset={{use: spider, folder: {real_folder}}}"]))
    ours, theirs = (
        {case.case.id: case.present for cases in experiment.cases.values() for case in cases}
        for experiment in (plain, spider)
    )
    assert ours == theirs
    assert len(ours) == 3
