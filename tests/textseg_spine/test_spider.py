from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from textseg.errors import DataError
from textseg.system.fetching import Progress, RemoteFile
from textseg_spine.spider import Spider

OVERVIEW = "new_file_name,num_vertebrae,num_discs,sex,birth_date,subset\r\n"
DATA = os.environ.get("TEXTSEG_DATA")


def write(folder: Path, stems: dict[str, str], overview: str | None = None, numbering: str | None = None) -> Path:
    """A folder whose volumes are empty files: the reader must not open them. Images by name, with their mask's."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for image, mask in stems.items():
        (folder / "images" / image).touch()
        if mask:
            (folder / "masks" / mask).touch()
    if overview is not None:
        (folder / "overview.csv").write_bytes((OVERVIEW + overview).encode())
    if numbering is not None:
        (folder / "numbering.csv").write_text(numbering)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stems = {
        "10_t2.mha": "10_t2.mha",
        "9_T2_space.MHA": "9_t2_SPACE.mha",
        "9_t1.mha": "9_T1.mha",
        "2_t2.mha": "",
        "._2_t2.mha": "",
        "notes.txt": "",
    }
    overview = (
        "10_t2,7,7,F ,63.0,training\r\n9_t1,7,7,M,,validation\r\n9_t2_SPACE,7,7,M,,validation\r\n2_t2,,,,,training\r\n"
    )
    return write(tmp_path / "spider", stems, overview)


def test_cases_are_sorted_naturally_and_matched_without_regard_to_case(folder: Path) -> None:
    cases = Spider(folder=str(folder)).cases()
    assert [case.id for case in cases] == ["2_t2", "9_t1", "9_T2_space", "10_t2"]
    assert [case.patient for case in cases] == ["2", "9", "9", "10"]
    masks = [case.mask and case.mask.name for case in cases]
    assert masks == [None, "9_T1.mha", "9_t2_SPACE.mha", "10_t2.mha"]
    assert all(case.image.is_file() for case in cases)


def test_facts_are_what_the_name_and_the_overview_say(folder: Path) -> None:
    facts = {case.id: dict(case.facts) for case in Spider(folder=str(folder)).cases()}
    assert facts["10_t2"] == {"sequence": "T2", "view": "sagittal", "sex": "female"}
    assert facts["9_t1"] == {"sequence": "T1", "view": "sagittal", "sex": "male"}
    assert facts["9_T2_space"]["sequence"] == "T2 SPACE"
    assert "sex" not in facts["2_t2"]


def test_the_official_split_names_each_patient_once(folder: Path) -> None:
    assert Spider(folder=str(folder)).official_split() == {"train": ("2", "10"), "test": ("9",)}


def test_without_an_overview_there_are_cases_but_no_official_split(tmp_path: Path) -> None:
    dataset = Spider(folder=str(write(tmp_path / "spider", {"1_t2.mha": ""})))
    assert dict(dataset.cases()[0].facts) == {"sequence": "T2", "view": "sagittal"}
    assert dataset.official_split() is None


def test_a_series_without_a_subset_has_no_official_split(tmp_path: Path) -> None:
    folder = write(tmp_path / "spider", {"1_t2.mha": "", "2_t2.mha": ""}, "1_t2,7,7,F,,training\r\n")
    with pytest.raises(DataError, match=r"overview.csv: the subset of series '2_t2' is ''"):
        Spider(folder=str(folder)).official_split()


def test_a_patient_in_both_subsets_is_refused(tmp_path: Path) -> None:
    overview = "1_t1,7,7,F,,training\r\n1_t2,7,7,F,,validation\r\n"
    folder = write(tmp_path / "spider", {"1_t1.mha": "", "1_t2.mha": ""}, overview)
    with pytest.raises(DataError, match="patient 1 is in both subsets"):
        Spider(folder=str(folder)).official_split()


def test_values_are_counted_from_the_bottom(folder: Path) -> None:
    dataset = Spider(folder=str(folder))
    mapping = dataset.label_map(dataset.cases()[0])
    assert set(mapping) == {0, 100, *range(1, 26), *range(101, 126), *range(201, 226)}
    names = {value: dataset.atlas.names[index - 1] if index else "" for value, index in mapping.items()}
    assert [names[value] for value in (0, 100, 1, 2, 5, 6, 9, 10, 25)] == [
        "",
        "SC",
        "L5",
        "L4",
        "L1",
        "T12",
        "T9",
        "",
        "",
    ]
    assert [names[value] for value in (201, 202, 206, 209, 210)] == ["L5/S", "L4/L5", "T12/L1", "T9/T10", ""]
    assert [names[value] for value in (101, 108, 110)] == ["L5", "T10", ""]


def test_partial_vertebrae_may_be_background(folder: Path) -> None:
    dataset = Spider(folder=str(folder), partial_vertebrae="background")
    mapping = dataset.label_map(dataset.cases()[0])
    assert {mapping[value] for value in range(101, 126)} == {0}
    assert mapping[8] == dataset.atlas["T10"].index


def test_numbering_moves_the_names_of_a_patient(tmp_path: Path) -> None:
    stems = {f"{patient}_t2.mha": "" for patient in (1, 2, 3)}
    folder = write(tmp_path / "spider", stems, numbering="patient,lowest_level\n1,L6\n2, l4\n")
    dataset = Spider(folder=str(folder))
    six, four, five = (dataset.label_map(case) for case in dataset.cases())
    index = {structure.name: structure.index for structure in dataset.atlas.structures}
    assert (six[1], six[201], six[2], six[202], six[102]) == (0, 0, index["L5"], index["L5/S"], index["L5"])
    assert (six[10], six[210]) == (index["T9"], index["T9/T10"])
    assert (four[1], four[201], four[8], four[9]) == (index["L4"], index["L4/L5"], index["T9"], 0)
    assert five[1] == index["L5"]


def test_numbering_with_an_impossible_level_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "spider", {"1_t2.mha": ""}, numbering="patient,lowest_level\n1,L9\n")
    dataset = Spider(folder=str(folder))
    with pytest.raises(DataError, match=r"lowest_level of patient 1 is 'L9'.*Possible: L1, L2, L3, L4, L5, L6"):
        dataset.label_map(dataset.cases()[0])


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "spider", {"1_t2.mha": ""}, numbering="patient,level\n1,L6\n")
    dataset = Spider(folder=str(folder))
    with pytest.raises(DataError, match=r"numbering.csv:1: there is no column 'lowest_level'"):
        dataset.label_map(dataset.cases()[0])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_a_spreadsheet_are_read(tmp_path: Path, encoding: str) -> None:
    folder = write(tmp_path / "spider", {"1_t2.mha": ""})
    (folder / "numbering.csv").write_bytes("Patient;Lowest_level;Notiz\r\n1;L6;geprüft\r\n".encode(encoding))
    dataset = Spider(folder=str(folder))
    assert dataset.label_map(dataset.cases()[0])[2] == dataset.atlas["L5"].index


@pytest.mark.parametrize("patient", ["12.0", "012", "12,0", "12."])
def test_a_patient_that_a_spreadsheet_has_rewritten_is_refused(tmp_path: Path, patient: str) -> None:
    folder = write(tmp_path / "spider", {"12_t2.mha": ""}, numbering=f'patient,lowest_level\n"{patient}",L6\n')
    dataset = Spider(folder=str(folder))
    with pytest.raises(DataError, match=rf"numbering.csv:2: there is no patient '{patient}'. Write 12"):
        dataset.label_map(dataset.cases()[0])


def test_rows_that_fit_nobody_are_doubts(tmp_path: Path) -> None:
    numbering, overview = "patient,lowest_level\n1,L6\n99,L6\n98,L6\n", "1_t2,,,,,training\r\n1_t3,,,,,training\r\n"
    dataset = Spider(folder=str(write(tmp_path / "spider", {"1_t2.mha": ""}, overview, numbering)))
    doubts = dataset.doubts({})
    assert list(doubts) == ["numbering.csv", "overview.csv"]
    assert doubts["numbering.csv"][0].endswith("csv:3: there is no patient '99'. So it is with 1 more rows.")
    assert doubts["overview.csv"][0].endswith("csv:3: there is no series '1_t3'.")


@pytest.mark.parametrize("kind", ["missing", "empty", "other"])
def test_a_folder_without_images_says_where_to_get_them(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "spider"
    if kind != "missing":
        folder.mkdir()
    if kind == "other":
        (folder / "images.zip").touch()
    with pytest.raises(DataError) as caught:
        Spider(folder=str(folder)).cases()
    message = str(caught.value)
    for part in (str(folder), "10159290", "CC BY 4.0", "textseg data fetch spider", "--set dataset.folder=DIR"):
        assert part in message
    causes = {"missing": "there is no such folder", "empty": "it is empty", "other": "it holds images.zip"}
    assert causes[kind] in message


def test_a_strange_name_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "spider", {"1_flair.mha": ""})
    with pytest.raises(DataError, match=r"1_flair.mha: the name is not <patient>_<sequence>.mha"):
        Spider(folder=str(folder)).cases()


def test_names_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "spider", {"1_t2.mha": "", "1_T2.mha": ""})
    if len(list((folder / "images").iterdir())) < 2:
        pytest.skip("this file system does not tell upper from lower case")
    with pytest.raises(DataError, match=r"'1_T2.mha' and '1_t2.mha' differ only in case"):
        Spider(folder=str(folder)).cases()


@pytest.mark.skipif(not DATA or not Path(DATA, "spider").is_dir(), reason="needs TEXTSEG_DATA with a folder spider")
def test_the_published_data_are_read() -> None:
    dataset = Spider(folder=str(Path(str(DATA), "spider")))
    cases = dataset.cases()
    assert cases
    split = dataset.official_split()
    assert split is not None
    assert {patient for patients in split.values() for patient in patients} == {case.patient for case in cases}
    assert all(case.facts["sex"] in ("female", "male") for case in cases)
    case = next(case for case in cases if case.mask)
    values = np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(case.mask)))).tolist()
    mapping = dataset.label_map(case)
    assert {"L5", "L5/S", "SC"} <= {dataset.atlas.names[mapping[value] - 1] for value in values if mapping[value]}


def test_fetch_unpacks_whatever_the_nesting_and_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "published"
    published.mkdir()
    for name, nesting in (("images.zip", "images/"), ("masks.zip", "SPIDER/masks/")):
        with zipfile.ZipFile(published / name, "w") as archive:
            for stem in ("1_t1", "1_t2"):
                archive.writestr(f"{nesting}{stem}.mha", f"{name} {stem}")
    (published / "overview.csv").write_text(OVERVIEW + "1_t1,7,7,M,,training\r\n1_t2,7,7,M,,training\r\n")
    (published / "radiological_gradings.csv").write_text("Patient\n")
    asked = []

    def copy(remote: RemoteFile, folder: Path, *, progress: Progress) -> Path:
        asked.append(remote.name)
        folder.mkdir(exist_ok=True)
        return Path(shutil.copy(published / remote.name, folder))

    monkeypatch.setattr("textseg_spine.spider.fetch_file", copy)
    monkeypatch.setattr("textseg_spine.spider.SERIES", 2)
    reader = Spider(folder=str(tmp_path / "spider"))
    assert reader.fetch(progress=lambda *_: None).startswith("SPIDER: 2 series with their masks")
    assert [case.id for case in reader.cases()] == ["1_t1", "1_t2"]
    assert (tmp_path / "spider/masks/1_t2.mha").read_text() == "masks.zip 1_t2"
    assert sorted(path.name for path in (tmp_path / "spider").iterdir()) == [
        "images", "masks", "overview.csv", "radiological_gradings.csv",
    ]  # fmt: skip
    reader.fetch(progress=lambda *_: None)
    assert asked.count("images.zip") == 1
    monkeypatch.setattr("textseg_spine.spider.SERIES", 3)
    with pytest.raises(DataError, match="images' holds 2 volumes, and SPIDER has 3"):
        reader.fetch(progress=lambda *_: None)


def test_what_is_published_is_what_zenodo_lists() -> None:
    remote = {file.name: file for file in (*Spider.archives, *Spider.tables)}
    assert remote["images.zip"].bytes == 3_700_562_886
    assert remote["masks.zip"].md5 == "49861ff25a0108b3b69d0ce808ae51dc"
    assert remote["overview.csv"].url == "https://zenodo.org/records/10159290/files/overview.csv?download=1"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({*range(1, 8), 100, *range(201, 208)}, None),
        ({*range(1, 7), 107, 100, *range(201, 208)}, None),  # the uppermost is cut by the picture
        ({*range(1, 7), 100, *range(201, 208)}, "overview.csv says num_vertebrae 7, and the mask has 6"),
        ({*range(1, 8), 100, *range(201, 209)}, "overview.csv says num_discs 7, and the mask has 8"),
        ({*range(2, 9), 100, *range(201, 208)}, "its lowest vertebra is 2"),
        ({*range(1, 11), 100, *range(201, 208)}, "it shows 10 vertebrae, one above T9 if 1 is L5; or 1 is L6"),
    ],
)
def test_doubts_about_the_names_of_levels(folder: Path, values: set[int], message: str | None) -> None:
    doubts = Spider(folder=str(folder)).doubts({"10_t2": values})
    if message is None:
        assert doubts == {}
    else:
        assert any(line.startswith(message) and "numbering.csv" in line for line in doubts["10_t2"])


def test_series_of_one_patient_that_disagree_are_doubted(folder: Path) -> None:
    full = {*range(1, 8), *range(201, 208)}
    doubts = Spider(folder=str(folder)).doubts({"9_t1": full, "9_T2_space": full - {7}})
    assert "the mask of 9_T2_space, the same patient, has other levels" in doubts["9_t1"][0]


def test_a_patient_in_numbering_csv_is_not_doubted_again(folder: Path) -> None:
    (folder / "numbering.csv").write_text("patient,lowest_level\n10,L6\n")
    assert Spider(folder=str(folder)).doubts({"10_t2": {2}}) == {}
