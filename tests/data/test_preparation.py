from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import center_of_mass

from textseg.contracts import Case
from textseg.data import preparation
from textseg.data.preparation import PreparedCase, missing_channels, prepare
from textseg.data.slice_geometry import (
    SliceGeometry,
    find_body,
    find_slice_geometry,
    highest,
    normalise,
    prepare_volume,
)
from textseg.errors import DataError
from textseg.recipe.schema import PreparationSettings
from textseg.volumes.files import Volume, read_volume, write_labels
from textseg.volumes.geometry import Geometry, restore
from textseg.volumes.scan import read_scan

SETTINGS = PreparationSettings(size=(40, 32))
LABELS = {0: 0, 7: 2, 9: 1}
DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def geometry_of(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> Geometry:
    slices, rows, columns = shape
    return Geometry((slices, columns, rows), (spacing[0], spacing[2], spacing[1]), (0.0, 0.0, 0.0), DIRECTION)


def write(array: NDArray[Any], path: Path, spacing: tuple[float, float, float] = (4.0, 0.8, 0.8)) -> Path:
    """A canonical array [S, H, W] as a file."""
    geometry = geometry_of(array.shape, spacing)
    image = sitk.GetImageFromArray(restore(array, geometry))
    image.SetSpacing(geometry.spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def scan(shape: tuple[int, int, int] = (3, 61, 47)) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """An ellipse of body in air; in it two ellipses with the values 9 (upper) and 7."""
    _, height, width = shape
    rows, columns = np.mgrid[:height, :width]

    def ellipse(row: float, column: float, high: float, wide: float) -> NDArray[np.bool_]:
        inside = ((rows / height - row) / high) ** 2 + ((columns / width - column) / wide) ** 2 < 1
        return np.broadcast_to(inside, shape)

    image = np.zeros(shape, np.float32)
    image[ellipse(0.5, 0.55, 0.42, 0.4)] = 300
    image[ellipse(0.35, 0.5, 0.12, 0.17)] = 700
    mask = np.zeros(shape, np.uint8)
    mask[ellipse(0.35, 0.5, 0.12, 0.17)] = 9
    mask[ellipse(0.65, 0.6, 0.12, 0.17)] = 7
    mask[0][mask[0] == 7] = 0  # the first slice shows only the upper one
    return image, mask


def case_in(folder: Path, number: str = "1", **changes: NDArray[Any]) -> Case:
    image, mask = scan()
    image_path = write(changes.get("image", image), folder / f"{number}_image.mha")
    mask_path = write(changes.get("mask", mask), folder / f"{number}_mask.mha")
    return Case(f"{number}_t2", number, image_path, mask_path)


def prepare_one(
    case: Case, cache: Path, settings: PreparationSettings = SETTINGS, labels: Any = LABELS
) -> PreparedCase:
    (prepared,) = prepare([case], lambda _: labels, settings, cache)
    return prepared


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def dice(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@pytest.mark.parametrize("crop", ["body", "none"])
@pytest.mark.parametrize("size", [(96, 96), (97, 75), (64, 128)])
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((3, 141, 117), (4.0, 0.8, 0.8)), ((2, 120, 161), (3.3, 1.2, 0.5)), ((2, 90, 60), (1.0, 0.7, 1.3))],
)
def test_restoring_undoes_preparing(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], size: tuple[int, int], crop: Any
) -> None:
    image, labels = scan(shape)
    settings = PreparationSettings(size=size, crop=crop)
    slice_geometry = find_slice_geometry(read_scan(Volume(image, spacing, geometry_of(shape, spacing))), settings)
    mask = slice_geometry.prepare(torch.from_numpy(labels), size, labels=True)
    assert mask.dtype == torch.uint8
    assert set(mask.unique().tolist()) <= {0, 7, 9}
    logits = F.one_hot(mask.long(), 10).movedim(-1, 1).float()
    kept = logits.clone()
    result = slice_geometry.restore(logits).numpy()
    assert result.shape == shape
    assert torch.equal(logits, kept)
    for value in (7, 9):
        assert dice(result == value, labels == value) > 0.95
    # The centre stays, as far as prepared pixels can tell.
    pixel = max(1, slice_geometry.height / size[0], slice_geometry.width / size[1])
    np.testing.assert_allclose(center_of_mass(result == 9), center_of_mass(labels == 9), atol=0.3 * pixel)


@pytest.mark.parametrize("ratio", [2, 3, 4, 6])
def test_image_and_mask_lie_on_each_other_at_whole_ratios(ratio: int) -> None:
    side = 32 * ratio
    row, column = np.mgrid[:side, :side]
    shifts = []
    for centre in range(6):  # edges at every place within a prepared pixel
        middle = side / 2 + centre * 0.7
        labels = ((row - middle) ** 2 + (column - middle) ** 2 < (9.3 * ratio) ** 2).astype(np.uint8)[None]
        slice_geometry = SliceGeometry(0, 0, side, side, (side, side))
        image = slice_geometry.prepare(torch.from_numpy(labels).float(), (32, 32), labels=False)[0].numpy()
        mask = slice_geometry.prepare(torch.from_numpy(labels), (32, 32), labels=True)[0].numpy()
        shifts.append(np.subtract(center_of_mass(mask), center_of_mass(image)) * ratio)
    np.testing.assert_allclose(np.mean(shifts, axis=0), 0, atol=0.1)  # native pixels


def test_of_labels_in_one_pixel_most_wins_and_the_background_yields() -> None:
    native = torch.tensor([[0, 0, 5, 5, 3, 3], [0, 5, 5, 0, 3, 3], [7, 7, 0, 5, 0, 0], [7, 7, 5, 0, 0, 0]])
    slice_geometry = SliceGeometry(0, 0, 4, 6, (4, 6))
    prepared = slice_geometry.prepare(native[None].to(torch.uint8), (4, 6), labels=True)
    assert torch.equal(prepared[0], native)  # nothing to decide
    stripes = torch.tensor([0, 4] * 8, dtype=torch.uint8).expand(1, 16, 16)
    assert SliceGeometry(0, 0, 16, 16, (16, 16)).prepare(stripes, (8, 8), labels=True)[0, :, 1:-1].eq(4).all()


@pytest.mark.parametrize(
    "slice_geometry",
    [
        SliceGeometry(top=-7, left=-4, height=64, width=45, native_size=(50, 37)),  # reaches beyond on every side
        SliceGeometry(top=5, left=6, height=32, width=24, native_size=(50, 37)),  # inside
        SliceGeometry(top=-6, left=8, height=50, width=40, native_size=(50, 37)),  # both
    ],
)
def test_pixels_lie_where_the_slice_geometry_says(slice_geometry: SliceGeometry) -> None:
    size = (31, 22)
    native = torch.stack(torch.meshgrid(torch.arange(50.0), torch.arange(37.0), indexing="ij"))
    rows = slice_geometry.top + (torch.arange(31) + 0.5) * slice_geometry.height / 31 - 0.5
    columns = slice_geometry.left + (torch.arange(22) + 0.5) * slice_geometry.width / 22 - 0.5
    inside = ((rows > 4) & (rows < 45))[:, None] & ((columns > 4) & (columns < 32))  # far from the edge's zeros
    prepared = slice_geometry.prepare(native, size, labels=False)
    inside[[0, -1]] = inside[:, [0, -1]] = False  # where the box cuts the filter
    for result, expected in zip(prepared, (rows[:, None].expand(size), columns.expand(size)), strict=True):
        difference = (result - expected)[inside]  # the filter's few taps are not quite symmetric: no bias, some ripple
        assert abs(float(difference.mean())) < 0.02
        assert float(difference.abs().max()) < 0.15

    ramps = torch.stack([rows[:, None].expand(size), columns.expand(size)])
    box = torch.zeros(50, 37, dtype=torch.bool)
    box[
        max(0, slice_geometry.top) + 2 : slice_geometry.top + slice_geometry.height - 2,
        max(0, slice_geometry.left) + 2 : slice_geometry.left + slice_geometry.width - 2,
    ] = True
    for ramp, expected in zip(ramps, native, strict=True):
        for edge in torch.arange(0.5, float(expected.max())):
            logits = torch.stack([torch.zeros_like(ramp), ramp - edge])[None]
            for shift in (-0.02, 0.02):  # of the edge, which lies between two pixels whatever it is moved by
                result = slice_geometry.restore(logits + torch.tensor([0, shift])[:, None, None])[0]
                assert torch.equal(result[box], (expected > edge)[box].to(torch.uint8))


def test_classes_are_those_of_enlarged_logits() -> None:
    logits = torch.randn(2, 20, 31, 22, generator=torch.Generator().manual_seed(0))
    slice_geometry = SliceGeometry(top=-7, left=6, height=64, width=24, native_size=(50, 37))
    enlarged = F.interpolate(logits, (64, 24), mode="bilinear", align_corners=False).argmax(1)
    expected = torch.zeros(2, 50, 37, dtype=torch.uint8)
    expected[:, :, 6:30] = enlarged[:, 7:57]
    assert torch.equal(slice_geometry.restore(logits), expected)


def test_of_equal_maps_the_first_is_the_highest() -> None:
    maps = torch.randint(0, 3, (9, 30, 40), generator=torch.Generator().manual_seed(0)).float()
    values, result = highest(maps)
    assert torch.equal(values, maps.amax(0))
    assert torch.equal(result, maps.argmax(0).to(torch.uint8))


def test_beyond_the_box_is_background_whatever_the_logits() -> None:
    slice_geometry = SliceGeometry(top=10, left=5, height=20, width=30, native_size=(50, 40))
    logits = torch.full((2, 3, 10, 15), -50.0)
    logits[:, 2] = 50.0
    result = slice_geometry.restore(logits)
    expected = torch.zeros(2, 50, 40, dtype=torch.uint8)
    expected[:, 10:30, 5:35] = 2
    assert torch.equal(result, expected)


@pytest.mark.parametrize("spacing", [0.3, 0.6, 0.7])
@pytest.mark.parametrize("side", [100, 384, 448])
def test_a_slice_that_fits_is_left_as_it_is(side: int, spacing: float) -> None:
    image = np.random.default_rng(0).random((1, side, side), dtype=np.float32)
    volume = Volume(image, (4.0, spacing, spacing), geometry_of(image.shape, (4.0, spacing, spacing)))
    slice_geometry = find_slice_geometry(read_scan(volume), PreparationSettings(size=(side, side), crop="none"))
    assert slice_geometry == SliceGeometry(0, 0, side, side, (side, side))
    prepared = slice_geometry.prepare(torch.from_numpy(image), (side, side), labels=False)
    torch.testing.assert_close(prepared, torch.from_numpy(image))


def test_the_box_holds_the_body_and_has_the_shape_of_the_prepared_slice_in_millimetres() -> None:
    image, _ = scan((2, 200, 160))
    spacing = (4.0, 0.5, 0.9)
    top, left, bottom, right = find_body(image[None])
    assert (top, bottom) == pytest.approx((16, 184), abs=3)  # the ellipse's ends are narrower than a body must be
    assert (left, right) == pytest.approx((24, 152), abs=3)
    slice_geometry = find_slice_geometry(
        read_scan(Volume(image, spacing, geometry_of(image.shape, spacing))), PreparationSettings(size=(96, 64))
    )
    assert slice_geometry.top <= top
    assert slice_geometry.left <= left
    assert slice_geometry.top + slice_geometry.height >= bottom
    assert slice_geometry.left + slice_geometry.width >= right
    assert slice_geometry.height * 0.5 / (slice_geometry.width * 0.9) == pytest.approx(96 / 64, rel=0.02)
    assert slice_geometry.width - (right - left) <= 1  # the smallest: the columns fill it


def test_noisy_air_is_no_body_and_an_even_volume_is_all_body() -> None:
    image, _ = scan((3, 100, 80))
    noisy = image + np.random.default_rng(0).random(image.shape, dtype=np.float32) * 15
    assert find_body(noisy[None]) == find_body(image[None])
    assert find_body(np.full((1, 2, 30, 20), 4.0, np.float32)) == (0, 0, 30, 20)


def test_intensities() -> None:
    array = np.random.default_rng(0).gamma(2, 100, (3, 50, 40)).astype(np.float32)
    array[0, 0, 0] = 1e6  # one bright voxel must not darken all others
    shares, intensities = normalise(array, SETTINGS)
    assert intensities == pytest.approx(np.percentile(array, (0.5, 25, 50, 75, 99.5)))
    low, high = intensities[0], intensities[-1]
    assert (float(shares.min()), float(shares.max())) == pytest.approx((0, 1))
    np.testing.assert_allclose(shares, np.clip((array - low) / (high - low), 0, 1), atol=1e-5)
    scores, _ = normalise(array, PreparationSettings(size=(40, 32), intensity="zscore"))
    assert float(scores.mean()) == pytest.approx(0, abs=1e-3)
    assert float(scores.std()) == pytest.approx(1, abs=1e-3)
    for intensity in ("percentiles", "zscore"):
        even, _ = normalise(
            np.full((2, 5, 5), 3.0, np.float32), PreparationSettings(size=(40, 32), intensity=intensity)
        )
        assert np.abs(even).max() == 0


@pytest.mark.parametrize("intensity", ["percentiles", "zscore"])
def test_the_unit_of_the_intensities_makes_no_difference(intensity: Literal["percentiles", "zscore"]) -> None:
    image, _ = scan((3, 100, 80))
    settings, spacing = PreparationSettings(size=(40, 32), intensity=intensity), (4.0, 0.8, 0.8)
    expected = prepare_volume(read_scan(Volume(image, spacing, geometry_of(image.shape, spacing))), settings)
    for unit in (2.0**-40, 2.0**-20, 2.0**40):
        volume = Volume(image * np.float32(unit), spacing, geometry_of(image.shape, spacing))
        prepared = prepare_volume(read_scan(volume), settings)
        assert prepared.slice_geometry == expected.slice_geometry
        np.testing.assert_array_equal(prepared.image, expected.image)


def test_a_prepared_case_is_memory_mapped_and_says_what_it_shows(tmp_path: Path) -> None:
    prepared = prepare_one(case_in(tmp_path / "data"), tmp_path / "cache")
    assert isinstance(prepared.image, np.memmap)
    assert isinstance(prepared.mask, np.memmap)
    assert (prepared.image.shape, prepared.mask.shape) == ((3, 1, 40, 32), (3, 40, 32))
    assert (prepared.image.dtype, prepared.mask.dtype) == (np.float16, np.uint8)
    with pytest.raises(ValueError, match="read-only"):
        prepared.image[0, 0, 0, 0] = 1
    assert prepared.present == ((1,), (1, 2), (1, 2))
    assert prepared.slice_count == 3
    assert [tuple(np.unique(plane)) for plane in prepared.mask] == [(0, 1), (0, 1, 2), (0, 1, 2)]
    assert prepared.native_spacing_mm == pytest.approx((4.0, 0.8, 0.8))
    slice_geometry = prepared.slice_geometry
    assert prepared.spacing_mm == pytest.approx(
        (4.0, 0.8 * slice_geometry.height / 40, 0.8 * slice_geometry.width / 32)
    )
    assert float(prepared.image.min()) == 0
    assert float(prepared.image.max()) <= 1
    native = prepared.native_mask(LABELS)[0]
    labels = scan()[1]
    assert np.array_equal(native, np.select([labels == 9, labels == 7], [1, 2]))


def test_what_lies_beyond_the_file_is_as_dark_as_its_darkest_part(tmp_path: Path) -> None:
    image = np.full((2, 40, 10), 100.0, np.float32)
    image[:, 10:30, 3:8] = 200.0
    case = case_in(tmp_path, image=image, mask=np.zeros((2, 40, 10), np.uint8))
    prepared = prepare_one(
        case, tmp_path / "cache", PreparationSettings(size=(40, 40), intensity="zscore", crop="none")
    )
    assert prepared.slice_geometry.left < 0
    assert float(prepared.image[..., 0].max()) == float(prepared.image.min()) < -0.5


def test_a_store_opens_few_files(tmp_path: Path) -> None:
    prepared = prepare_one(case_in(tmp_path), tmp_path / "cache")
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    others = [replace(prepared) for _ in range(50)]
    assert sum(float(second.image[1].max()) for second in others) > 0
    after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    assert after <= before + 2


def test_the_address_is_of_the_content(tmp_path: Path) -> None:
    cache, case = tmp_path / "cache", case_in(tmp_path / "data")
    first = prepare_one(case, cache)
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere")
    moved = Case("other", "9", tmp_path / "elsewhere" / "1_image.mha", tmp_path / "elsewhere" / "1_mask.mha")
    assert prepare_one(moved, cache).key == first.key

    image, mask = scan()
    image[0, 0, 0] += 1
    mask[0, 30, 20] = 7
    keys = {
        first.key,
        prepare_one(case_in(tmp_path / "2", image=image), cache).key,
        prepare_one(case_in(tmp_path / "3", mask=mask), cache).key,
        prepare_one(case, cache, labels={0: 0, 7: 1, 9: 2}).key,
        prepare_one(case, cache, labels={**LABELS, 8: 0}).key,
        prepare_one(case, cache, PreparationSettings(size=(40, 31))).key,
        prepare_one(case, cache, PreparationSettings(size=(40, 32), crop="none")).key,
        prepare_one(case, cache, PreparationSettings(size=(40, 32), intensity="zscore")).key,
    }
    assert len(keys) == 8
    assert prepare_one(case, cache, labels=dict(reversed(LABELS.items()))).key == first.key


def test_a_stored_case_is_not_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_in(tmp_path)
    first = prepare_one(case, tmp_path / "cache")
    monkeypatch.setattr(preparation, "read_scan", lambda *_, **__: pytest.fail("read again"))
    assert prepare_one(case, tmp_path / "cache") == first


def test_a_store_of_an_earlier_version_is_written_anew(tmp_path: Path) -> None:
    case = case_in(tmp_path)
    first = prepare_one(case, tmp_path / "cache")
    facts = json.loads((first.folder / "case.json").read_text())
    (first.folder / "case.json").write_text(json.dumps({**facts, "intensities": [], "channel_names": None}))
    again = prepare_one(case, tmp_path / "cache")
    assert again == first
    assert [len(percentiles) for percentiles in again.intensities] == [5]


def test_the_order_of_the_cases_is_kept_and_progress_told(tmp_path: Path) -> None:
    cases = []
    for number in range(7):
        image, mask = scan()
        image[0, 0, 0] = number
        cases.append(case_in(tmp_path, str(number), image=image, mask=mask))
    calls: list[tuple[int, int]] = []
    prepared = prepare(
        cases, lambda _: LABELS, SETTINGS, tmp_path / "cache", progress=lambda *counts: calls.append(counts)
    )
    assert [case.case for case in prepared] == cases
    assert len({case.key for case in prepared}) == 7
    assert calls == [(number, 7) for number in range(1, 8)]


def failing_save(mistake: BaseException) -> Callable[..., None]:
    save = np.save

    def fail(path: Path, array: NDArray[Any]) -> None:
        save(path, array)
        if array.dtype == np.uint8:  # the image stands, the mask does not
            raise mistake

    return fail


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, cache = case_in(tmp_path / "data"), tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", failing_save(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            prepare_one(case, cache)
    assert files_in(cache) == []
    assert prepare_one(case, cache).slice_count == 3


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, cache = case_in(tmp_path / "data"), tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", failing_save(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        with pytest.raises(DataError, match="Case '1_t2': .*No space left on device. Make room, or set TEXTSEG_CACHE"):
            prepare_one(case, cache)
    assert [path.name for path in cache.rglob("*") if len(path.name) > 6] == []
    assert prepare_one(case, cache).slice_count == 3


def test_a_store_that_is_no_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match="Case '1_t2': its slices can't be written to .*: Not a directory"):
        prepare_one(case_in(tmp_path), tmp_path / "cache")


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from textseg.contracts import Case
from textseg.data.preparation import prepare
from textseg.recipe.schema import PreparationSettings
save = np.save
def fail(path, array):
    save(path, array)
    if array.dtype == np.uint8:
        os.kill(os.getpid(), signal.SIGKILL)
np.save = fail
image, mask, cache = map(Path, sys.argv[1:])
prepare([Case("1_t2", "1", image, mask)], lambda _: {0: 0, 7: 2, 9: 1}, PreparationSettings(size=(40, 32)), cache)
"""


def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    case, cache = case_in(tmp_path / "data"), tmp_path / "cache"
    done = subprocess.run([sys.executable, "-c", KILLED, str(case.image), str(case.mask), str(cache)])
    assert done.returncode == -signal.SIGKILL
    assert all(path.name.startswith(".") for path in (cache / "slices").glob("*/*"))
    assert files_in(cache)  # it was killed in the middle
    prepared = prepare_one(case, cache)
    assert prepared.present == ((1,), (1, 2), (1, 2))


def test_two_processes_may_prepare_the_same_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, cache = case_in(tmp_path / "data"), tmp_path / "cache"
    map_labels = preparation.map_labels
    earlier: list[PreparedCase] = []

    def overtaken(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(preparation, "map_labels", map_labels)
            earlier.append(prepare_one(case, cache))  # begins later and ends earlier
        return map_labels(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "map_labels", overtaken)
        later = prepare_one(case, cache)
    assert later == earlier[0]
    assert sorted(path.name for path in files_in(cache)) == ["case.json", "image.npy", "mask.npy"]

    many = prepare([case] * 6, lambda _: LABELS, SETTINGS, tmp_path / "fresh")
    assert len({case.key for case in many}) == 1
    assert len(files_in(tmp_path / "fresh")) == 3


@pytest.mark.parametrize("name", ["case.json", "image.npy", "mask.npy"])
def test_a_folder_that_lost_a_file_is_prepared_again(tmp_path: Path, name: str) -> None:
    case, cache = case_in(tmp_path), tmp_path / "cache"
    first = prepare_one(case, cache)
    image = np.array(first.image)
    (first.folder / name).unlink()
    again = prepare_one(case, cache)
    assert again == first
    assert np.array_equal(again.image, image)
    assert json.loads((again.folder / "case.json").read_text())


@pytest.mark.parametrize("name", ["case.json", "image.npy", "mask.npy"])
def test_a_bit_flipped_in_the_store_is_noticed_and_the_case_prepared_again(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case, cache = case_in(tmp_path), tmp_path / "cache"
    first = prepare_one(case, cache)
    image, mask = np.array(first.image), np.array(first.mask)
    content, draw = (first.folder / name).read_bytes(), random.Random(0)
    assert not capsys.readouterr().err
    for position in sorted({9, 30, len(content) - 1, *(draw.randrange(len(content)) for _ in range(12))}):
        changed = bytearray(content)
        changed[position] ^= 1 << draw.randrange(8)
        (first.folder / name).write_bytes(changed)
        again = prepare_one(case, cache)
        assert again == first
        assert np.array_equal(again.image, image)
        assert np.array_equal(again.mask, mask)
        # In case.json it may hit the name of the checksums, as if a version without them had written the file.
        assert "Case '1_t2': its slices in" in capsys.readouterr().err or name == "case.json"
    assert sorted(path.name for path in files_in(cache)) == ["case.json", "image.npy", "mask.npy"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"checksums": 3, "intensities": [1, 2, 3, 4, 5]}', "[" * 100_000])
def test_facts_of_another_shape_are_written_anew(tmp_path: Path, content: str) -> None:
    first = prepare_one(case_in(tmp_path), tmp_path / "cache")
    (first.folder / "case.json").write_text(content)
    assert prepare_one(case_in(tmp_path), tmp_path / "cache") == first


def test_a_damaged_store_is_a_clear_error(tmp_path: Path) -> None:
    prepared = prepare_one(case_in(tmp_path), tmp_path / "cache")
    os.truncate(prepared.folder / "mask.npy", 200)
    with pytest.raises(DataError, match="Case '1_t2': its prepared slices in .*mask.npy' can't be read: .*Delete"):
        _ = prepared.mask
    (prepared.folder / "image.npy").write_bytes(b"")
    with pytest.raises(DataError, match="image.npy' can't be read"):
        _ = prepared.image


def test_a_value_that_the_labels_do_not_name_is_refused(tmp_path: Path) -> None:
    mask = scan()[1]
    mask[1, 5, 5] = 42
    with pytest.raises(DataError, match="Case '5_t2': the mask .*5_mask.mha' holds 42, .* name only 0, 7, 9"):
        prepare_one(case_in(tmp_path, "5", mask=mask), tmp_path / "cache")
    mask[0].flat[:200] = np.arange(200)
    with pytest.raises(DataError, match=r"holds 1, 2, 3, 4, 5, 6, 8, 10, 11, 12, \.\.\., and"):
        prepare_one(case_in(tmp_path, "5", mask=mask), tmp_path / "cache")
    assert files_in(tmp_path / "cache") == []


def test_an_image_and_a_mask_that_do_not_lie_on_each_other_are_refused(tmp_path: Path) -> None:
    case = case_in(tmp_path)
    shifted = replace(case, mask=write(scan()[1], tmp_path / "spacing.mha", (4.0, 0.8, 0.9)))
    with pytest.raises(DataError, match="Case '1_t2': .*do not lie on each other: spacing"):
        prepare_one(shifted, tmp_path / "cache")
    smaller = replace(case, mask=write(scan((3, 61, 46))[1], tmp_path / "size.mha"))
    with pytest.raises(DataError, match="Case '1_t2': .*size 3 x 47 x 61 against 3 x 46 x 61"):
        prepare_one(smaller, tmp_path / "cache")


def test_a_case_without_a_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Case '1_t2' has no mask"):
        prepare_one(replace(case_in(tmp_path), mask=None), tmp_path / "cache")


def test_every_bad_case_is_named_at_once_and_the_others_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [case_in(tmp_path, number) for number in "123"]
    bad = [replace(cases[0], image=tmp_path / "gone.mha"), replace(cases[1], mask=tmp_path / "lost.mha")]
    with pytest.raises(DataError) as error:
        prepare([*bad, cases[2]], lambda _: LABELS, SETTINGS, tmp_path / "cache")
    heading, *lines = str(error.value).splitlines()
    assert heading == "2 of 3 cases can't be prepared:"
    assert [name in line for name, line in zip(("gone.mha", "lost.mha"), lines, strict=True)] == [True, True]
    assert len(list((tmp_path / "cache").rglob("case.json"))) == 1

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of a library")

    monkeypatch.setattr("textseg.data.preparation.read_scan", broken)
    with pytest.raises(DataError, match="Case '1_t2' can't be prepared: ZeroDivisionError: of a library"):
        prepare([cases[0]], lambda _: LABELS, SETTINGS, tmp_path / "other")


def test_channels_are_prepared_each_by_itself_in_one_box(tmp_path: Path) -> None:
    case = case_in(tmp_path)
    second = write(1000 - 3 * scan()[0], tmp_path / "second.mha")
    both = prepare_one(replace(case, image={"T1": case.image, "T2": second}), tmp_path / "cache")
    assert both.channel_names == ("T1", "T2")
    assert both.image.shape == (3, 2, 40, 32)
    alone = prepare_one(case, tmp_path / "cache")
    whole = PreparationSettings(size=(40, 32), crop="none")
    pair = prepare_one(replace(case, image={"T1": case.image, "T2": second}), tmp_path / "cache", whole)
    for channel, path in enumerate((case.image, second)):
        single = prepare_one(replace(case, image=path), tmp_path / "cache", whole)
        np.testing.assert_array_equal(pair.image[:, channel], single.image[:, 0])
        assert pair.intensities[channel] == single.intensities[0]
    assert alone.key != both.key


def test_a_case_that_lacks_a_channel_is_one_line() -> None:
    both, t1 = ("T1", "T2"), ("T1",)
    assert missing_channels({"a": both, "b": both}) == missing_channels({}) == {}
    assert missing_channels({"a": t1, "b": both, "c": t1}) == {
        name: f"Case '{name}' has no channel 'T2'; the others have T1, T2." for name in "ac"
    }
    colour = ("image 0", "image 1")
    assert missing_channels({"a": ("image",), "b": ("image",), "c": colour}) == {
        "c": "Case 'c' has the channels image 0, image 1, the others image."
    }
    assert list(missing_channels({"a": both, "b": both, "c": both[::-1]})) == ["c"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone.mha"):
        prepare_one(replace(case_in(tmp_path), image=tmp_path / "gone.mha"), tmp_path / "cache")


def test_a_real_spine_stands_upright(spider_folder: Path, tmp_path: Path) -> None:
    from textseg_spine.spider import Spider

    dataset = Spider(folder=str(spider_folder))
    case = next(case for case in dataset.cases() if case.mask is not None)
    settings = PreparationSettings(size=(160, 128))
    prepared = prepare_one(case, tmp_path, settings, dataset.label_map(case))
    atlas, mask = dataset.atlas, np.array(prepared.mask)
    present = {index for plane in prepared.present for index in plane}
    bodies = [
        center_of_mass(mask == atlas[name].index)
        for name in ("L1", "L2", "L3", "L4", "L5")
        if atlas[name].index in present
    ]
    assert len(bodies) > 2
    rows = [row for _, row, _ in bodies]
    assert rows == sorted(rows)  # from superior to inferior
    canal = center_of_mass(mask == atlas["SC"].index)
    assert canal[2] > np.mean([column for *_, column in bodies])  # behind the bodies: columns run to posterior
    native = prepared.native_mask(dataset.label_map(case))[0]
    logits = F.one_hot(torch.from_numpy(mask).long(), atlas.class_count).movedim(-1, 1).float()
    middle = len(mask) // 2
    result = prepared.slice_geometry.restore(logits[middle : middle + 1]).numpy()[0]
    assert dice(result > 0, native[middle] > 0) > 0.95
    assert read_volume(case.image).array.shape[1:] == prepared.slice_geometry.native_size


AXES = [(a, b, c) for a, b, c in permutations(("RL", "AP", "IS"))]
ORIENTATIONS = ["".join(pair[sense] for pair, sense in zip(axes, senses, strict=True))
                for axes in AXES for senses in product((0, 1), repeat=3)]  # fmt: skip


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz"])
def test_every_orientation_is_prepared_alike_and_comes_back_in_its_own_geometry(tmp_path: Path, suffix: str) -> None:
    image, mask = scan((3, 37, 29))
    upright = {}
    for name, array in (("image", image), ("mask", mask)):
        upright[name] = sitk.GetImageFromArray(array)
        upright[name].SetSpacing((0.8, 1.1, 4.0))
        upright[name].SetOrigin((12.5, -7.25, 100.0))
        upright[name].SetDirection(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation("PIR"))
    assert len(set(ORIENTATIONS)) == 48
    prepared: dict[str, PreparedCase] = {}
    outputs = {}
    for orientation in ORIENTATIONS:
        paths = {name: tmp_path / f"{orientation}_{name}{suffix}" for name in upright}
        for name, path in paths.items():
            sitk.WriteImage(sitk.DICOMOrient(upright[name], orientation), str(path))
        case = Case(orientation, orientation, paths["image"], paths["mask"])
        result = prepared[orientation] = prepare_one(case, tmp_path / "cache")
        logits = F.one_hot(torch.from_numpy(result.mask.astype(np.int64)), 3).movedim(-1, 1).float()
        labels = result.slice_geometry.restore(logits).numpy()
        geometry = read_volume(paths["image"]).geometry
        output = tmp_path / f"{orientation}_output{suffix}"
        write_labels(labels, geometry, output)
        written, source = sitk.ReadImage(str(output)), sitk.ReadImage(str(paths["image"]))
        assert written.GetSize() == source.GetSize()
        for what in ("Spacing", "Origin", "Direction"):
            assert getattr(written, f"Get{what}")() == pytest.approx(getattr(source, f"Get{what}")(), abs=1e-5)
        outputs[orientation] = sitk.GetArrayFromImage(sitk.DICOMOrient(written, "PIR"))
    first = prepared["RAI"]
    assert set(np.unique(outputs["RAI"])) == {0, 1, 2}
    for orientation in ORIENTATIONS:
        np.testing.assert_array_equal(prepared[orientation].image, first.image, err_msg=orientation)
        np.testing.assert_array_equal(prepared[orientation].mask, first.mask, err_msg=orientation)
        np.testing.assert_array_equal(outputs[orientation], outputs["RAI"], err_msg=orientation)


def test_two_dimensions_are_prepared_as_one_slice(tmp_path: Path) -> None:
    image, mask = scan((1, 61, 47))
    for name, array in (("image", image[0]), ("mask", mask[0])):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"{name}.mha"))
    result = prepare_one(Case("a", "a", tmp_path / "image.mha", tmp_path / "mask.mha"), tmp_path / "cache")
    assert result.image.shape == (1, 1, *SETTINGS.size)
    assert result.present == ((1,),)


def test_an_interrupted_preparation_goes_on_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case_in(tmp_path, str(number)) for number in range(1, 6)]
    for case in cases:  # files of one content are one entry
        case.image.write_bytes(write(scan()[0] + int(case.patient), tmp_path / "new.mha").read_bytes())
    written = []
    original = preparation._write_case

    def counting(case: Case, *arguments: Any) -> Any:
        if case.patient == "4" and "interrupted" not in written:
            while len(written) < 3:  # the others have threads of their own
                time.sleep(0.001)
            raise KeyboardInterrupt
        written.append(case.patient)
        return original(case, *arguments)

    monkeypatch.setattr(preparation, "_write_case", counting)
    with pytest.raises(KeyboardInterrupt):
        prepare(cases, lambda _: LABELS, SETTINGS, tmp_path / "cache")
    before = len(written)
    written.append("interrupted")
    prepare([case for case in cases if case.patient != "4"], lambda _: LABELS, SETTINGS, tmp_path / "cache")
    written += ["again"] * 4
    prepare(cases, lambda _: LABELS, SETTINGS, tmp_path / "cache")
    assert sorted(patient for patient in written if patient.isdecimal()) == ["1", "2", "3", "4", "5"]
    assert before >= 3


def test_the_plane_decides_which_slices_are_prepared(tmp_path: Path) -> None:
    case = case_in(tmp_path)
    cache = tmp_path / "cache"
    sagittal, axial = (
        prepare([case], lambda _: LABELS, SETTINGS, cache, plane=plane)[0] for plane in ("sagittal", "axial")
    )
    assert sagittal.key == prepare_one(case, cache).key != axial.key
    native = axial.native_mask(LABELS)[0]
    assert axial.slice_count == native.shape[0] == sagittal.slice_geometry.native_size[0]
    np.testing.assert_array_equal(native, np.moveaxis(sagittal.native_mask(LABELS)[0], (0, 1, 2), (2, 0, 1))[..., ::-1])
    assert axial.native_spacing_mm == tuple(sagittal.native_spacing_mm[axis] for axis in (1, 2, 0))
