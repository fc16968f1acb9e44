from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from textseg.contracts import IGNORED, SegmenterOutput, Task
from textseg.errors import DataError
from textseg.evaluation.evaluate import CaseResult, evaluate
from textseg.evaluation.fields_of_view import evaluate_windows
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_recipe
from textseg.registry.discovery import installed_registry
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.training.loop import Training
from textseg_folders.nnunet_raw import NnunetRaw

VERSION_2 = {"background": 0, "l5": 1, "L4": 2, "canal": 3}
VERSION_1 = {"0": "background", "1": "L5", "2": "l4", "3": "canal"}


def lay_out(folder: Path, labels: Any = VERSION_2, names: tuple[str, ...] = ()) -> Path:
    names = names or (
        "imagesTr/a_0000.nii.gz",
        "imagesTr/b_1_0000.nii.gz",
        "labelsTr/a.nii.gz",
        "imagesTs/c_0000.nii.gz",
    )
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    return folder


def reader(folder: Path, **settings: Any) -> NnunetRaw:
    return NnunetRaw(folder=str(folder), **{"atlas": "lumbar_spider", "labels": {"canal": "SC"}, **settings})


def test_cases_are_those_of_both_folders(tmp_path: Path) -> None:
    cases = [(case.id, case.mask is not None) for case in reader(lay_out(tmp_path)).cases()]
    assert cases == [("a", True), ("b_1", False), ("c", False)]
    assert [case.patient for case in reader(tmp_path, patient_pattern="^([a-z])").cases()] == ["a", "b", "c"]


def test_test_cases_with_masks_are_an_official_split(tmp_path: Path) -> None:
    assert reader(lay_out(tmp_path)).official_split() is None
    (tmp_path / "labelsTs").mkdir()
    (tmp_path / "labelsTs/c.nii.gz").touch()
    assert reader(tmp_path).official_split() == {"train": ["a", "b_1"], "test": ["c"]}


@pytest.mark.parametrize("labels", [VERSION_1, VERSION_2])
def test_names_of_either_version_are_those_of_the_atlas(tmp_path: Path, labels: dict[str, Any]) -> None:
    data = reader(lay_out(tmp_path, labels))
    assert data.label_map(data.cases()[0]) == {
        0: 0,
        **{value: data.atlas[n].index for value, n in ((1, "L5"), (2, "L4"), (3, "SC"))},
    }


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ({"background": 0, "femur": 1}, (), "value 1 is 'femur', which atlas 'lumbar_spider' lacks"),
        ({"background": 0, "L5": [1, 2]}, (), "label 'L5' is .*no regions"),
        ([], (), "must be JSON with `labels`"),
        ({"background": 0, "L5": True}, (), "label 'L5' is True"),
        ({"background": 0, "L5": 1, "L4": 1}, (), "value 1 is 'L5' and 'L4'. Keep one"),
        ({"0": "background", "1": "L5", "01": "L4"}, (), "value 1 is 'L5' and 'L4'. Keep one"),
        ({"background": 1, "ignore": 0}, (), "0 is the background, and can't be 'ignore'"),
        (VERSION_2, ("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"), "must end .*dataset.json: _0000"),
        (VERSION_2, ("imagesTr/a.nii.gz",), "must end .*dataset.json: _0000"),
        (VERSION_2, ("imagesTr/a_0000.nii.gz", "labelsTr/z.nii.gz"), "has no image 'z_0000'"),
        (VERSION_2, ("imagesTs/a_0000.nii.gz",), "No volume in"),
    ],
)
def test_what_can_not_be_read_is_named(tmp_path: Path, labels: Any, names: tuple[str, ...], message: str) -> None:
    data = reader(lay_out(tmp_path, labels, names))
    with pytest.raises(DataError, match=message):
        data.label_map(data.cases()[0])


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_channels_are_those_of_dataset_json(tmp_path: Path, key: str) -> None:
    files = ("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0001.nii.gz", "labelsTr/a.nii.gz")
    path = lay_out(tmp_path, names=files) / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: {"1": "T2", "0": "T1"}}))
    first, second = reader(tmp_path).cases()
    assert [(name, file.name) for name, file in first.channels.items()] == [
        ("T1", "a_0000.nii.gz"),
        ("T2", "a_0001.nii.gz"),
    ]
    assert (second.id, list(second.channels), first.mask) == ("b", ["T2"], tmp_path / "labelsTr/a.nii.gz")
    path.write_text(json.dumps({"labels": VERSION_2, key: {"0": "MRI", "1": "MRI"}}))
    assert list(reader(tmp_path).cases()[0].channels) == ["MRI 0", "MRI 1"]
    (tmp_path / files[0]).unlink()
    with pytest.raises(DataError, match="No case has a file of channel 'MRI 0'"):
        reader(tmp_path).cases()
    path.write_text(json.dumps({"labels": VERSION_2, key: ["T1"]}))
    with pytest.raises(DataError, match="`channel_names` must give a name for each number"):
        reader(tmp_path).cases()


def test_names_of_dataset_json_may_be_synonyms(tmp_path: Path) -> None:
    labels = {"background": 0, "Th12": 1, "lumbosacral disc": 2, "canal": 3}
    data = reader(lay_out(tmp_path, labels), labels={"canal": "vertebral canal"})
    values = data.label_map(data.cases()[0]).items()
    assert [(value, data.atlas.names[index - 1]) for value, index in values if index] == [
        (1, "T12"),
        (2, "L5/S"),
        (3, "SC"),
    ]


def test_the_ignore_label_is_read_and_may_be_called_background(tmp_path: Path) -> None:
    lay_out(tmp_path, {**VERSION_2, "ignore": 4})
    for labels, index in (({}, IGNORED), ({"ignore": "background"}, 0)):
        data = reader(tmp_path, labels={"canal": "SC", **labels})
        assert data.label_map(data.cases()[0])[4] == index


def test_a_translation_of_a_label_that_is_not_there_is_refused(tmp_path: Path) -> None:
    data = reader(lay_out(tmp_path), labels={"canal": "SC", "L_4": "L4"})
    with pytest.raises(DataError, match="dataset.labels: .* has no label 'L_4'. Did you mean 'L4'"):
        data.label_map(data.cases()[0])


def test_dataset_json_may_begin_with_a_byte_order_mark_and_says_each_label_once(tmp_path: Path) -> None:
    path = lay_out(tmp_path) / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert set(reader(tmp_path).label_map(reader(tmp_path).cases()[0])) == {0, 1, 2, 3}
    path.write_text('{"labels": {"background": 0, "L5": 1, "L5": 2, "canal": 3}}')
    with pytest.raises(DataError, match="the key 'L5' stands twice"):
        reader(tmp_path).label_map(reader(tmp_path).cases()[0])


def test_no_dataset_json(tmp_path: Path) -> None:
    (lay_out(tmp_path) / "dataset.json").unlink()
    with pytest.raises(DataError, match="does not exist; nnU-Net's layout has it"):
        reader(tmp_path).label_map(reader(tmp_path).cases()[0])


@pytest.mark.usefixtures("stranger")
def test_real_scans_in_that_layout_are_prepared(tiny_recipe: Path, tmp_path: Path) -> None:
    if not (data := os.environ.get("TEXTSEG_DATA")):
        pytest.skip("TEXTSEG_DATA names no folder of real scans")
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    for number in (1, 2, 3):
        source = Path(data) / "mrspineseg/train"
        (tmp_path / f"imagesTr/spine_{number}_0000.nii.gz").symlink_to(source / f"MR/Case{number}.nii.gz")
        (tmp_path / f"labelsTr/spine_{number}.nii.gz").symlink_to(source / f"Mask/mask_case{number}.nii.gz")
    atlas = reader(lay_out(tmp_path, names=("dataset.json",)), atlas="lumbar_mrspineseg").atlas
    labels = {"background": 0, **{structure.name: structure.index for structure in atlas.structures}}
    lay_out(tmp_path, labels, ("dataset.json",))
    dataset = f"dataset={{use: nnunet_raw, folder: {tmp_path}, atlas: lumbar_mrspineseg}}"
    experiment = build(load_recipe(tiny_recipe, ["split={fractions: [0.34, 0.33, 0.33]}", dataset]))
    assert {"L5", "L5/S"} <= set(experiment.structures_in_training)


ROWS = np.s_[:, 30:50]  # of the files


class Pixelwise(nn.Module):
    """A network that sees one pixel at a time."""

    uses_text = False
    size_multiple = 1

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, task.class_count, 1))

    def forward(self, image: Tensor, text: None) -> SegmenterOutput:
        return SegmenterOutput(self.layers(image))


def partly_annotated(folder: Path, tiny_recipe: Path, *, shuffled: int = 0) -> Path:
    """Write the scans of the tiny recipe in nnU-Net's layout, with rows that are ignored.

    The intensities in these rows are exchanged at random for a `shuffled` above 0.
    """
    dataset = load_recipe(tiny_recipe).dataset
    scans = installed_registry().build("dataset", dataset.use, settings=dataset.settings)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    ignore = scans.atlas.class_count
    labels = {"background": 0, **{structure.name: structure.index for structure in scans.atlas.structures}}
    (folder / "dataset.json").write_text(json.dumps({"labels": {**labels, "ignore": ignore}}))
    for case in scans.cases():
        image, mask = sitk.ReadImage(str(case.image)), sitk.ReadImage(str(case.mask))
        pixels, values = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(mask)
        classes = np.zeros_like(values)
        for value, index in scans.label_map(case).items():
            classes[values == value] = index
        classes[ROWS] = ignore
        if shuffled:
            pixels[ROWS] = np.random.default_rng(shuffled).permuted(pixels[ROWS], axis=2)
        for array, like, name in (
            (pixels, image, f"imagesTr/{case.id}_0000.mha"),
            (classes.astype(np.uint8), mask, f"labelsTr/{case.id}.mha"),
        ):
            written = sitk.GetImageFromArray(array)
            written.CopyInformation(like)
            sitk.WriteImage(written, str(folder / name))
    return folder


def overrides(folder: Path, *more: str) -> tuple[str, ...]:
    return (f"dataset={{use: nnunet_raw, folder: {folder}, atlas: lumbar_spider}}", "training.epochs=1", *more)


@pytest.mark.usefixtures("stranger")
def test_pixels_that_are_ignored_train_nothing(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(name: str, **settings: Any) -> Tensor:
        folder = partly_annotated(tmp_path / name, tiny_recipe, **settings)
        without_text = ("prompts=null", "auxiliary_losses=[]", "model={network: {use: plain}}", "augmentation={}")
        whole = "preparation={size: [96, 80], crop: none}"  # no pixel is interpolated
        experiment = build(load_recipe(tiny_recipe, overrides(folder, *without_text, whole, *more)))
        training = Training(experiment, RunFolder(tmp_path / f"{name} run"), Fabric(accelerator="cpu", devices=1))
        training.fit()
        return torch.cat([parameter.flatten() for parameter in training.segmenter.parameters()])

    monkeypatch.setattr(
        "textseg.runs.experiment.build_segmenter", lambda recipe, registry, task: Segmenter(Pixelwise(task))
    )
    more: tuple[str, ...] = ("segmentation_loss={dice: 1, focal: 1, cross_entropy: 1}",)
    assert torch.equal(weights("a"), weights("b", shuffled=1))
    more = (*more, "dataset.labels={ignore: background}")
    assert not torch.equal(weights("c"), weights("d", shuffled=1))


@pytest.mark.usefixtures("stranger")
def test_scores_are_those_of_the_rows_that_are_not_ignored(tiny_recipe: Path, tmp_path: Path) -> None:
    folder = partly_annotated(tmp_path / "data", tiny_recipe)
    more = "evaluation={metrics: [dsc], fields_of_view: [0.5]}"
    experiment = build(load_recipe(tiny_recipe, overrides(folder, more)))
    training = Training(experiment, RunFolder(tmp_path / "run"), Fabric(accelerator="cpu", devices=1))
    training.fit()
    device, results = torch.device("cpu"), list[CaseResult]()
    evaluate(experiment, training.segmenter, source="template", device=device, on_case=results.append)
    for result in results:
        prepared = result.prepared
        reference, _ = prepared.native_mask(experiment.dataset.label_map(prepared.case))
        assert (reference[ROWS] == IGNORED).all()
        counted = [np.delete(array, np.r_[ROWS[1]], axis=1) for array in (result.prediction, reference)]
        values = {row.structure: row.value for row in result.scores}
        for structure in experiment.atlas.structures:
            first, second = (array == structure.index for array in counted)
            expected = 2 * (first & second).sum() / (first.sum() + second.sum()) if (first | second).any() else np.nan
            assert values[structure.name] == pytest.approx(expected, nan_ok=True)
        assert max(value for value in values.values() if value == value) > 0
    assert evaluate_windows(experiment, training.segmenter, device=device).scores
