from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from textseg import run
from textseg.contracts import Case, Visibility
from textseg.errors import DataError, PromptError, RecipeError
from textseg.registry import installed_registry
from textseg.text import interactive_visibility, template_visibility
from textseg.volumes import read_labels, read_volume, write_labels
from textseg_cardiac.acdc import ACDC
from textseg_cardiac.atlas import heart_acdc, heart_short_axis
from textseg_cardiac.cardiac_phantom import CardiacPhantom
from textseg_cardiac.cardiac_prompts import CardiacPrompts

RECIPE = Path("atmnet_cardiac_phantom")  # by its name, as it is installed
RV, MYO, LV, LA, RA = range(1, 6)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> CardiacPhantom:
    return CardiacPhantom(folder=str(tmp_path_factory.mktemp("phantom")), patients=5)


def mask_of(case: Case) -> np.ndarray:
    """[S, H, W] from base to apex."""
    mask = read_labels(case.mask or "", "short_axis").array
    return mask if case.facts["first_slice"] == "base" else mask[::-1]


def test_the_plug_in_is_found_and_whole() -> None:
    (plugin,) = [plugin for plugin in installed_registry().plugins if plugin.name == "cardiac"]
    assert plugin.error is None
    components = [c for c in installed_registry().components() if c.plugin == "cardiac"]
    assert {c.name for c in components} == {
        "heart_acdc",
        "heart_short_axis",
        "cardiac_prompts",
        "acdc",
        "cardiac_phantom",
    }
    assert all(component.description for component in components)


def test_atlases_have_acdcs_values_no_order_and_the_plane_of_the_heart() -> None:
    for atlas in (heart_acdc(), heart_short_axis()):
        assert not atlas.ordered
        assert atlas.plane == "short_axis"
        assert {index: atlas.names[index - 1] for index in (1, 2, 3)} == atlas.label_schemes["acdc"]
        assert ("left ventricle", "myocardium") in atlas.adjacent
        assert sorted(name for group in atlas.groups.values() for name in group) == sorted(atlas.names)
    assert len(heart_acdc().structures) == 3
    assert heart_short_axis().names[3:] == ("left atrium", "right atrium")
    with pytest.raises(PromptError, match="has no order"):
        heart_acdc().between("left ventricle", "myocardium")


def test_prompts_say_where_the_slice_lies_and_what_encloses_what() -> None:
    generator = CardiacPrompts(heart_acdc(), facts=("phase",))
    template = template_visibility(heart_acdc(), {"phase": "end-systole", "first_slice": "base"})
    assert generator(template.at(0, 9)).holistic == (
        "The short-axis MRI of the heart demonstrates the anatomy in the basal third of the slices, which encompasses "
        "right ventricle, myocardium and left ventricle, the left ventricle inside the myocardium and the right "
        "ventricle beside the myocardium. The phase is end-systole."
    )
    assert "mid-ventricular third" in generator(template.at(4, 9)).holistic
    assert "apical third" in generator(template.at(8, 9)).holistic
    turned = template_visibility(heart_acdc(), {"first_slice": "apex"})
    assert "apical third" in generator(turned.at(0, 9)).holistic
    assert "third" not in generator(turned).holistic


def test_words_are_read_with_the_names_of_the_field() -> None:
    atlas = heart_short_axis()
    for words, visible in (
        ("LV and myo, no right ventricle", ("myocardium", "left ventricle")),
        ("everything without the atria", ("right ventricle", "myocardium", "left ventricle")),
        ("RA is not visible; LA, RV", ("right ventricle", "left atrium")),
    ):
        assert interactive_visibility(atlas, words).visible == visible
    for words, message in (("LV to RA", "has no order"), ("no RV", "only right ventricle is named, as not visible")):
        with pytest.raises(PromptError, match=message):
            interactive_visibility(atlas, words)


def test_prompts_relate_only_what_is_visible() -> None:
    atlas = heart_short_axis()
    generator = CardiacPrompts(atlas)
    prompts = generator(interactive_visibility(atlas, "left atrium, right atrium").at(0, 9))
    assert prompts.holistic.endswith(
        "encompasses left atrium and right atrium, the left atrium beside the right atrium."
    )
    assert prompts.classwise[0] == "It does not contain right ventricle."
    assert prompts.classwise[3] == "It contains left atrium."
    alone = generator(interactive_visibility(atlas, ["myocardium"])).holistic
    assert alone == "The short-axis MRI of the heart demonstrates the anatomy, which encompasses myocardium."
    nothing = generator(Visibility((), source="ground_truth", scope="slice"))
    assert nothing.holistic.endswith("encompasses none of the structures to segment.")
    assert (
        CardiacPrompts(atlas, granularity=1)(template_visibility(atlas)).holistic == "The short-axis MRI of the heart."
    )
    assert CardiacPrompts(atlas, absence="silent")(nothing_but(atlas.names[0])).classwise[1] == ""


def nothing_but(name: str) -> Visibility:
    return Visibility((name,), source="interactive", scope="volume")


def test_the_phantom_is_a_heart(phantom: CardiacPhantom) -> None:
    cases = phantom.cases()
    assert len(cases) == 10
    for case in cases:
        mask = mask_of(case)
        assert mask.shape == (10, 112, 112)
        atria = [index for index, plane in enumerate(mask) if {LA, RA} & set(np.unique(plane))]
        ventricle = [index for index, plane in enumerate(mask) if LV in plane]
        assert atria
        assert max(atria) < min(ventricle)  # the atria lie above the valve
        for index in ventricle:
            plane = mask[index]
            cavity = plane == LV
            ring = cavity.copy()
            for axis, step in product((0, 1), (-1, 1)):
                ring |= np.roll(cavity, step, axis)
            assert set(np.unique(plane[ring & ~cavity])) <= {MYO}  # nothing but muscle touches the cavity
        basal = mask[ventricle[0]]
        right, left = (np.argwhere(basal == index)[:, 1].mean() for index in (RV, LV))
        assert right < left
        area = [(mask[index] == LV).sum() for index in ventricle]
        assert area[0] > area[-1]


def test_the_left_ventricle_ejects_and_hearts_differ(phantom: CardiacPhantom) -> None:
    volumes: dict[tuple[str, str], int] = {}
    for case in phantom.cases():
        volumes[case.patient, case.facts["phase"]] = int((mask_of(case) == LV).sum())
    fractions = {
        patient: 1 - volumes[patient, "end-systole"] / volumes[patient, "end-diastole"] for patient, _ in volumes
    }
    groups = {case.patient: case.facts["group"] for case in phantom.cases()}
    assert set(groups.values()) == {"NOR", "DCM", "HCM", "MINF", "RV"}
    by_group = {groups[patient]: fraction for patient, fraction in fractions.items()}
    assert 0 < by_group["DCM"] < 0.45 < by_group["NOR"] < 0.8


def test_tilted_and_straight_files_read_as_the_same_picture(phantom: CardiacPhantom) -> None:
    ends = {case.patient: case.facts["first_slice"] for case in phantom.cases()}
    assert ends == {"001": "base", "002": "apex", "003": "base", "004": "apex", "005": "base"}
    for case in phantom.cases():
        mask = mask_of(case)
        rv, lv = (np.argwhere(mask == index).mean(axis=0) for index in (RV, LV))
        assert rv[2] < lv[2]  # the right ventricle on the left of the picture
        la = np.argwhere(mask == LA).mean(axis=0)
        assert la[0] < lv[0]  # from base to apex


def test_a_heart_is_read_alike_from_all_48_orientations_and_written_back(
    phantom: CardiacPhantom, tmp_path: Path
) -> None:
    (case, *_) = phantom.cases()  # a tilted one
    image = sitk.ReadImage(str(case.mask))
    expected = read_labels(case.mask or "", "short_axis").array
    for number, (order, flips) in enumerate(product(permutations(range(3)), product((False, True), repeat=3))):
        path = tmp_path / f"{number}.mha"
        stored = sitk.Flip(sitk.PermuteAxes(image, order), flips, False)
        sitk.WriteImage(stored, str(path))
        labels = read_labels(path, "short_axis")
        np.testing.assert_array_equal(labels.array, expected)
        write_labels(labels.array, labels.geometry, path)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), sitk.GetArrayFromImage(stored))


def test_acdc_reads_its_layout(phantom: CardiacPhantom) -> None:
    phantom.cases()
    reader = ACDC(folder=str(phantom.folder))
    assert reader.atlas.name == "heart_acdc"
    cases = reader.cases()
    assert [case.id for case in cases[:3]] == ["patient001_frame01", "patient001_frame10", "patient002_frame01"]
    assert cases[0].facts == {
        "sequence": "cine",
        "view": "short axis",
        "first_slice": "base",
        "phase": "end-diastole",
        "group": "DCM",
    }
    assert reader.label_map(cases[0]) == {0: 0, 1: 1, 2: 2, 3: 3}
    assert reader.official_split() == {"train": ["001", "002", "004", "005"], "test": ["003"]}
    assert ACDC(folder=str(phantom.folder), first_slice="apex").cases()[0].facts["first_slice"] == "apex"
    training = ACDC(folder=str(phantom.folder / "training"))
    assert len(training.cases()) == 8
    assert training.official_split() is None


def test_acdc_names_what_is_wrong(phantom: CardiacPhantom, tmp_path: Path) -> None:
    phantom.cases()
    with pytest.raises(DataError, match=r"No ACDC frames in .*patient001_frame01.nii.gz"):
        ACDC(folder=str(tmp_path)).cases()
    patient = shutil.copytree(phantom.folder / "training" / "patient001", tmp_path / "patient001")
    (patient / "patient001_4d.nii.gz").touch()  # the whole series, which is not read
    (patient / "Info.cfg").write_text("ED: 1\nES: 99\n")
    cases = ACDC(folder=str(tmp_path)).cases()
    assert [case.facts.get("phase") for case in cases] == ["end-diastole", None]
    assert "group" not in cases[0].facts
    (patient / "Info.cfg").unlink()
    assert "phase" not in ACDC(folder=str(tmp_path)).cases()[0].facts
    (patient / "patient001_frame10.nii.gz").unlink()
    with pytest.raises(DataError, match="frame10_gt.nii.gz' has no image"):
        ACDC(folder=str(tmp_path)).cases()
    (patient / "patient001_frame10_gt.nii.gz").rename(patient / "patient002_frame10_gt.nii.gz")
    with pytest.raises(DataError, match="another patient than its folder"):
        ACDC(folder=str(tmp_path)).cases()
    shutil.copytree(phantom.folder / "training" / "patient001", tmp_path / "training" / "patient001")
    with pytest.raises(DataError, match="are the same patient"):
        ACDC(folder=str(tmp_path)).cases()


def test_the_seed_decides_everything_and_impossible_settings_are_refused(tmp_path: Path) -> None:
    settings = {"patients": 1, "slices": 3, "size": (24, 20), "spacing_mm": 8.0}
    first, second = (CardiacPhantom(folder=str(tmp_path / name), **settings) for name in "ab")
    third = CardiacPhantom(folder=str(tmp_path / "a"), seed=1, **settings)
    images = [read_volume(phantom.cases()[0].image, "short_axis").array for phantom in (first, second, third)]
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    with pytest.raises(RecipeError, match="slice_distance_mm is 0"):
        CardiacPhantom(folder=str(tmp_path), slice_distance_mm=0)


def test_two_epochs_of_the_recipe_give_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    overrides = [
        f"dataset.folder={tmp_path / 'data'}",
        "dataset.patients=6",
        "dataset.slices=6",
        "dataset.size=[48,48]",
        "dataset.spacing_mm=4.0",
        "dataset.slice_distance_mm=17",
        "split={official: true, validation: 0.3}",
        "preparation.size=[40,40]",
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
    assert {row["structure"] for row in rows} == set(heart_short_axis().names)
    assert {row["case"] for row in rows} == {"patient003_frame01", "patient003_frame10"}


@pytest.fixture(scope="module")
def textseg_settings(
    tmp_path_factory: pytest.TempPathFactory, phantom: CardiacPhantom
) -> dict[tuple[str, str], dict[str, object]]:
    """Settings with which the conformance kit builds components that lack some defaults."""
    phantom.cases()
    folder = tmp_path_factory.mktemp("checked")
    shutil.copytree(phantom.folder, folder / "acdc")
    for path in (folder / "acdc").rglob("*_gt.nii.gz"):  # ACDC knows no atria
        labels = read_labels(path)
        write_labels(np.where(labels.array > LV, 0, labels.array), labels.geometry, path)
    small = {"patients": 4, "slices": 4, "size": [32, 32], "spacing_mm": 5.5, "slice_distance_mm": 25.0}
    return {
        ("dataset", "cardiac_phantom"): {"folder": str(folder / "drawn"), **small},
        ("dataset", "acdc"): {"folder": str(folder / "acdc")},
    }


def test_every_component_keeps_its_contract(textseg_check: Callable[[], None]) -> None:
    textseg_check()
