from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from medpy.metric import binary

from textseg.cli import entry as cli
from textseg.comparison.compare import compare
from textseg.comparison.finished_runs import read_runs
from textseg.comparison.sections import short_section
from textseg.comparison.text import as_text
from textseg.contracts import Dataset
from textseg.data.preparation import map_labels
from textseg.errors import DataError, RunError
from textseg.evaluation.masks import ScoredMasks, compare_moved_masks, evaluate_masks
from textseg.metrics.scores import read_scores
from textseg.recipe.schema import EvaluationSettings
from textseg.registry.discovery import installed_registry
from textseg.volumes.files import file_hash, read_labels, write_labels
from textseg.volumes.geometry import Geometry
from textseg.volumes.mask import Mask

SETTINGS = EvaluationSettings()


@pytest.fixture(scope="module", params=[3, pytest.param(None, marks=pytest.mark.nightly)], ids=["some", "all"])
def references(request: pytest.FixtureRequest, spider_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a few real scans of SPIDER, or with all of them."""
    folder = tmp_path_factory.mktemp("references")
    masks = sorted((spider_folder / "masks").glob("*.mha"))[: request.param]
    for part in ("images", "masks"):
        (folder / part).mkdir()
        for name in (path.name for path in masks):
            (folder / part / name).symlink_to(spider_folder / part / name)
    for table in spider_folder.glob("*.csv"):
        (folder / table.name).symlink_to(table)
    return folder


@pytest.fixture
def dataset(references: Path) -> Dataset:
    built: Dataset = installed_registry().build("dataset", "spider", settings={"folder": str(references)})
    return built


def predict(dataset: Dataset, folder: Path, rows: int = 1, *, suffix: str = ".nii.gz") -> Path:
    """The references, a few rows lower."""
    for case in dataset.cases():
        if case.mask is not None:
            labels = read_labels(case.mask)
            write_labels(np.roll(labels.array, rows, axis=1), labels.geometry, folder / f"{case.id.upper()}{suffix}")
    return folder


def first_case(dataset: Dataset) -> str:
    return next(case.id for case in dataset.cases() if case.mask is not None)


def test_scores_are_those_of_medpy(dataset: Dataset, tmp_path: Path) -> None:
    predictions = predict(dataset, tmp_path / "other_tool", rows=3)
    scored = evaluate_masks(predictions, dataset, "other", SETTINGS, tmp_path / "out")
    scores = scored.scores
    assert scored.missing == scored.extra == []
    assert not scored.failed
    assert repr(read_scores(tmp_path / "out/scores.csv")) == repr(scores)  # NaN is not equal to itself
    case = next(case for case in dataset.cases() if case.mask is not None)
    assert case.mask is not None
    reference = read_labels(case.mask)
    prediction = np.roll(reference.array, 3, axis=1)
    values = {row.metric: row.value for row in scores if (row.case, row.structure) == (case.id, "L5")}
    assert values["dsc"] == pytest.approx(binary.dc(prediction == 1, reference.array == 1))
    for metric, function in (("hd95", binary.hd95), ("asd", binary.asd)):
        distance = function(prediction == 1, reference.array == 1, voxelspacing=reference.spacing_mm)
        assert values[metric] == pytest.approx(distance, rel=1e-5)
    assert {row.structure for row in read_scores(tmp_path / "out/group_scores.csv")} == {"vertebrae", "discs", "canal"}


def test_masks_are_scored_by_medpy_itself(dataset: Dataset, tmp_path: Path) -> None:
    predictions = predict(dataset, tmp_path / "masks", rows=2)
    by_medpy = SETTINGS.model_copy(update={"kernel": "medpy"})
    scores = {
        name: evaluate_masks(predictions, dataset, name, settings, tmp_path / name).scores
        for name, settings in (("ours", SETTINGS), ("theirs", by_medpy))
    }
    for ours, theirs in zip(*scores.values(), strict=True):
        assert theirs.place == ours.place
        assert theirs.value == pytest.approx(ours.value, rel=0, abs=1e-9, nan_ok=True)
    record = json.loads((tmp_path / "theirs/run.json").read_text())
    assert record["metrics_kernel"] == f"medpy {version('medpy')}"
    board = " ".join(as_text(compare([tmp_path / name for name in scores])).split())
    assert f"computed by medpy {version('medpy')}, in other runs by textseg, with equal numbers" in board


def test_a_missing_mask_is_a_miss_of_everything_and_a_foreign_one_is_named(dataset: Dataset, tmp_path: Path) -> None:
    predictions, case = predict(dataset, tmp_path / "masks"), first_case(dataset)
    moved = predictions / "999_t2.nii.gz"
    (predictions / f"{case.upper()}.nii.gz").rename(moved)
    scored = evaluate_masks(predictions, dataset, "other", SETTINGS, tmp_path / "out")
    assert (scored.missing, scored.extra) == ([case], [str(moved)])
    rows = [row for row in scored.scores if row.case == case]
    assert {row.status for row in rows} == {"missed", "absent"}
    assert json.loads((tmp_path / "out/run.json").read_text())["missing_files"] == [case]


def test_two_tools_are_compared_and_a_run_is_told_apart(
    dataset: Dataset, tmp_path: Path, finished_run: Path, stranger: None
) -> None:
    for name, rows in (("near", 1), ("far", 3)):
        evaluate_masks(predict(dataset, tmp_path / f"masks_{name}", rows), dataset, name, SETTINGS, tmp_path / name)
    board = as_text(compare([tmp_path / "far", tmp_path / "near"]))
    assert board.index("near") < board.index("far")
    with pytest.raises(RunError, match="hashes.data: .* has '.*', .* has '.*'"):
        compare([tmp_path / "near", finished_run])


def test_only_the_patients_asked_for(dataset: Dataset, tmp_path: Path) -> None:
    predictions = predict(dataset, tmp_path / "masks")
    patients = sorted({case.patient for case in dataset.cases()})[:1]
    scored = evaluate_masks(predictions, dataset, "other", SETTINGS, tmp_path / "out", patients=patients)
    assert {row.patient for row in scored.scores} == set(patients)
    assert scored.missing == scored.extra == []


def test_what_can_not_be_scored(dataset: Dataset, tmp_path: Path, finished_run: Path) -> None:
    predictions, case = predict(dataset, tmp_path / "masks"), first_case(dataset)
    patients = [next(c.patient for c in dataset.cases() if c.id == case)]  # its mask is the only one: nothing is left
    path = predictions / f"{case.upper()}.nii.gz"
    labels = read_labels(path)
    g = labels.geometry
    write_labels(labels.array, Geometry(g.size, g.spacing, (g.origin[0] + 3, *g.origin[1:]), g.direction), path)
    for relative in dataset.cases():
        if relative.id != case and relative.patient in patients and relative.mask is not None:
            shutil.copy(path, predictions / f"{relative.id.upper()}.nii.gz")
    with pytest.raises(DataError, match=r"does not lie on its reference .*: .*origin .* Resample it"):
        evaluate_masks(predictions, dataset, "x", SETTINGS, tmp_path / "out", patients=patients)
    shutil.copy(path, predictions / f"{case}.nii")
    with pytest.raises(DataError, match="are masks of the same case"):
        evaluate_masks(predictions, dataset, "x", SETTINGS, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="'.*empty' holds no volume"):
        evaluate_masks(tmp_path / "empty", dataset, "x", SETTINGS, tmp_path / "out")
    with pytest.raises(DataError, match="There is no folder"):
        evaluate_masks(tmp_path / "nowhere", dataset, "x", SETTINGS, tmp_path / "out")
    with pytest.raises(DataError, match="is the folder of a run"):
        evaluate_masks(predictions, dataset, "x", SETTINGS, finished_run)
    with pytest.raises(DataError, match="scored in their own grid"):
        evaluate_masks(predictions, dataset, "x", EvaluationSettings(space="prepared"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["textseg", "score", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def move(dataset: Dataset, folder: Path, levels: int) -> Path:
    """The references with names moved by some levels; a structure without a successor keeps its name."""
    atlas = dataset.atlas
    for case in dataset.cases():
        if case.mask is not None:
            labels, meaning = read_labels(case.mask), dataset.label_map(case)
            value_of = {index: value for value, index in meaning.items()}
            array = labels.array.copy()
            for value, index in meaning.items():
                successor = atlas.neighbour(atlas.names[index - 1], levels) if index else None
                if successor and atlas[successor].index in value_of:
                    array[labels.array == value] = value_of[atlas[successor].index]
            write_labels(array, labels.geometry, folder / f"{case.id}.nii.gz")
    return folder


def test_the_obedience_of_masks_under_a_moved_text(dataset: Dataset, tmp_path: Path) -> None:
    right, up = predict(dataset, tmp_path / "right", rows=2), move(dataset, tmp_path / "up", -1)
    pictures, left_out, failed = compare_moved_masks(right, up, dataset, -1)
    assert left_out == []
    assert not failed
    assert [picture.case for picture in pictures] == [c.id for c in dataset.cases() if c.mask is not None]
    assert {picture.obedience.value for picture in pictures} == {1.0}
    assert {picture.landmark for picture in pictures} == {True}  # each shows L5/S
    evaluate_masks(right, dataset, "other", SETTINGS, tmp_path / "out", compared=pictures)
    record = json.loads((tmp_path / "out/run.json").read_text())["obedience"]
    assert record["summaries"][0]["obedience"] == 1.0
    assert (tmp_path / "out/obedience.csv").read_text().count("\n") == 1 + len(pictures)
    # The names are those of the right text: a tool that ignores its text.
    (up / f"{first_case(dataset)}.nii.gz").unlink()
    pictures, _, _ = compare_moved_masks(right, right, dataset, -1)
    assert {picture.obedience.value for picture in pictures} == {0.0}
    pictures, left_out, _ = compare_moved_masks(right, up, dataset, -1)
    assert left_out == [first_case(dataset)]
    # A later score without the moved masks says nothing about obedience.
    evaluate_masks(right, dataset, "other", SETTINGS, tmp_path / "out")
    assert json.loads((tmp_path / "out/run.json").read_text())["obedience"] is None
    assert not (tmp_path / "out/obedience.csv").exists()


def test_moved_masks_that_can_not_be_compared(
    dataset: Dataset,
    references: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right, case = predict(dataset, tmp_path / "right"), first_case(dataset)
    alone = tmp_path / "alone"
    alone.mkdir()
    (right / f"{case.upper()}.nii.gz").rename(alone / f"{case}.nii.gz")
    (tmp_path / "foreign").mkdir()
    shutil.copy(alone / f"{case}.nii.gz", tmp_path / "foreign" / "999_t2.nii.gz")
    monkeypatch.chdir(tmp_path)
    options = ("right", "--dataset", "spider", "--references", str(references))
    for arguments, message in (
        (("--moved", "alone", "--levels", "1"), "'right' and 'alone' have no case in common"),
        (("--moved", "foreign", "--levels", "1"), "No file in 'foreign' bears the name of a case"),
        (("--moved", "nowhere", "--levels", "1"), "There is no folder 'nowhere'"),
        (("--moved", "right", "--levels", "0"), "moved by 0 levels is the right one"),
        (("--moved", "right"), "--moved and --levels go together"),
        (("--levels", "1"), "--moved and --levels go together"),
    ):
        assert call(monkeypatch, *options, *arguments) == 2
        assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert not (tmp_path / "runs").exists()
    unordered = replace(dataset.atlas, sequence=())
    monkeypatch.setattr(dataset, "atlas", unordered)
    with pytest.raises(DataError, match="has no order of levels"):
        compare_moved_masks(right, right, dataset, 1)


def test_the_command_line(
    dataset: Dataset,
    references: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    predictions = predict(dataset, tmp_path / "other_tool")
    (predictions / f"{first_case(dataset).upper()}.nii.gz").unlink()
    monkeypatch.chdir(tmp_path)
    options = ("other_tool", "--dataset", "spider", "--references", str(references))
    assert call(monkeypatch, *options, "--moved", "other_tool", "--levels", "-1") == 0
    out = capsys.readouterr().out
    assert f"not in both folders, so not in the obedience: {first_case(dataset)}" in out
    assert ": the names do not follow the text\n" in out
    assert "| one level up | with a landmark | 0.00" in out
    assert f"every structure is missed: {first_case(dataset)}" in out
    assert "structures in the references" in out
    assert (tmp_path / "runs/other_tool/scores.csv").exists()
    for wrong in ((), ("other_tool",), ("--dataset", "spider")):
        assert call(monkeypatch, *wrong) == 2


@pytest.fixture
def phantom(tmp_path: Path) -> Dataset:
    """Two small cases with the values of SPIDER: L5 is 1, its disc 201."""
    folder = tmp_path / "data"
    array = np.zeros((5, 12, 10), np.uint8)
    array[1:3, 4:8, 2:7], array[1:3, 9:11, 2:7] = 1, 201
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((3.0, 0.5, 0.6))
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
        for number in (1, 2):
            sitk.WriteImage(image, str(folder / part / f"{number}_t2.mha"))
    built: Dataset = installed_registry().build("dataset", "spider", settings={"folder": str(folder)})
    return built


def copies(dataset: Dataset, folder: Path, *, change: Callable[[sitk.Image], sitk.Image] = lambda mask: mask) -> Path:
    folder.mkdir()
    for case in dataset.cases():
        sitk.WriteImage(change(sitk.ReadImage(str(case.mask))), str(folder / f"{case.id}.mha"))
    return folder


def dsc(result: ScoredMasks) -> dict[tuple[str, str], float]:
    return {(row.case, row.structure): row.value for row in result.scores if row.metric == "dsc" and row.status == "ok"}


PERFECT = {(case, structure): 1.0 for case in ("1_t2", "2_t2") for structure in ("L5", "L5/S")}


def test_one_bad_mask_is_named_and_the_others_are_scored(phantom: Dataset, tmp_path: Path) -> None:
    masks = copies(phantom, tmp_path / "masks")
    both = evaluate_masks(masks, phantom, "x", SETTINGS, tmp_path / "both")
    assert dsc(both) == PERFECT
    bad = masks / "2_t2.mha"
    whole = bad.read_bytes()

    def link() -> None:
        bad.unlink()
        bad.symlink_to("/nowhere")

    for damage, reason in (
        (lambda: bad.write_bytes(whole[:-20]), "can't be read as a volume"),
        (lambda: sitk.WriteImage(sitk.Image(3, 4, 5, sitk.sitkUInt8), str(bad)), "does not lie on its reference"),
        (lambda: bad.write_bytes(b""), "can't be read as a volume"),
        (lambda: bad.write_bytes(whole[:-30] + bytes([77]) * 30), "holds 77"),
        (link, "leads to no file"),
    ):
        damage()
        scored = evaluate_masks(masks, phantom, "x", SETTINGS, tmp_path / "out")
        assert scored.failed.keys() == {"2_t2"}
        assert reason in scored.failed["2_t2"]
        assert dsc(scored) == {key: value for key, value in PERFECT.items() if key[0] == "1_t2"}
    pictures, _, failed = compare_moved_masks(masks, masks, phantom, 1)
    assert ([picture.case for picture in pictures], failed.keys()) == (["1_t2"], {"2_t2"})
    with pytest.raises(RunError, match=r"hashes\.data"):  # fewer cases, so another data set
        compare([tmp_path / "both", tmp_path / "out"])


@pytest.mark.parametrize("form", ["{}/T2.mha", "{}_T2.mha"])
def test_masks_of_cases_in_subfolders_are_scored(phantom: Dataset, tmp_path: Path, form: str) -> None:
    folder = tmp_path / "scans"
    for case in phantom.cases():
        assert case.mask is not None
        for path, name in (
            (case.image, f"images/{case.patient}/T2.mha"),
            (case.mask, f"masks/{case.patient}/T2.mha"),
            (case.mask, f"../given/{form.format(case.patient)}"),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name)
    settings = {"folder": str(folder), "atlas": "lumbar_spider", "labels": "spider", "patient_pattern": "^([^/]+)/"}
    nested: Dataset = installed_registry().build("dataset", "nifti_folder", settings=settings)
    scored = evaluate_masks(tmp_path / "given", nested, "x", SETTINGS, tmp_path / "out")
    assert {(case.removesuffix("/T2"), value) for (case, _), value in dsc(scored).items()} == {("1", 1.0), ("2", 1.0)}
    assert not scored.failed


def test_a_mask_on_the_same_grid_is_scored_however_its_axes_are_stored(phantom: Dataset, tmp_path: Path) -> None:
    turned = copies(phantom, tmp_path / "turned", change=lambda mask: sitk.DICOMOrient(mask, "SAR"))
    assert dsc(evaluate_masks(turned, phantom, "x", SETTINGS, tmp_path / "out")) == PERFECT
    mirrored = copies(phantom, tmp_path / "mirrored", change=lambda mask: sitk.Flip(mask, [True, True, False]))
    assert dsc(evaluate_masks(mirrored, phantom, "x", SETTINGS, tmp_path / "out")) == PERFECT


def test_values_have_the_names_that_the_mask_gives_them(phantom: Dataset, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    for case in phantom.cases():
        labels = read_labels(case.mask or "")
        classes = map_labels(labels, phantom.label_map(case), case)
        named = Mask(classes, labels.geometry, phantom.atlas, {}, None)
        named.save(masks / f"{case.id}.nii.gz")  # class indices, with their names in the header
    assert dsc(evaluate_masks(masks, phantom, "x", SETTINGS, tmp_path / "out")) == PERFECT
    # A sidecar goes before, and names the case of a mask with another name
    path = (masks / "2_t2.nii.gz").rename(masks / "other_seg.nii.gz")
    names = {str(value): name for value, name in named.names.items()}
    sidecar = {"mask": path.name, "mask_sha256": file_hash(path), "labels": names, "made": {}, "case": "2_t2"}
    (masks / "other_seg.json").write_text(json.dumps(sidecar))
    assert dsc(evaluate_masks(masks, phantom, "x", SETTINGS, tmp_path / "out")) == PERFECT
    sidecar["mask_sha256"] = "of another content"
    (masks / "other_seg.json").write_text(json.dumps(sidecar))
    sitk.WriteImage(sitk.ReadImage(str(path)), str(path))  # as a program that drops the table in the header
    scored = evaluate_masks(masks, phantom, "x", SETTINGS, tmp_path / "out")
    assert "has changed since 'other_seg.json' was written" in scored.failed["2_t2"]
    sidecar["mask_sha256"] = file_hash(path)
    sidecar["labels"] = {**names, str(phantom.atlas["L5"].index): "femur"}
    (masks / "other_seg.json").write_text(json.dumps(sidecar))
    scored = evaluate_masks(masks, phantom, "x", SETTINGS, tmp_path / "out")
    assert "calls its value 1 'femur', which atlas 'lumbar_spider' lacks" in scored.failed["2_t2"]


METRIC = """
    import numpy as np
    from textseg import hookimpl

    class VolumeError:
        "Absolute difference of the volumes; 0 is best."

        unit, higher_is_better, missed, worst = "ml", False, None, 50.0

        def __call__(self, prediction, reference, spacing):
            return abs(int(prediction.sum()) - int(reference.sum())) * float(np.prod(spacing)) / 1000

    @hookimpl
    def textseg_register(register):
        register.metric("volume_error", VolumeError)
"""


def test_a_metric_of_a_plugin_scores_masks_and_is_compared_without_the_plugin(
    phantom: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    install_into: Callable[..., None],
    installed_from: Callable[[Path], AbstractContextManager[None]],
) -> None:
    def larger(mask: sitk.Image) -> sitk.Image:
        array = sitk.GetArrayFromImage(mask)
        array[3, 4:8, 2:7] = 1
        grown = sitk.GetImageFromArray(array)
        grown.CopyInformation(mask)
        return grown

    (tmp_path / "plugin").mkdir()
    install_into(tmp_path / "plugin", "volumes", "textseg_volumes", {"plugin": METRIC})
    masks = {"equal": copies(phantom, tmp_path / "equal"), "large": copies(phantom, tmp_path / "large", change=larger)}
    settings = ("--dataset", "spider", "--references", str(tmp_path / "data"))
    names = "dsc,volume_error,{use: nsd, tolerance: 1, column: nsd_1}"
    with installed_from(tmp_path / "plugin"):
        for name, folder in masks.items():
            output = ("--output", str(tmp_path / "runs" / name))
            assert call(monkeypatch, str(folder), *settings, "--metrics", names, *output) == 0
        assert "volume_error 0.01 ml, nsd_1 " in capsys.readouterr().out  # half of 0.018 ml, and none of the disc
    rows = {(r.structure, r.metric): r for r in read_scores(tmp_path / "runs/large/scores.csv") if r.case == "1_t2"}
    assert rows["L5", "volume_error"].value == pytest.approx(4 * 5 * 3.0 * 0.5 * 0.6 / 1000)
    assert (rows["L5", "volume_error"].unit, rows["L5", "volume_error"].worst) == ("ml", 50.0)
    assert rows["L5/S", "volume_error"].value == 0
    assert rows["L4", "volume_error"].status == "absent"
    board = compare([tmp_path / "runs/large", tmp_path / "runs/equal"])
    assert board.metrics == ["dsc", "nsd_1", "volume_error"]
    facts = board.facts["volume_error"]
    assert (facts.unit, facts.higher_is_better, facts.distribution) == ("ml", False, "textseg-volumes")
    ranks = {row.finished.first.name: row.ranks["as_published"]["volume_error"] for row in board.tables[0].rows}
    assert ranks == {"equal": 1, "large": 2}
    assert call(monkeypatch, str(masks["equal"]), *settings, "--metrics", "dsc,volume_error") == 2
    assert "--metrics: metrics.1: There is no metric 'volume_error'." in capsys.readouterr().err


def test_voxels_that_the_data_set_ignores_are_not_scored(tmp_path: Path) -> None:
    reference, prediction = np.zeros((2, 5, 12, 10), np.uint8)
    reference[:, 4:8, 2:8], prediction[:, 5:9, 1:8] = 1, 1
    reference[:, :, 6:] = 9  # cuts the structure
    prediction[:, 0:3, 7:], prediction[0, 6, 3], prediction[1, 5, 9] = 1, 9, 9  # and a value that no prediction needs
    for name, array in (("data/images", reference), ("data/masks", reference), ("masks", prediction)):
        (tmp_path / name).mkdir(parents=True)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((0.6, 0.5, 3.0))
        sitk.WriteImage(image, str(tmp_path / name / "a.mha"))
    settings = {"folder": str(tmp_path / "data"), "atlas": "lumbar_spider", "labels": {1: "L5", 9: "Ignore"}}
    dataset: Dataset = installed_registry().build("dataset", "nifti_folder", settings=settings)
    scored = evaluate_masks(tmp_path / "masks", dataset, "x", SETTINGS, tmp_path / "out")
    values = {row.metric: row.value for row in scored.scores if row.status == "ok"}
    first, second = (array[:, :, :6] == 1 for array in (prediction, reference))
    assert values["dsc"] == pytest.approx(binary.dc(first, second))
    assert values["hd95"] == pytest.approx(binary.hd95(first, second, voxelspacing=(3.0, 0.5, 0.6)))
    assert [row.status for row in scored.scores if row.metric == "dsc"].count("absent") == len(dataset.atlas.names) - 1


@pytest.mark.parametrize(
    ("statement", "source", "mark"),
    [
        ({"source": "report", "visible": "L5"}, "report", "report"),
        ({"source": "ground_truth", "visible": "L5"}, "ground_truth", "oracle"),
        ({"source": "interactive", "visible": "L5"}, "interactive", ""),
        ({"source": "template"}, "template", ""),
        ({"source": "hearsay"}, "none", ""),
        (None, "none", ""),
    ],
)
def test_masks_that_textseg_wrote_keep_the_source_of_their_prompts(
    statement: dict[str, str] | None, source: str, mark: str, phantom: Dataset, tmp_path: Path
) -> None:
    masks = copies(phantom, tmp_path / "masks")
    for path in masks.glob("*.mha"):
        sidecar = {
            "mask": path.name,
            "mask_sha256": file_hash(path),
            "labels": {"1": "L5", "201": "L5/S"},
            "made": {},
            "said": statement,
        }
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    scored = evaluate_masks(masks, phantom, "x", SETTINGS, tmp_path / "out")
    assert {row.prompt_source for row in scored.scores} == {source}
    (run,) = read_runs([tmp_path / "out"])
    assert (run.mark, run.facts["evaluation"]["prompts"]) == (mark, source)


def test_a_folder_of_masks_with_several_sources_keeps_that_of_each_case_and_is_not_ranked(
    phantom: Dataset, tmp_path: Path
) -> None:
    masks, expected = copies(phantom, tmp_path / "masks"), {}
    sources = ("ground_truth", None)
    for path, source in zip(sorted(masks.glob("*.mha")), itertools.cycle(sources), strict=False):
        expected[path.name.removesuffix(".mha")] = source or "none"
        if source is not None:
            sidecar = {"mask": path.name, "mask_sha256": file_hash(path), "labels": {"1": "L5", "201": "L5/S"}}
            statement = {"source": source, "visible": "L5"}
            path.with_suffix(".json").write_text(json.dumps({**sidecar, "made": {}, "said": statement}))
    scored = evaluate_masks(masks, phantom, "mixed", SETTINGS, tmp_path / "out")
    assert {row.case: row.prompt_source for row in scored.scores} == expected
    assert set(expected.values()) == {"ground_truth", "none"}
    board = compare([tmp_path / "out"])
    (row,) = board.tables[0].rows
    assert (row.finished.mark, row.finished.sources) == ("oracle", ("ground_truth", "none"))
    assert short_section(board, 200).rows[0][:2] == ["–", "mixed ORACLE"]
