"""Whatever a clinic hands over: real scans in every orientation and format, and damaged files among sound ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from typer.testing import CliRunner

from textseg.cli.entry import app
from textseg.contracts import Atlas, Task
from textseg.errors import DataError, RunError
from textseg.inference.files import ChannelFiles, find_inputs, join_channels, plan_jobs, predict_files
from textseg.inference.trained_model import TrainedModel
from textseg.recipe.loading import load_recipe
from textseg.registry.discovery import installed_registry
from textseg.runs.experiment import build_segmenter
from textseg.runs.task_record import TaskRecord
from textseg.volumes.files import read_labels, read_volume, stem

Write = Callable[..., list[Path]]
SIZE = (48, 40)

RECIPE = """
format: 1
name: tiny
seed: 1
dataset: {use: spider, folder: nowhere}
split: {fractions: [0.5, 0.25, 0.25]}
preparation: {size: [48, 40], intensity: percentiles}
model:
  network: {use: unet, channels: [4, 8]}
segmentation_loss: {dice: 1.0}
training:
  {epochs: 1, batch_size: 2, optimizer: adamw, schedule: cosine, learning_rate: 1.0e-3, final_learning_rate: 1.0e-6,
   precision: 32-true}
evaluation: {metrics: [dsc]}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """A small network with random weights, whose masks are rich in structures."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    recipe, registry = load_recipe(path), installed_registry()
    atlas: Atlas = registry.build("atlas", "lumbar_spider", settings={})
    task = Task(1, SIZE, atlas.class_count, atlas)
    torch.manual_seed(1)
    segmenter = build_segmenter(recipe, registry, task).eval()
    return TrainedModel("tiny", "", recipe, TaskRecord(task, {}), segmenter, None, None, torch.device("cpu"))


def _predicted(model: TrainedModel, inputs: list[Any], output: Path, suffix: str | None = None) -> list[Path]:
    result = list(predict_files(model, plan_jobs(inputs, output, suffix=suffix)))
    assert [outcome.message for outcome in result if outcome.state != "written"] == []
    return [outcome.job.mask for outcome in result]


def test_a_real_scan_has_one_mask_in_every_orientation_and_format(
    model: TrainedModel, spider_folder: Path, tmp_path: Path, write_series: Write
) -> None:
    nibabel = pytest.importorskip("nibabel")
    scan = sitk.Cast(sitk.ReadImage(str(spider_folder / "images" / "35_t2_SPACE.mha")), sitk.sitkInt16)
    scan = scan[::4, ::4, :]
    scan.SetOrigin((12.5, -40.25, 301.125))
    expected = model(_write(scan, tmp_path / "scan.mha"))
    assert len(np.unique(expected.array)) > 3
    random = np.random.default_rng(7)
    axes = [("L", "R"), ("P", "A"), ("I", "S")]
    inputs = []
    for number, suffix in enumerate([".mha", ".nii.gz", ".nrrd", ".nii", ".mha", ".nii.gz", "", ""]):
        letters = [axes[axis][int(random.integers(2))] for axis in random.permutation(3)]
        turned = sitk.DICOMOrient(scan, "".join(letters))
        if suffix:
            inputs.append(_write(turned, tmp_path / "in" / f"{number}{suffix}", compressed=bool(number % 2)))
            continue
        if np.linalg.det(np.reshape(turned.GetDirection(), (3, 3))) < 0:  # which a DICOM series never has
            turned = sitk.Flip(turned, (False, False, True))
        write_series(turned, tmp_path / "in" / f"series{number}", shuffle=True, suffix="", compressed=bool(number % 2))
    result = find_inputs([str(tmp_path / "in")])
    assert len(result) == 8
    for first, path in zip(result, _predicted(model, result, tmp_path / "out", ".nii.gz"), strict=True):
        mask = read_labels(path)
        np.testing.assert_array_equal(mask.array, expected.array)  # canonical, so nothing had to be resampled
        volume = read_volume(first)
        assert volume.geometry.size == mask.geometry.size
        stored = sitk.ReadImage(str(path))
        np.testing.assert_allclose(stored.GetSpacing(), volume.geometry.spacing, atol=1e-6)
        image = nibabel.load(path)
        assert image.get_data_dtype() == np.uint8
        matrix = np.reshape(volume.geometry.direction, (3, 3)) * volume.geometry.spacing
        to_ras = np.diag([-1, -1, 1])
        np.testing.assert_allclose(image.affine[:3, :3], to_ras @ matrix, atol=1e-6)
        np.testing.assert_allclose(image.affine[:3, 3], to_ras @ volume.geometry.origin, atol=1e-4)  # float32 in NIfTI
    masks = _predicted(model, [first for first in result if isinstance(first, Path)], tmp_path / "own")
    assert len(masks) == 6
    for path in masks:
        assert read_volume(tmp_path / "in" / path.name).geometry.differences(read_labels(path).geometry, 1e-6) == []
        if ".nii" in path.suffixes:
            affines = [nibabel.load(folder / path.name).affine for folder in (tmp_path / "in", tmp_path / "own")]
            np.testing.assert_allclose(*affines, atol=1e-6)


def _write(image: sitk.Image, path: Path, *, compressed: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path


CUTS = 52


def damaged_files(image: sitk.Image, folder: Path, write_series: Write) -> list[Path]:
    """300 files and folders that are no volume; most are whole ones cut somewhere."""
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    array[0, 0, 0] = np.nan
    kinds = {"a.mha": False, "b.mha": True, "c.nii": False, "d.nii.gz": True, "e.nrrd": True}
    made = []

    def add(name: str, content: bytes) -> None:
        path = folder / name
        path.write_bytes(content)
        made.append(path)

    for name, compressed in kinds.items():
        letter, _, suffix = name.partition(".")
        whole = _write(image, folder / f"whole.{suffix}", compressed=compressed)
        content = whole.read_bytes()
        whole.unlink()
        for cut in range(CUTS):
            add(f"{letter}{cut:02}.{suffix}", content[: cut * len(content) // CUTS])
        add(f"{letter}_magic.{suffix}", b"\xff\xfe\x00\x01" * 100 + content[400:])
        add(f"{letter}_text.{suffix}", b"Dear colleague,\n")
        add(f"{letter}_nan.{suffix}", b"")
        _write(sitk.GetImageFromArray(array), made[-1], compressed=compressed)
        made.append(folder / f"{letter}_folder.{suffix}")
        made[-1].mkdir()
        add(f"{letter}_four.{suffix}", b"")
        _write(sitk.JoinSeries([image, image]), made[-1], compressed=compressed)
        add(f"{letter}_colour.{suffix}", b"")
        _write(sitk.Compose([image, image, image]), made[-1], compressed=compressed)
    header = _write(image, folder / "whole.mha").read_bytes()
    (folder / "whole.mha").unlink()
    add("spacing.mha", header.replace(b"ElementSpacing = ", b"ElementSpacing = -"))
    add("gigantic.mha", header.replace(b"DimSize = ", b"DimSize = 9999"))
    add("zero.mha", header.replace(b"DimSize = ", b"DimSize = 0 0 0\nX = "))
    add("endless.mha", b"Comment = " + b"x" * 500_000)
    for name, damage in {
        "missing": lambda files: files[2].unlink(),
        "cut": lambda files: files[2].write_bytes(files[2].read_bytes()[:-9]),
        "head": lambda files: files[2].write_bytes(files[2].read_bytes()[:300]),
        "twice": lambda files: (files[0].parent / "copy.dcm").write_bytes(files[2].read_bytes()),
        "text": lambda files: files[2].write_text("Dear colleague,"),
        "empty": lambda files: files[2].write_bytes(b""),
    }.items():
        damage(write_series(image, folder / name))  # type: ignore[no-untyped-call]
        made.append(folder / name)
    return made


def test_three_hundred_damaged_inputs_have_a_line_each_and_the_sound_ones_a_mask(
    model: TrainedModel,
    tmp_path: Path,
    write_series: Write,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 900, (5, 12, 10)).astype(np.int16))
    image.SetDirection(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation("PIR"))
    (tmp_path / "in").mkdir()
    damaged = damaged_files(image, tmp_path / "in", write_series)
    assert len(damaged) == 300
    for number, suffix in enumerate([".mha", ".nii.gz", ".nrrd", ".nii"]):
        _write(image, tmp_path / "in" / f"{'bcde'[number]}30_sound{suffix}")
    write_series(image, tmp_path / "in" / "sound_series")
    monkeypatch.setattr("textseg.inference.loading.load", lambda *_, **__: model)
    arguments = ["predict", "run", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--format", ".mha"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "5 masks written" in result.stdout
    heading, *lines = result.stderr.splitlines()
    assert heading == "300 of 305 volumes failed:"
    assert len(lines) == 300
    for path in damaged:
        (line,) = [line for line in lines if f"{path}" in line]
        assert len(line) < len(str(path)) + 400
    masks = sorted(stem(path) for path in (tmp_path / "out").glob("*.mha"))
    assert masks == ["b30_sound", "c30_sound", "d30_sound", "e30_sound", "sound_series"]
    assert len(list((tmp_path / "out").iterdir())) == 10  # and their sidecars
    assert capfd.readouterr().err == ""


def test_files_of_channels_are_joined_by_the_ends_of_their_names(tmp_path: Path) -> None:
    names = ("a_0000.nii.gz", "a_0001.mha", "deep/a_0000.mha", "deep/a_0001.mha", "b_0001.mha", "vector.mha")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    inputs = find_inputs([str(tmp_path)])
    assert join_channels(inputs, ["image"]) == inputs  # a model of one channel reads files as they are
    jobs = {job.name: job for job in plan_jobs(join_channels(inputs, ["T1", "T2"]), tmp_path / "out")}
    assert jobs.keys() == {"a", "deep/a", "b", "vector"}
    first = jobs["a"].input
    assert isinstance(first, ChannelFiles)
    assert dict(first.files) == {"T1": tmp_path / names[0], "T2": tmp_path / names[1]}
    assert jobs["a"].mask == tmp_path / "out/a.nii.gz"
    assert jobs["b"].fault == f"'{tmp_path / 'b'}' has no channel 'T1' (b_0000)."
    assert jobs["vector"].input == tmp_path / "vector.mha"
    swapped = [volume for volume in join_channels(inputs, ["T1", "T2"], ["_0001", "_0000"]) if volume.name == "a"]
    assert isinstance(swapped[0], ChannelFiles)
    assert swapped[0].first == tmp_path / names[1]
    with pytest.raises(RunError, match="--channel-suffixes: 2 are needed, one for each of T1, T2"):
        join_channels(inputs, ["T1", "T2"], ["_0000"])
    (tmp_path / "a_0000.mha").touch()
    with pytest.raises(DataError, match="are the same channel of one image"):
        join_channels(find_inputs([str(tmp_path)]), ["T1", "T2"])


def test_pictures_of_a_folder_are_read_where_it_holds_no_volume(tmp_path: Path) -> None:
    for name in ("a.png", "mask.png", "mask_overlay.png", ".b.png"):
        (tmp_path / name).touch()
    (tmp_path / "mask.json").write_text('{"mask": "mask.png", "labels": {}, "made": {}}')
    assert list(find_inputs([str(tmp_path)])) == [tmp_path / "a.png"]
    assert list(find_inputs([str(tmp_path)], masks=True)) == [tmp_path / "a.png", tmp_path / "mask.png"]
    (job,) = plan_jobs(find_inputs([str(tmp_path)]), tmp_path / "out")
    assert (job.mask.name, job.sidecar.name, job.picture.name) == ("a.png", "a.json", "a_overlay.png")
    (tmp_path / "c.mha").touch()
    assert list(find_inputs([str(tmp_path)])) == [tmp_path / "c.mha"]
