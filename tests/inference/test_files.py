from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from textseg.errors import DataError, PromptError
from textseg.inference.files import (
    Job,
    Outcome,
    PredictionSettings,
    check_words,
    find_inputs,
    plan_jobs,
    predict_files,
    stated,
    with_facts,
)
from textseg.inference.trained_model import TrainedModel
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.text.visibility import template_visibility
from textseg.volumes.files import read_labels, read_volume, stem
from textseg.volumes.mask import Mask


@pytest.fixture(scope="module")
def scan(finished_run: Path, stranger: None) -> Path:
    """A volume of a test case."""
    return build(load_recipe(RunFolder(finished_run).recipe)).cases["test"][0].case.image


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def outcomes(model: TrainedModel, jobs: list[Job], **settings: Any) -> list[Outcome]:
    return list(predict_files(model, jobs, PredictionSettings(**settings)))


def test_files_folders_and_patterns_are_found_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.mha", "a/b/2.nii.gz", "a/notes.txt", "a/.hidden.mha", "c/3.nrrd", "c/4.MHA")
    result = find_inputs([str(tmp_path / "a"), str(tmp_path / "a" / "1.mha"), str(tmp_path / "c" / "*.nrrd")])
    assert [path.name for path in result] == ["1.mha", "2.nii.gz", "3.nrrd"]
    assert [path.name for path in find_inputs([str(tmp_path / "c")])] == ["3.nrrd", "4.MHA"]


def test_masks_lie_as_the_volumes_of_a_folder_do(tmp_path: Path) -> None:
    touch(tmp_path, "in/pat1/ses-1/T2.mha", "in/pat2/ses-1/T2.mha")
    inputs = find_inputs([str(tmp_path / "in")])
    names = ["pat1/ses-1/T2", "pat2/ses-1/T2"]
    assert [job.name for job in plan_jobs(inputs, tmp_path / "out")] == names
    assert [str(job.mask.relative_to(tmp_path / "out")) for job in plan_jobs(inputs, tmp_path / "out")] == [
        f"{name}.mha" for name in names
    ]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pat1").symlink_to(tmp_path / "elsewhere")
    faults = [job.fault for job in plan_jobs(inputs, tmp_path / "out")]
    assert "is a link out of --output" in faults[0]
    assert not faults[1]


def test_links_are_followed_and_two_links_to_one_file_are_two_inputs(tmp_path: Path) -> None:
    touch(tmp_path, "store/1.mha", "in/2.mha")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "back").symlink_to(tmp_path / "in")  # a circle
    for name in ("a.mha", "b.mha"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "store" / "1.mha")
    names = [job.name for job in plan_jobs(find_inputs([str(tmp_path / "in")]), tmp_path / "out")]
    assert names == ["2", "a", "b", "linked/1"]


def test_masks_of_an_earlier_prediction_are_no_inputs(tmp_path: Path) -> None:
    touch(tmp_path, "in/1.mha", "in/1_seg.mha", "in/masks/1.mha", "in/2.mha", "in/2.json")
    sidecar = {"mask": "1_seg.mha", "labels": {"1": "L5"}, "made": {}}
    (tmp_path / "in" / "1_seg.json").write_text(json.dumps(sidecar))
    (tmp_path / "in" / "2.json").write_text('{"EchoTime": 0.1}')  # a sidecar of BIDS
    folder = [str(tmp_path / "in")]
    assert [path.name for path in find_inputs(folder, tmp_path / "in" / "masks")] == ["1.mha", "2.mha"]
    shell = [str(path) for path in sorted((tmp_path / "in").glob("*.mha"))]
    assert [path.name for path in find_inputs(shell, tmp_path / "in")] == ["1.mha", "2.mha"]
    assert [path.name for path in find_inputs(shell, masks=True)] == ["1.mha", "1_seg.mha", "2.mha"]
    with pytest.raises(DataError, match="nothing but masks that textseg wrote"):
        find_inputs([str(tmp_path / "in" / "1_seg.mha")])


def test_what_is_no_file_is_named_and_the_others_are_segmented(
    model: TrainedModel, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    (folder / "folder.mha").mkdir(parents=True)
    (folder / "sound.mha").write_bytes(scan.read_bytes())
    (folder / "broken.mha").symlink_to("/nowhere")
    (folder / "circle.mha").symlink_to("circle.mha")
    os.mkfifo(folder / "pipe.mha")
    os.mkfifo(folder / "pipe")  # without the name of a volume: to look into it would wait for ever
    (folder / "zero.mha").symlink_to("/dev/zero")
    (folder / "locked").mkdir()
    (tmp_path / "empty").mkdir()
    listed = Path.iterdir

    def refused(path: Path) -> Iterator[Path]:
        if path.name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    names = [str(folder), str(tmp_path / "empty"), str(tmp_path / "missing.mha")]
    result = outcomes(model, plan_jobs(find_inputs(names), tmp_path / "out"))
    messages = {outcome.job.input.name: outcome.message for outcome in result if outcome.state == "failed"}
    assert [outcome.job.input.name for outcome in result if outcome.state == "written"] == ["sound.mha"]
    for name, reason in {
        "broken.mha": "leads to no file: No such file",
        "circle.mha": "leads to no file: Too many levels",
        "folder.mha": "a folder without volumes",
        "pipe.mha": "a device, a pipe or a socket",
        "zero.mha": "a device, a pipe or a socket",
        "locked": "can't be read: Permission denied",
        "empty": "a folder without volumes",
        "missing.mha": "does not exist",
    }.items():
        assert reason in messages.pop(name)
    assert not messages


def test_whatever_happens_to_one_volume_the_others_are_written(
    model: TrainedModel, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [tmp_path / f"{number}.mha" for number in range(3)]
    for path in inputs:
        path.write_bytes(scan.read_bytes())
    save = Mask.save

    def broken(mask: Mask, path: Path, labels: str = "atlas") -> None:
        if path.name == "1.mha":
            raise MemoryError
        save(mask, path, labels)

    monkeypatch.setattr(Mask, "save", broken)
    result = outcomes(model, plan_jobs(inputs, tmp_path / "out"))
    assert [outcome.state for outcome in result] == ["written", "failed", "written"]
    assert result[1].message.endswith("1.mha can't be written: there is not enough memory.")


def test_a_mask_that_is_segmented_like_a_scan_gets_a_remark(model: TrainedModel, scan: Path, tmp_path: Path) -> None:
    [job] = plan_jobs([scan], tmp_path / "out")
    outcomes(model, [job])
    job.sidecar.unlink()
    [outcome] = outcomes(model, plan_jobs([job.mask], tmp_path / "again"))
    assert any(remark.endswith("is it a mask?") for remark in outcome.remarks)
    [outcome] = outcomes(model, plan_jobs([scan], tmp_path / "third"))
    assert not any("is it a mask" in remark for remark in outcome.remarks)


def test_a_name_that_stands_for_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file '.*/x.mha', and no file fits it as a pattern"):
        find_inputs([str(tmp_path / "x.mha")])
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match="holds no volume; textseg reads .mha"):
        find_inputs([str(tmp_path)])


def test_masks_are_named_like_their_volumes(tmp_path: Path) -> None:
    inputs = touch(tmp_path, "a/1.mha", "b/1.nii.gz", "b/2.nii.gz")
    out = tmp_path / "out"

    def names(**settings: Any) -> list[str]:
        return [job.mask.relative_to(out).as_posix() for job in plan_jobs(inputs, out, **settings)]

    assert names() == ["a/1.mha", "b/1.nii.gz", "2.nii.gz"]
    assert names(suffix=".nrrd") == ["a/1.nrrd", "b/1.nrrd", "2.nrrd"]
    assert names(ending="_seg") == ["a/1_seg.mha", "b/1_seg.nii.gz", "2_seg.nii.gz"]
    assert plan_jobs(inputs, out)[2].sidecar == out / "2.json"
    assert [job.name for job in plan_jobs(inputs, out, ending="_seg")] == ["a/1", "b/1", "2"]
    with pytest.raises(DataError, match="--mask-suffix: '../x' must be letters"):
        plan_jobs(inputs, out, ending="../x")
    assert stem(Path("x.y.NII.GZ")) == "x.y"


def test_masks_never_take_each_others_place_nor_an_inputs(tmp_path: Path) -> None:
    jobs = plan_jobs(touch(tmp_path, "x/a/1.mha", "y/a/1.mha"), tmp_path / "out")
    assert [job.name for job in jobs] == ["x/a/1", "y/a/1"]
    pair = touch(tmp_path, "x/1.mha", "x/1.nii")
    with pytest.raises(DataError, match="would give one mask '1'"):
        plan_jobs(pair, tmp_path / "out")
    jobs = plan_jobs([*pair, *touch(tmp_path, "x/2.mha")], tmp_path / "out")
    assert ["would give one mask" in job.fault for job in jobs] == [True, True, False]
    [path] = touch(tmp_path, "in/1.mha")
    with pytest.raises(DataError, match="would take the place of"):
        plan_jobs([path], path.parent)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "2.mha").symlink_to(path)  # the mask of this link would be written over its target
    with pytest.raises(DataError, match="would take the place of"):
        plan_jobs([path, tmp_path / "links" / "2.mha"], tmp_path / "links" / ".." / "in")
    with pytest.raises(DataError, match="can't be written as 'png'"):
        plan_jobs([path], tmp_path / "out", suffix="png")


def test_a_table_says_what_each_volume_shows(tmp_path: Path, model: TrainedModel) -> None:
    inputs = touch(tmp_path, "1.mha", "2.mha")
    (tmp_path / "seen.csv").write_text("case,visible\n2,T10:L5\n1,T12:L3\n")
    jobs = plan_jobs(inputs, tmp_path / "out", visible=str(tmp_path / "seen.csv"))
    assert [job.visible for job in jobs] == ["T12:L3", "T10:L5"]
    assert check_words(model, jobs) == [
        "1: read: T12:L3, 7 structures and the spinal canal",
        "2: read: T10:L5, 15 structures and the spinal canal",
    ]
    (tmp_path / "seen.csv").write_text("case,visible\n2,T10:L9\n1,T12:L3\n")
    with pytest.raises(PromptError, match="--visible: 2: 'T10:L9'"):
        check_words(model, plan_jobs(inputs, tmp_path / "out", visible=str(tmp_path / "seen.csv")))


def test_a_table_gives_facts_beside_what_is_visible(tmp_path: Path, knowing: TrainedModel) -> None:
    inputs = touch(tmp_path, "1.mha", "2.mha")
    table = tmp_path / "seen.csv"
    table.write_text("case,visible,Sequence,room\n2,T12:L3,,7\n1,,T2,8\n")
    jobs = with_facts(knowing, plan_jobs(inputs, tmp_path / "out", visible=str(table)), {"sequence": "T1"})
    assert [(job.visible, job.facts) for job in jobs] == [(None, {"sequence": "T2"}), ("T12:L3", {"sequence": "T1"})]
    table.write_text("case,visible,sequenc\n2,T12:L3,T2\n1,T12:L3,T2\n")
    with pytest.raises(PromptError, match="the column 'sequenc' may be meant as 'sequence'"):
        with_facts(knowing, plan_jobs(inputs, tmp_path / "out", visible=str(table)), {})
    table.write_text("case,visible\n2,T12:L3\n1,\n")
    jobs = plan_jobs(inputs, tmp_path / "out", visible=str(table))
    assert [job.visible for job in jobs] == [None, "T12:L3"]
    assert check_words(knowing, jobs) == [
        "read: T12:L3, 7 structures and the spinal canal",
        "no words: 1 case (1); prompts: template",
    ]


def test_facts_that_are_too_long_are_refused_before_the_first_volume(tmp_path: Path, knowing: TrainedModel) -> None:
    jobs = plan_jobs(touch(tmp_path, "1.mha"), tmp_path / "out")
    for visible in (None, "T12:L3"):
        stated = [replace(job, visible=visible) for job in jobs]
        with pytest.raises(PromptError, match=r"1: The text .* has \d+ tokens, .* texts of at most \d+"):
            check_words(knowing, with_facts(knowing, stated, {"sequence": "T2 " * 200}))


def test_the_sidecar_has_the_facts_and_says_which_are_missing(
    knowing: TrainedModel, scan: Path, tmp_path: Path
) -> None:
    jobs = plan_jobs([scan], tmp_path / "out", visible="T12:L3")
    [outcome] = outcomes(knowing, jobs)
    assert any("the text stated sequence (T1, T2), and now it does not" in remark for remark in outcome.remarks)
    jobs = with_facts(knowing, jobs, {"Sequence": "T2"})
    [outcome] = outcomes(knowing, jobs)
    assert (outcome.state, outcome.remarks) == ("written", ())
    sidecar = json.loads(jobs[0].sidecar.read_text())
    assert sidecar["said"]["facts"] == sidecar["made"]["facts"] == {"sequence": "T2"}
    assert [outcome.state for outcome in outcomes(knowing, jobs)] == ["there"]


def test_a_template_that_nobody_counted_states_nothing(model: TrainedModel) -> None:
    statements = {
        counted: stated(model.atlas, template_visibility(model.atlas, counted=bool(counted)), None)
        for counted in (0, 1)
    }
    assert statements == {0: {"source": "template", "visible": ""}, 1: {"source": "template", "visible": "T9:L5/S"}}


def test_a_mask_lies_on_its_volume_with_a_sidecar_that_says_what_it_is(
    model: TrainedModel, scan: Path, tmp_path: Path
) -> None:
    [job] = plan_jobs([scan], tmp_path / "out", suffix=".nii.gz", visible="T12 to L5")
    [outcome] = outcomes(model, [job], labels="spider")
    assert outcome.state == "written"
    volume, mask = read_volume(scan), read_labels(job.mask)
    assert volume.geometry.differences(mask.geometry, 1e-5) == []
    assert np.array_equal(mask.array, model(scan, visible="T12:L5").labelled("spider"))
    sidecar = json.loads(job.sidecar.read_text())
    assert sidecar["labels"]["100"] == "SC"
    assert sidecar["said"] == {"source": "interactive", "visible": "T12:L5", "words": "T12 to L5"}
    assert sidecar["made"]["prompts"] == "T12:L5"
    assert set(sidecar["confidence"]) == set(model.atlas.names)
    voxels = int((mask.array == 100).sum())
    assert sidecar["volume_ml"]["SC"] == pytest.approx(voxels * np.prod(mask.spacing_mm) / 1000, abs=1e-3)


def test_other_words_for_the_same_structures_give_the_same_mask(
    model: TrainedModel, scan: Path, tmp_path: Path
) -> None:
    for words, state in (("T12:L5", "written"), ("from D12 to L5", "there"), ("T12 to L5, no canal", "written")):
        [job] = plan_jobs([scan], tmp_path / "out", visible=words)
        assert [outcome.state for outcome in outcomes(model, [job])] == [state]
    with pytest.raises(PromptError, match="--text: .*: No visible structure is named"):
        check_words(model, plan_jobs([scan], tmp_path / "out", visible=""), "--text")


def test_what_is_done_is_not_done_again_unless_something_differs(
    model: TrainedModel, scan: Path, tmp_path: Path
) -> None:
    [job] = plan_jobs([scan], tmp_path / "out")
    assert [outcome.state for outcome in outcomes(model, [job])] == ["written"]
    written = job.mask.stat().st_mtime_ns
    assert [outcome.state for outcome in outcomes(model, [job])] == ["there"]
    assert job.mask.stat().st_mtime_ns == written
    assert [outcome.state for outcome in outcomes(model, [job], labels="spider")] == ["written"]
    assert [outcome.state for outcome in outcomes(model, [job], labels="spider", prompts="predicted")] == ["written"]
    job.mask.write_bytes(job.mask.read_bytes()[:-5])
    assert [outcome.state for outcome in outcomes(model, [job], labels="spider", prompts="predicted")] == ["written"]
    assert read_labels(job.mask).array.any()


def test_levels_are_named_anew_where_that_is_asked_for(model: TrainedModel, scan: Path, tmp_path: Path) -> None:
    [plain] = plan_jobs([scan], tmp_path / "plain")
    [ordered] = plan_jobs([scan], tmp_path / "ordered")
    outcomes(model, [plain])
    assert [outcome.state for outcome in outcomes(model, [ordered], ordered=True)] == ["written"]
    sidecar = json.loads(ordered.sidecar.read_text())
    assert sidecar["made"]["ordered"] is True
    assert sidecar["changes"]  # a model that was trained for seconds leaves islands
    assert json.loads(plain.sidecar.read_text())["changes"] == []
    before, after = (read_labels(job.mask).array for job in (plain, ordered))
    assert (before != after).any()
    assert np.array_equal(after, model(scan, ordered=True).array)


def test_a_picture_stands_beside_the_mask_where_it_is_asked_for(
    model: TrainedModel, scan: Path, tmp_path: Path
) -> None:
    [job] = plan_jobs([scan], tmp_path / "out", suffix=".nii.gz")
    outcomes(model, [job])
    assert not job.picture.exists()
    for expected in ("written", "there"):  # the mask alone is not all that was asked for
        assert [outcome.state for outcome in outcomes(model, [job], overlay=True)] == [expected]
        assert job.picture == tmp_path / "out" / f"{stem(scan)}.png"
        assert job.picture.read_bytes().startswith(b"\x89PNG")


def _image(change: Callable[[sitk.Image], sitk.Image]) -> Callable[[Path, Path], None]:
    def write(scan: Path, path: Path) -> None:
        sitk.WriteImage(change(sitk.ReadImage(str(scan))), str(path))

    return write


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    def write(scan: Path, path: Path) -> None:
        path.write_bytes(change(scan.read_bytes()))

    return write


def _header(old: bytes, new: bytes) -> Callable[[Path, Path], None]:
    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    return _bytes(change)


def _nan(image: sitk.Image) -> sitk.Image:
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    array[0, 0, 0] = np.nan
    return sitk.GetImageFromArray(array)


DAMAGE = {
    "half": _bytes(lambda content: content[: len(content) // 2]),
    "empty": _bytes(lambda content: b""),
    "text": _bytes(lambda content: b"Dear colleague,\n"),
    "zeros": _bytes(lambda content: bytes(len(content))),
    "cut_header": _bytes(lambda content: content[:80]),
    "gigantic": _header(b"DimSize = ", b"DimSize = 9"),
    "no_size": _header(b"DimSize = ", b"DimSize = 0 0 0\nX = "),
    "negative_spacing": _header(b"ElementSpacing = ", b"ElementSpacing = -"),
    "not_a_number": _image(_nan),
    "colour": _image(lambda image: sitk.Compose([image, image, image])),
    "four_dimensions": _image(lambda image: sitk.JoinSeries([image, image])),
}


def test_damaged_volumes_are_named_and_the_others_are_segmented(
    model: TrainedModel, scan: Path, tmp_path: Path
) -> None:
    inputs = []
    for number, (name, write) in enumerate(DAMAGE.items()):
        write(scan, tmp_path / f"{name}.mha")
        inputs.append(tmp_path / f"{name}.mha")
        if number % 4 == 0:
            (tmp_path / f"sound{number}.mha").write_bytes(scan.read_bytes())
            inputs.append(tmp_path / f"sound{number}.mha")
    result = outcomes(model, plan_jobs(inputs, tmp_path / "out"))
    assert [outcome.job.input for outcome in result] == inputs
    for outcome in result:
        name = stem(outcome.job.input)
        assert outcome.state == ("written" if name.startswith("sound") else "failed"), name
        assert outcome.job.mask.exists() == (outcome.state == "written")
        if outcome.state == "failed":
            assert name in outcome.message
            assert len(outcome.message.splitlines()) == 1
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json"] * 3 + [".mha"] * 3


def test_one_slice_is_a_volume_too(model: TrainedModel, scan: Path, tmp_path: Path) -> None:
    image = sitk.ReadImage(str(scan))
    axis = read_volume(scan).geometry.axes[0][0]
    start = [0, 0, 0]
    size = [*image.GetSize()]
    start[axis], size[axis] = size[axis] // 2, 1
    sitk.WriteImage(sitk.RegionOfInterest(image, size, start), str(tmp_path / "one.nii"))
    [outcome] = outcomes(model, plan_jobs([tmp_path / "one.nii"], tmp_path / "out"))
    assert outcome.state == "written"
    assert read_labels(outcome.job.mask).array.shape[0] == 1


@pytest.mark.parametrize("suffix", [None, ".seg.nrrd", ".nii"])
def test_the_name_of_a_mask_and_of_its_sidecar_fit_the_file_system(tmp_path: Path, suffix: str | None) -> None:
    names = (f"{'x' * 251}.mha", f"{'y' * 251}.mha", f"{'z' * 218}.mha", "a:b.nii")
    jobs = plan_jobs([tmp_path / name for name in names], tmp_path / "out", suffix=suffix)
    for job in jobs:
        assert max(len(path.name) for path in (job.mask, job.sidecar, job.picture)) <= 255
        assert job.mask.parent == tmp_path / "out"
    assert jobs[0].mask.name.startswith("x" * 230)
    assert jobs[2].mask.name == f"{'z' * 218}{suffix or '.mha'}"
    assert jobs[3].mask.name.startswith("a_b-")
    assert len({job.mask.name for job in jobs}) == 4
