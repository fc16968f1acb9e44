from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from typer.testing import CliRunner

from textseg.cli.entry import app
from textseg.errors import DataError, PromptError
from textseg.inference.renaming import find_convention, read_point
from textseg.registry.discovery import installed_registry
from textseg.volumes.files import read_labels
from textseg_spine.atlas import lumbar_spider, whole_spine

ROW = lumbar_spider().sequence
SPIDER = {name: value for value, name in lumbar_spider().label_schemes["spider"].items()}


def column_names(first: str, last: str) -> tuple[str, ...]:
    return ROW[ROW.index(first) : ROW.index(last) + 1]


def column(first: str, last: str, scheme: dict[str, int] = SPIDER) -> NDArray[np.uint8]:
    """Label values of a straight spine in canonical order, with the canal behind it. What has no value is empty."""
    names = column_names(first, last)
    heights = [6 if "/" in name else 14 for name in names]
    labels = np.zeros((3, sum(heights) + 4, 40), np.uint8)
    for name, height, end in zip(names, heights, np.cumsum(heights), strict=True):
        labels[:, 2 + end - height : 2 + end, 4:18] = scheme.get(name, 0)
    labels[:, :, 22:26] = scheme["SC"]
    return labels


def write(path: Path, labels: NDArray[np.uint8]) -> Path:
    """Write canonical labels as a file that is stored from front to back, from below and to the left."""
    # Canonical axes run to the right, downwards and to the back; the file's to posterior, superior and left (slowest).
    image = sitk.GetImageFromArray(np.ascontiguousarray(labels[::-1, ::-1]))
    image.SetSpacing((0.5, 0.75, 4.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def rename(*arguments: object) -> str:
    options = ["--labels", "spider", "--atlas", "lumbar_spider"]
    result = CliRunner().invoke(app, ["rename", *map(str, arguments), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz", ".nrrd"])
def test_levels_get_the_names_that_a_person_states_and_nothing_else_changes(tmp_path: Path, suffix: str) -> None:
    mask = write(tmp_path / "masks" / f"a{suffix}", column("T11", "L4"))
    output = rename(mask, "--visible", "T12 to L5", "--output", tmp_path / "out")
    assert "read: T12:L5" in output
    assert "1 mask written" in output
    before, after = read_labels(mask), read_labels(tmp_path / "out" / f"a{suffix}")
    assert after.geometry.differences(before.geometry, 1e-5) == []
    assert np.array_equal(after.array, column("T12", "L5"))
    sidecar = json.loads((tmp_path / "out" / "a.json").read_text())
    assert sidecar["said"] == {"visible": "T12:L5"}
    assert sidecar["labels"]["1"] == "L5"
    assert sidecar["labels"]["100"] == "SC"
    assert len(sidecar["changes"]) == 11
    assert sidecar["unnamed"] == []
    assert set(sidecar["margins"]) == set(column_names("T12", "L5"))
    again = rename(mask, "--visible", "T12:L5", "--output", tmp_path / "out")
    assert "0 masks written" in again
    assert "1 was there already" in again
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([f"a{suffix}", "a.json"])


def test_masks_of_one_name_in_two_folders_have_statements_of_their_own(tmp_path: Path) -> None:
    masks = [write(tmp_path / folder / "a.mha", column("T11", "L3")) for folder in ("first", "second")]
    table = tmp_path / "seen.csv"
    table.write_text("case,visible\nfirst/a,T12:L4\nsecond/a,T10:L2\n")
    output = rename(*masks, "--visible", table, "--output", tmp_path / "out")
    for name, levels in (("first/a", ("T12", "L4")), ("second/a", ("T10", "L2"))):
        assert f"{name}: read: {':'.join(levels)}" in output
        assert np.array_equal(read_labels(tmp_path / "out" / f"{name}.mha").array, column(*levels))


def test_a_point_names_a_level_in_the_coordinates_of_the_viewers(tmp_path: Path) -> None:
    mask = write(tmp_path / "a.mha", column("T11", "L4"))
    image = sitk.ReadImage(str(mask))
    stored = sitk.GetArrayFromImage(image)
    z, y, x = (int(side) for side in np.argwhere(stored == SPIDER["L1"]).mean(axis=0))
    left, posterior, superior = image.TransformIndexToPhysicalPoint((x, y, z))
    rename(mask, "--level", f"L2@{-left:.2f},{-posterior:.2f},{superior:.2f}", "--output", tmp_path / "out")
    assert np.array_equal(read_labels(tmp_path / "out" / "a.mha").array, column("T12", "L5"))
    sidecar = json.loads((tmp_path / "out" / "a.json").read_text())
    assert sidecar["said"]["level"] == "L2"
    assert "L2" not in sidecar["margins"]


def test_a_table_states_the_levels_of_each_mask(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "masks" / f"{name}.mha", column("T11", "L4"))
    (tmp_path / "seen.csv").write_text("case,visible\na,T12:L5\nb,T10 to L3\n")
    output = rename(tmp_path / "masks", "--visible", tmp_path / "seen.csv", "--output", tmp_path / "out")
    assert "a: read: T12:L5" in output
    for name, stretch in (("a", ("T12", "L5")), ("b", ("T10", "L3"))):
        assert np.array_equal(read_labels(tmp_path / "out" / f"{name}.mha").array, column(*stretch))


def test_a_vertebra_that_is_marked_as_cut_stays_so(tmp_path: Path) -> None:
    labels, expected = column("T11", "L4"), column("T12", "L5")
    labels[labels == SPIDER["T11"]] = SPIDER["T11 (part)"]
    expected[expected == SPIDER["T12"]] = SPIDER["T12 (part)"]
    rename(write(tmp_path / "a.mha", labels), "--visible", "T12:L5", "--output", tmp_path / "out")
    assert np.array_equal(read_labels(tmp_path / "out" / "a.mha").array, expected)


def test_structures_that_the_atlas_lacks_are_left_and_a_surplus_level_is_listed(tmp_path: Path) -> None:
    labels = column("T11", "L4")
    labels[:, 0:1, 4:18] = SPIDER["T8"]
    output = rename(write(tmp_path / "a.mha", labels), "--visible", "T12:L4", "--output", tmp_path / "out")
    assert "atlas 'lumbar_spider' does not have T8 (10): left as in the mask" in output
    assert "without a name, now background: T11 (588 voxels)" in output
    after = read_labels(tmp_path / "out" / "a.mha").array
    assert np.array_equal(after == SPIDER["T8"], labels == SPIDER["T8"])


def test_a_tool_without_discs_can_be_renamed(tmp_path: Path) -> None:
    scheme = {name: value for value, name in lumbar_spider().label_schemes["totalsegmentator"].items()} | {"SC": 79}
    mask = write(tmp_path / "a.mha", column("T11", "L4", scheme))
    options = ["--labels", "totalsegmentator", "--atlas", "lumbar_spider", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["rename", str(mask), "--visible", "T12:L5", *options], catch_exceptions=False)
    assert result.exit_code == 0
    assert np.array_equal(read_labels(tmp_path / "out" / "a.mha").array, column("T12", "L5", scheme))


def test_masks_of_the_whole_spine_have_levels_that_the_lumbar_atlas_lacks(tmp_path: Path) -> None:
    scheme = {name: value for value, name in whole_spine().label_schemes["totalspineseg"].items()}
    mask = write(tmp_path / "a.mha", column("T9", "L3", scheme))
    options = ["--labels", "totalspineseg", "--atlas", "whole_spine", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["rename", str(mask), "--visible", "T7:L1", *options], catch_exceptions=False)
    assert result.exit_code == 0
    before, after = read_labels(mask).array, read_labels(tmp_path / "out" / "a.mha").array
    for name in column_names("T9", "L3"):
        assert (after[before == scheme[name]] == scheme[whole_spine().neighbour(name, -2) or ""]).all()


def test_a_landmark_that_contradicts_the_statement_is_printed(tmp_path: Path) -> None:
    mask = write(tmp_path / "a.mha", column("T12", "L5/S"))
    output = rename(mask, "--visible", "T11:L4", "--output", tmp_path / "out")
    assert "the picture contradicts the statement: the picture says L5/S, the statement says L4/L5" in output


def test_a_damaged_mask_is_named_and_the_others_are_renamed(tmp_path: Path) -> None:
    write(tmp_path / "masks" / "a.mha", column("T11", "L4"))
    (tmp_path / "masks" / "b.mha").write_text("no mask")
    write(tmp_path / "masks" / "c.mha", np.where(column("T11", "L4") == 100, 99, column("T11", "L4")).astype(np.uint8))
    options = ["--labels", "spider", "--atlas", "lumbar_spider", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["rename", str(tmp_path / "masks"), "--visible", "T12:L5", *options])
    assert result.exit_code == 1
    assert "2 of 3 masks failed" in result.stderr
    assert "the labels 'spider' have no value 99" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "a.mha"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either with --visible FIRST:LAST or with --level"),
        (["--visible", "T11:L3", "--level", "L4@0,0,0"], "either with --visible FIRST:LAST or with --level"),
        (["--visible", "T11:L9"], "no 'L9'"),
        (["--visible", "SC"], "none of the levels is named: T9"),
        (["--level", "L4"], r"'L4' must be NAME@X,Y,Z .* such as L4@-3.5,12,-40.2"),
        (["--level", "L4@1,2"], "must be NAME@X,Y,Z"),
        (["--level", "SC@1,2,3"], "must name one level"),
        (["--level", "L4@900,2,3"], r"outside the mask, which covers R -18.0 to -10.0, .* opposite sign in X and Y"),
        (["--level", "L4@-14,3,60"], "lies on background; the nearest level is"),
    ],
)
def test_mistakes_are_one_message_and_write_nothing(tmp_path: Path, options: list[str], message: str) -> None:
    mask = write(tmp_path / "a.mha", column("T11", "L4"))
    convention = ["--labels", "spider", "--atlas", "lumbar_spider", "--output", str(tmp_path / "out")]
    with pytest.raises(PromptError, match=message):
        CliRunner().invoke(app, ["rename", str(mask), *options, *convention], catch_exceptions=False)
    assert not list((tmp_path / "out").glob("*"))


def test_a_point_goes_with_a_single_mask(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "masks" / f"{name}.mha", column("T11", "L4"))
    with pytest.raises(PromptError, match="a point lies in one mask, and these are 2"):
        rename(tmp_path / "masks", "--level", "L4@0,0,0", "--output", tmp_path / "out")


def test_the_convention_of_a_mask_must_be_clear() -> None:
    registry = installed_registry()
    with pytest.raises(DataError, match="no label scheme 'spidr'. Did you mean 'spider'"):
        find_convention(registry, "spidr", None)
    with pytest.raises(DataError, match="no atlas 'lumbar'"):
        find_convention(registry, "spider", "lumbar")
    with pytest.raises(DataError, match=r"Several atlases have the labels 'spider': .*lumbar_spider.* --atlas"):
        find_convention(registry, "spider", None)
    convention = find_convention(registry, "atlas", "lumbar_spider")
    assert convention.values["L5"] == 1
    assert read_point(convention.atlas, "lumbar 4 @ -1.5, 2, .5").name == "L4"


def test_labels_that_the_mask_itself_contradicts_are_refused(tmp_path: Path) -> None:
    mask = write(tmp_path / "a.mha", column("T11", "L4"))
    sidecar = {"mask": "a.mha", "labels": {str(SPIDER["L4"]): "L3"}, "made": {}}
    (tmp_path / "a.json").write_text(json.dumps(sidecar))
    arguments = [str(mask), "--visible", "T12:L5", "--output", str(tmp_path / "out")]
    options = ["--labels", "spider", "--atlas", "lumbar_spider"]
    result = CliRunner().invoke(app, ["rename", *arguments, *options])
    assert result.exit_code == 1
    assert "itself names its value 2 'L3', and the labels 'spider' call it 'L4'" in result.output
