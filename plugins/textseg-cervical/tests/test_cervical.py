from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from textseg import run
from textseg.contracts import Dataset
from textseg.errors import PromptError
from textseg.registry import installed_registry
from textseg.text import interactive_visibility, template_visibility
from textseg_cervical.atlas import cervical_spine
from textseg_cervical.cervical_phantom import CervicalPhantom
from textseg_cervical.cervical_prompts import CervicalPrompts

RECIPE = Path("atmnet_cervical_phantom")  # by its name, as it is installed
LEVELS = ["C2", "C2/C3", "C3", "C3/C4", "C4", "C4/C5", "C5", "C5/C6", "C6", "C6/C7", "C7", "C7/T1", "T1", "T1/T2", "T2"]


def test_the_plug_in_is_found_and_whole() -> None:
    (plugin,) = [plugin for plugin in installed_registry().plugins if plugin.name == "cervical"]
    assert plugin.error is None
    components = {(c.kind, c.name) for c in installed_registry().components() if c.plugin == "cervical"}
    assert components == {
        ("atlas", "cervical_spine"),
        ("prompt_generator", "cervical_prompts"),
        ("dataset", "cervical_phantom"),
    }
    assert all(c.description for c in installed_registry().components() if c.plugin == "cervical")


def test_the_atlas_runs_from_c2_to_t2_and_knows_the_cord_apart() -> None:
    atlas = cervical_spine()
    assert list(atlas.sequence) == LEVELS
    assert len(atlas.structures) == 16
    assert [name for name in atlas.names if name not in atlas.sequence] == ["spinal cord"]
    assert sorted(name for group in atlas.groups.values() for name in group) == sorted(atlas.names)
    assert atlas["C7"].family == "cervical vertebra"
    assert atlas["T1"].family == "thoracic vertebra"
    assert atlas.between("C7", "T1") == ("C7", "T1", "C7/T1", "spinal cord")


def test_words_are_read_with_the_names_of_the_field() -> None:
    atlas = cervical_spine()
    for words, visible in (
        ("the axis to D1", atlas.between("C2", "T1")),
        ("C5-7", atlas.between("C5", "C7")),
        ("C7/Th1", ("C7/T1",)),
        ("C2, the cord", ("C2", "spinal cord")),
    ):
        assert interactive_visibility(atlas, words).visible == visible
    with pytest.raises(PromptError, match="no 'C1' in the sequence"):
        interactive_visibility(atlas, "C1 to C4")


def test_the_values_of_totalspineseg_name_levels_of_the_atlas_or_what_lies_beyond() -> None:
    atlas = cervical_spine()
    scheme = atlas.label_schemes["totalspineseg"]
    assert {name for name in scheme.values() if name not in atlas.names} == {"C1", "T3", "SC"}
    assert {name for name in atlas.names if name not in scheme.values()} == set()
    assert (scheme[12], scheme[17], scheme[21], scheme[63], scheme[67], scheme[71], scheme[1]) == (
        "C2",
        "C7",
        "T1",
        "C2/C3",
        "C6/C7",
        "C7/T1",
        "spinal cord",
    )


def test_prompts_name_the_neck_and_its_levels_downwards() -> None:
    atlas = cervical_spine()
    generator = CervicalPrompts(atlas)
    prompts = generator(interactive_visibility(atlas, "C6:T1").at(4, 9))
    assert prompts.holistic == (
        "The sagittal MRI of the cervical spine demonstrates the anatomy in the true mid-sagittal plane, which, from "
        "superior to inferior, encompasses cervical vertebra C6, intervertebral disc C6/C7, cervical vertebra C7, "
        "intervertebral disc C7/T1, thoracic vertebra T1 and spinal cord."
    )
    classwise = dict(zip(atlas.names, prompts.classwise, strict=True))
    assert classwise["T1"] == "It contains thoracic vertebra T1."
    assert classwise["C2"] == "It does not contain cervical vertebra C2."
    assert generator(template_visibility(atlas)) == generator(template_visibility(atlas))
    with pytest.raises(PromptError, match="no published wording"):
        CervicalPrompts(atlas, wording="paper")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return CervicalPhantom(folder=str(tmp_path_factory.mktemp("phantom")), cases=6)


def read(path: Path | None) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "PIR"))


def test_the_phantom_shows_the_levels_in_order_and_not_all_in_every_picture(phantom: Dataset) -> None:
    cases = phantom.cases()
    assert len(cases) == 6
    assert {case.facts["sequence"] for case in cases} == {"T1", "T2", "T2 SPACE"}
    assert {case.facts["sex"] for case in cases} == {"female", "male"}
    split = phantom.official_split()
    assert split is not None
    assert {*split["train"], *split["test"]} == {case.patient for case in cases}
    assert split["test"]
    atlas, shown = phantom.atlas, []
    for case in cases:
        mask = read(case.mask)
        assert mask.shape == (9, 144, 112)
        middle = mask[4]
        seen = [name for name in atlas.sequence if (middle == atlas[name].index).sum() > 12]
        rows = [np.argwhere(middle == atlas[name].index)[:, 0].mean() for name in seen if "/" in name]
        assert rows == sorted(rows)
        assert {"C5", "C5/C6", "C6"} <= set(seen)
        shown.append(tuple(seen))
        cord, body = (np.argwhere(middle == atlas[name].index)[:, 1].mean() for name in ("spinal cord", "C5/C6"))
        assert cord > body  # behind it
    assert len(set(shown)) > 1


def test_pictures_that_begin_below_c2_show_no_landmark(tmp_path: Path) -> None:
    phantom = CervicalPhantom(folder=str(tmp_path), cases=2, slices=3, begins_below="C2")
    atlas = phantom.atlas
    for case in phantom.cases():
        levels = [name for name in atlas.sequence if (read(case.mask) == atlas[name].index).any()]
        assert levels[0] in ("C2/C3", "C3", "C3/C4")
        assert {"C4", "C5", "C6"} <= set(levels)
        assert not {*atlas.landmarks} & {*levels}


def test_the_cord_is_darker_than_the_fluid_around_it_in_t2(phantom: Dataset) -> None:
    case = next(case for case in phantom.cases() if case.facts["sequence"] == "T2")
    image, mask = read(case.image).astype(float), read(case.mask)
    cord = mask[4] == phantom.atlas["spinal cord"].index
    rows, columns = np.nonzero(cord)
    behind = [image[4, row, columns[rows == row].max() + 3] for row in np.unique(rows)]  # 3 pixels behind the cord
    assert np.median(behind) > 1.3 * np.median(image[4][cord])


def test_two_epochs_of_the_recipe_give_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    overrides = [
        f"dataset.folder={tmp_path / 'data'}",
        "dataset.cases=8",
        "dataset.slices=5",
        "dataset.size=[72,56]",
        "dataset.spacing_mm=2.2",
        "split.fractions=[0.6,0.2,0.2]",
        "preparation.size=[48,40]",
        "prompts.text_encoder={use: hashed}",
        "model.vision_encoder={use: residual_convolutions, channels: [4, 8], stem_stride: 2}",
        "model.fusion={use: hasf, heads: 2, stages: 1}",
        "training.epochs=2",
        "training.validate_every=1",
    ]
    folder = run(RECIPE, overrides=overrides, output=tmp_path / "runs")
    assert (folder / "report.html").is_file()
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["structure"] for row in rows} == set(cervical_spine().names)
    assert {row["prompt_source"] for row in rows} == {"template"}
