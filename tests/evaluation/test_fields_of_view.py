from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from textseg.contracts import Atlas, SegmenterOutput, Structure, TextFeatures
from textseg.data.field_of_view import fixed_windows
from textseg.data.preparation import prepare
from textseg.data.slice_geometry import prepare_volume
from textseg.evaluation.evaluate import evaluate, load_segmenter
from textseg.evaluation.fields_of_view import (
    cut_windows,
    evaluate_windows,
    predict_window,
    statements,
    window_texts,
)
from textseg.inference.loading import load
from textseg.inference.trained_model import EncodedTexts, TrainedModel
from textseg.metrics.window_scores import WindowScore
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_recipe
from textseg.recipe.schema import PreparationSettings
from textseg.registry.discovery import installed_registry
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder
from textseg.volumes.scan import read_scan

pytestmark = pytest.mark.usefixtures("stranger")
CPU = torch.device("cpu")
WINDOWS = "evaluation.fields_of_view=[0.7,0.5]"


@pytest.fixture(scope="module")
def experiment(finished_run: Path, stranger: None) -> Experiment:
    return build(load_recipe(finished_run / "recipe.yaml", [WINDOWS]))


@pytest.fixture(scope="module")
def segmenter(experiment: Experiment, finished_run: Path) -> Segmenter:
    return load_segmenter(experiment, RunFolder(finished_run))


@pytest.fixture(scope="module")
def rows(experiment: Experiment, segmenter: Segmenter) -> list[WindowScore]:
    return evaluate_windows(experiment, segmenter, device=CPU).scores


def cut_file(source: Path, target: Path, part: slice) -> Path:
    """Cut the rows of a file with SimpleITK."""
    geometry = read_scan(source).geometry
    axis, flipped = geometry.axes[1]
    start, size = [0, 0, 0], list(geometry.size)
    start[axis] = geometry.size[axis] - part.stop if flipped else part.start
    size[axis] = part.stop - part.start
    sitk.WriteImage(sitk.RegionOfInterest(sitk.ReadImage(str(source)), size, start), str(target))
    return target


@pytest.mark.parametrize("location", ["upper", "lower"])
def test_a_cut_file_is_prepared_and_predicted_as_its_window(
    experiment: Experiment,
    segmenter: Segmenter,
    rows: list[WindowScore],
    finished_run: Path,
    tmp_path: Path,
    location: str,
) -> None:
    prepared = experiment.cases["test"][0]
    (cut,) = (cut for cut in cut_windows(experiment, prepared, [0.5]) if cut.location == location)
    file = cut_file(prepared.case.image, tmp_path / "cut.mha", cut.window.slices[1])
    labels = cut_file(prepared.case.mask or Path(), tmp_path / "cut_mask.mha", cut.window.slices[1])

    model = load(finished_run)
    assert isinstance(model, TrainedModel)
    from_file = model.prepare(read_scan(file))
    assert torch.equal(from_file.image, cut.prepared.image)
    assert from_file.slice_geometry == cut.prepared.slice_geometry
    assert from_file.spacing_mm == cut.prepared.spacing_mm
    reference, _ = replace(prepared, case=replace(prepared.case, mask=labels)).native_mask(
        experiment.dataset.label_map(prepared.case)
    )
    kept = np.isin(reference, [experiment.atlas[name].index for name in cut.named])
    np.testing.assert_array_equal(np.where(kept, reference, 0), cut.reference)

    texts = EncodedTexts(experiment.recipe, experiment.registry, experiment.task)
    window = [r for r in rows if (r.case, r.share, r.location, r.metric) == (prepared.case.id, 0.5, location, "dsc")]
    authors = []
    for text in window_texts(experiment, prepared, cut):
        mask = model(file, visible=text.statement) if text.statement else model(file, prompts="template")
        label_map = predict_window(experiment, segmenter, cut, text, texts, CPU)
        np.testing.assert_array_equal(mask.array, label_map)
        assert label_map.any()
        scores = {row.structure: row.value for row in window if row.stated_by == text.author}
        assert set(scores) == set(cut.named)
        for name, value in scores.items():
            predicted, expected = (array == experiment.atlas[name].index for array in (mask.array, cut.reference))
            sizes = int(predicted.sum() + expected.sum())
            np.testing.assert_equal(value, 2 * int((predicted & expected).sum()) / sizes if sizes else math.nan)
        authors.append(text.author)
    assert authors[:2] == ["template", "simulated"]
    assert {row.stated_by for row in window} == set(authors)


@pytest.mark.parametrize("location", ["upper", "lower"])
def test_a_cut_real_scan_is_prepared_as_its_window(spider_folder: Path, tmp_path: Path, location: str) -> None:
    dataset = installed_registry().build("dataset", "spider", settings={"folder": str(spider_folder)})
    case, settings = dataset.cases()[0], PreparationSettings(size=(160, 128))
    (prepared,) = prepare([case], dataset.label_map, settings, tmp_path / "cache")
    source: Any = SimpleNamespace(atlas=dataset.atlas, dataset=dataset, recipe=SimpleNamespace(preparation=settings))
    (cut,) = (cut for cut in cut_windows(source, prepared, [0.5]) if cut.location == location)
    file = cut_file(case.image, tmp_path / "cut.mha", cut.window.slices[1])
    from_file = prepare_volume(read_scan(file), settings)
    assert torch.equal(from_file.image, cut.prepared.image)
    assert (from_file.slice_geometry, from_file.spacing_mm) == (cut.prepared.slice_geometry, cut.prepared.spacing_mm)
    # The cut is no part of the prepared whole: its body box and its intensities are its own.
    assert from_file.slice_geometry.height < prepared.slice_geometry.height
    assert from_file.intensities != prepared.intensities


def test_the_whole_picture_under_the_template_has_the_scores_of_the_evaluation(
    experiment: Experiment, segmenter: Segmenter, rows: list[WindowScore]
) -> None:
    whole = {(r.case, r.structure): r.value for r in rows if r.share == 1 and r.stated_by == "template" and r.structure}
    scores = evaluate(experiment, segmenter, source="template", device=CPU).scores
    expected = {(row.case, row.structure): row.value for row in scores if row.metric == "dsc"}
    assert whole
    for position, value in whole.items():
        np.testing.assert_equal(value, expected[position])


def test_statements_and_places(experiment: Experiment, rows: list[WindowScore]) -> None:
    case = experiment.cases["test"][0].case.id
    places = {(row.share, row.location) for row in rows if row.case == case}
    assert places == {(1.0, "whole"), *((share, name) for share in (0.7, 0.5) for name in ("upper", "middle", "lower"))}
    # The phantom's spines end at L5/S: every window at the lower end shows the landmark, and none can be moved down.
    lower = [row for row in rows if row.location in ("whole", "lower")]
    assert {row.landmark for row in lower} == {"yes"}
    assert "moved down" not in {row.stated_by for row in lower}
    assert {row.statement.partition(":")[2] for row in lower if row.stated_by == "simulated"} == {"L5/S"}
    assert "no" in {row.landmark for row in rows if row.location == "upper" and row.share == 0.5}
    assert {row.statement for row in rows if row.stated_by == "template"} == {""}
    sequence = experiment.atlas.sequence
    stated = {(r.case, r.share, r.location, r.stated_by): r.statement.split(":") for r in rows if r.statement}
    moved = [key for key in stated if key[3].startswith("moved")]
    assert moved
    for key in moved:
        levels = -1 if key[3] == "moved up" else 1
        right = stated[*key[:3], "simulated"]
        assert [sequence.index(name) + 2 * levels for name in right] == [sequence.index(name) for name in stated[key]]
    assert {row.metric for row in rows if not row.structure and row.stated_by == "template"} == {
        "dsc_without_names",
        "level_shift",
    }
    assert {row.metric for row in rows if row.structure} == {"dsc"}
    assert {row.stated_by for row in rows if row.metric == "obedience"} == {key[3] for key in moved}


def test_a_text_is_moved_only_if_every_name_has_a_successor() -> None:
    names = ("A", "A/B", "B", "B/C", "C")
    groups = {"bodies": ("A", "B", "C"), "discs": ("A/B", "B/C")}
    structures = tuple(Structure(name, "bone", index) for index, name in enumerate((*names, "canal"), start=1))
    atlas = Atlas("row", structures, sequence=names, groups=groups)

    assert statements(atlas, ("B", "B/C", "canal")) == {"simulated": "B:B/C", "moved up": "A:A/B"}
    assert statements(atlas, ("A/B", "B")) == {"simulated": "A/B:B", "moved down": "B/C:C"}
    assert statements(atlas, ("B",)) == {"simulated": "B:B", "moved up": "A:A", "moved down": "C:C"}
    assert statements(atlas, ("canal",)) == {"simulated": ("canal",)}


class Reader(torch.nn.Module):
    """Names the bright pixels after the structures that the text calls visible, and nothing else."""

    uses_text = True
    size_multiple = 1

    def forward(self, image: torch.Tensor, text: TextFeatures | None) -> SegmenterOutput:
        assert text is not None
        logits = torch.zeros(len(image), 20, *image.shape[-2:])
        logits[:, 0] = 0.5
        for plane, present in zip(logits, text.present, strict=True):
            first = int(torch.nonzero(present)[0])
            plane[1 + first] = 1.0
        return SegmenterOutput(logits)


def test_a_model_gets_the_text_of_each_row(experiment: Experiment) -> None:
    evaluation = evaluate_windows(experiment, Segmenter(Reader()), device=CPU)
    atlas = experiment.atlas
    for row in evaluation.scores:
        if row.metric == "dsc" and row.stated_by != "template":
            first = min(atlas.between(*row.statement.split(":")), key=lambda name: atlas[name].index)
            assert (row.value > 0) == (row.structure == first) or row.value == 0
    values = {row.value for row in evaluation.scores if row.metric == "dsc" and row.structure and row.value > 0}
    assert values
    for example in evaluation.examples.values():
        assert (example.share, set(example.predictions) >= {"simulated", "template"}) == (0.5, True)
        assert example.reference.shape == (example.window.height, example.window.width)


def test_a_model_without_text_has_one_row_set_and_reads_volumes(tiny_recipe: Path) -> None:
    overrides = ["prompts=null", "auxiliary_losses=[]", "model={network: {use: staged}}", WINDOWS]
    experiment = build(load_recipe(tiny_recipe, overrides))
    calls: list[int] = []
    segmenter = experiment.segmenter()
    segmenter.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    evaluation = evaluate_windows(experiment, segmenter, device=CPU)
    assert {(row.stated_by, row.statement) for row in evaluation.scores} == {("none", "")}
    assert set(calls) == {5}  # every slice of a case at once
    assert len(calls) == 7 * len(experiment.cases["test"])


def _shown(reference: NDArray[np.uint8]) -> set[int]:
    return set(np.unique(reference).tolist()) - {0}


def test_only_named_structures_are_in_the_reference(experiment: Experiment) -> None:
    atlas, prepared = experiment.atlas, experiment.cases["test"][0]
    reference, _ = prepared.native_mask(experiment.dataset.label_map(prepared.case))
    cuts = list(cut_windows(experiment, prepared, [0.5]))
    assert [cut.window for cut in cuts] == list(fixed_windows(0.5, (reference.shape[1], reference.shape[2])))
    cut_away = 0
    for cut in cuts:
        part = reference[cut.window.slices]
        named = {atlas[name].index for name in cut.named}
        assert _shown(cut.reference) == _shown(part) & named
        np.testing.assert_array_equal(cut.reference[cut.reference > 0], part[cut.reference > 0])
        for index in _shown(part) - named:
            cut_away += 1
            assert (part == index).sum() < 0.3 * (reference == index).sum()
    assert cut_away
