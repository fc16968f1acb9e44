from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from medpy.metric import binary

from textseg.contracts import Atlas, TextFeatures, Visibility
from textseg.errors import RunError
from textseg.evaluation import evaluate as evaluation
from textseg.evaluation.evaluate import evaluate, headline, load_segmenter, validate
from textseg.inference.slices import predict_case
from textseg.metrics.scores import Score, read_scores
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_recipe
from textseg.recipe.schema import ComponentSpec, FieldOfViewSettings, MetricSpec, PromptSettings
from textseg.reports.run_evaluation import evaluate_and_write
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder
from textseg.text.prompts import generate
from textseg.volumes.files import Volume, read_labels

pytestmark = pytest.mark.usefixtures("stranger")
CPU = torch.device("cpu")


class Guess(torch.nn.Module):
    """Class 1 where the image is bright, class 19 elsewhere in its right half; see `guessed`."""

    uses_text = False
    size_multiple = 1

    def forward(self, image: torch.Tensor, text: TextFeatures | None) -> Any:
        from textseg.contracts import SegmenterOutput

        logits = torch.zeros(image.shape[0], 20, *image.shape[-2:])
        logits[:, 0] = 0.5
        logits[:, 1] = (image[:, 0] > 0.5).float()
        logits[..., image.shape[-1] // 2 :][:, 19] = 0.75
        return SegmenterOutput(logits)


def guessed(image: np.ndarray) -> np.ndarray:
    """Return the prediction of `Guess`, [S, H, W] -> [S, H, W]."""
    labels = np.zeros(image.shape, np.uint8)
    labels[..., image.shape[-1] // 2 :] = 19
    labels[np.asarray(image, np.float32) > 0.5] = 1
    return labels


@pytest.fixture(scope="module")
def without_text(tiny_recipe: Path, stranger: None) -> Experiment:
    overrides = ["prompts=null", "auxiliary_losses=[]", "model={network: {use: plain}}"]
    return build(load_recipe(tiny_recipe, overrides))


def measured(experiment: Experiment, **settings: Any) -> Experiment:
    recipe = experiment.recipe
    return replace(
        experiment,
        recipe=recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=settings)}),
    )


def scored(experiment: Experiment, **settings: Any) -> list[Score]:
    return evaluate(measured(experiment, **settings), Segmenter(Guess()), source=None, device=CPU).scores


def test_scores_are_those_of_medpy_on_a_prediction_by_hand(finished_run: Path) -> None:
    experiment = build(load_recipe(finished_run / "recipe.yaml"))
    atlas, registry, recipe = experiment.atlas, experiment.registry, experiment.recipe
    assert recipe.prompts is not None
    generator = registry.build("prompt_generator", "atpg_lumbar", atlas, settings={})
    words = registry.build("text_encoder", "hashed_words", settings={})
    segmenter = experiment.segmenter().eval()
    state = torch.load(finished_run / "checkpoints" / "best.ckpt", weights_only=True)
    segmenter.load_state_dict(state["model"])
    rows = {(row.case, row.structure, row.metric): row for row in read_scores(finished_run / "scores.csv")}
    checked = 0
    for prepared in experiment.cases["test"]:
        height, width = prepared.slice_geometry.native_size
        prediction = np.zeros((prepared.slice_count, height, width), np.uint8)
        for index in range(prepared.slice_count):
            visibility = Visibility(atlas.names, "template", "volume", facts=prepared.case.facts)
            prompts = generate(generator, atlas, visibility.at(index, prepared.slice_count))
            tokens, mask = words([prompts.holistic])
            # The run keeps features in 16 bits.
            tokens = F.pad(tokens.half().float(), (0, 0, 0, experiment.task.text_length - tokens.shape[1]))
            mask = F.pad(mask, (0, experiment.task.text_length - mask.shape[1]))
            text = TextFeatures(tokens, mask, None, torch.ones(1, 19, dtype=torch.bool))
            image = torch.from_numpy(prepared.image[index].astype(np.float32))[None]
            with torch.inference_mode():
                logits = segmenter(image, text).logits
            box_geometry = prepared.slice_geometry
            box = F.interpolate(logits, (box_geometry.height, box_geometry.width), mode="bilinear").argmax(1)[0].numpy()
            for row in range(height):
                for column in range(width):
                    y, x = row - box_geometry.top, column - box_geometry.left
                    if 0 <= y < box_geometry.height and 0 <= x < box_geometry.width:
                        prediction[index, row, column] = box[y, x]
        image = sitk.DICOMOrient(sitk.ReadImage(str(prepared.case.mask)), "PIR")
        values = sitk.GetArrayFromImage(image)
        label_map = experiment.dataset.label_map(prepared.case)
        reference = np.vectorize(label_map.__getitem__)(values)
        for structure in atlas.structures:
            ours, theirs = prediction == structure.index, reference == structure.index
            row = rows[prepared.case.id, structure.name, "dsc"]
            assert row.status == ("ok" if ours.any() and theirs.any() else row.status)
            if ours.any() and theirs.any():
                checked += 1
                assert row.value == pytest.approx(binary.dc(ours, theirs))
                assert rows[prepared.case.id, structure.name, "asd"].value == pytest.approx(
                    binary.asd(ours, theirs, voxelspacing=prepared.native_spacing_mm)
                )
            elif theirs.any():
                assert (row.status, row.value) == ("missed", 0.0)
    assert checked >= 2


def test_per_slice_at_the_prepared_size_in_pixels(without_text: Experiment) -> None:
    scores = scored(without_text, per="slice", space="prepared", unit="pixel")
    assert {(row.unit, row.space) for row in scores} == {("", "prepared"), ("pixel", "prepared")}
    prepared = without_text.cases["test"][0]
    measures = {"dsc": binary.dc, "jaccard": binary.jc, "hd95": binary.hd95, "asd": binary.asd}
    prediction, reference = guessed(prepared.image[:, 0]) == 19, np.asarray(prepared.mask) == 19
    checked = 0
    for row in scores:
        if row.case == prepared.case.id and row.structure == "SC":
            assert (row.status in ("ok", "missed")) == bool(reference[row.slice].any())
            if row.status == "ok":
                checked += 1
                assert row.value == pytest.approx(measures[row.metric](prediction[row.slice], reference[row.slice]))
    assert checked >= 4
    assert {row.slice for row in scores if row.case == prepared.case.id} == set(range(prepared.slice_count))


def test_millimetres_and_pixels_differ_by_the_spacing(without_text: Experiment) -> None:
    values = {}
    for unit in ("mm", "pixel"):
        rows = scored(without_text, per="slice", unit=unit, metrics=(MetricSpec(use="asd"),))
        values[unit] = np.array([row.value for row in rows])
        assert {(row.metric, row.unit, row.space) for row in rows} == {("asd", unit, "native")}
    there = np.isfinite(values["mm"])
    assert there.any()
    spacing = without_text.cases["test"][0].native_spacing_mm
    assert spacing[1] == spacing[2]
    np.testing.assert_allclose(values["mm"][there], values["pixel"][there] * spacing[1], rtol=1e-6)


def test_validation_is_the_mean_over_structures_of_the_mean_over_cases(without_text: Experiment) -> None:
    segmenter = Segmenter(Guess()).eval()
    values: dict[int, list[float]] = {}
    for prepared in without_text.cases["train"]:
        prediction, reference = guessed(prepared.image[:, 0]), np.asarray(prepared.mask)
        for index in np.unique(reference)[1:]:
            values.setdefault(int(index), []).append(binary.dc(prediction == index, reference == index))
    expected = np.mean([np.mean(several) for several in values.values()])
    assert expected > 0
    validation = validate(without_text, segmenter, "train", CPU, examples=2)
    assert validation.dsc == pytest.approx(expected)
    atlas = without_text.atlas
    assert validation.groups.keys() == atlas.groups.keys()
    for group, names in atlas.groups.items():
        means = [np.mean(values[atlas[name].index]) for name in names if atlas[name].index in values]
        assert validation.groups[group] == pytest.approx(np.mean(means))
    assert [example.prepared for example in validation.examples] == without_text.cases["train"][:2]
    for example in validation.examples:
        np.testing.assert_array_equal(example.reference, np.asarray(example.prepared.mask)[example.index])
        np.testing.assert_array_equal(example.prediction, guessed(example.prepared.image[:, 0])[example.index])


def test_a_structure_that_a_window_lacks_is_not_validated(
    without_text: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = FieldOfViewSettings(probability=1)
    recipe = without_text.recipe
    augmentation = recipe.augmentation.model_copy(update={"field_of_view": seen})
    windowed = replace(without_text, recipe=recipe.model_copy(update={"augmentation": augmentation}))
    expected = validate(windowed, Segmenter(Guess()).eval(), "train", CPU).windows_dsc
    assert expected is not None
    assert np.isfinite(expected)
    named_structures = evaluation.named_structures

    def stretched(atlas: Atlas, before: Any, after: Any) -> tuple[str, ...]:
        """Name every structure, as in a picture that shows the first and the last one and lacks one between them."""
        return atlas.names if named_structures(atlas, before, after) else ()

    monkeypatch.setattr(evaluation, "named_structures", stretched)
    dsc = validate(windowed, Segmenter(Guess()).eval(), "train", CPU).windows_dsc
    assert dsc is not None
    assert np.isfinite(dsc)


@pytest.mark.parametrize("few", [True, False])
def test_windows_of_a_few_structures_without_an_order_have_the_right_text(without_text: Experiment, few: bool) -> None:
    class Texts:
        """The texts of a run; it notes what is stated, and gives the model none."""

        def __init__(self) -> None:
            self.stated: list[tuple[str, ...]] = []

        def stating(self, prepared: Any, visibility: Visibility) -> None:
            self.stated.append(visibility.visible)

        def of(self, cases: Any, sources: list[str]) -> None:
            assert sources == ["template"]
            self.stated.append(())

    structures = without_text.atlas.structures[: 6 if few else 7]
    recipe, texts = without_text.recipe, Texts()
    part = ComponentSpec(use="any")
    prompts = PromptSettings(generator=part, text_encoder=part, training={"interactive": 1.0})
    experiment: Any = replace(
        without_text,
        recipe=recipe.model_copy(update={"prompts": prompts}),
        dataset=SimpleNamespace(atlas=Atlas("bag", structures)),
        text=texts,  # type: ignore[arg-type]
    )
    prepared = experiment.cases["train"][0]
    scores = list(evaluation._window_scores(experiment, Segmenter(Guess()).eval(), prepared, device=CPU))
    assert scores
    scored = {structures[index - 1].name for values in scores for index in values}
    assert {name for names in texts.stated for name in names} == (scored if few else set())


def test_a_checkpoint_of_another_model_is_one_message(copied: Path, finished_run: Path) -> None:
    folder = RunFolder(copied)
    folder.save_checkpoint("best", {"model": {"x": torch.zeros(1)}})
    with pytest.raises(RunError, match="best.ckpt' does not fit the model of '.*recipe.yaml'.* --fresh") as caught:
        load_segmenter(build(load_recipe(folder.recipe)), folder)
    assert "\n" not in str(caught.value)


def test_the_headline_counts_what_the_means_leave_out() -> None:
    row = Score("1", "1", None, "SC", "dsc", "", "native", 0.5, 0.0, "ok", "ground_truth")
    rows = [
        row,
        replace(row, metric="hd95", unit="mm", value=2.0),
        replace(row, case="2", value=0.0, status="missed"),
        replace(row, case="2", metric="hd95", unit="mm", value=float("nan"), status="missed"),
    ]
    assert headline(rows, ["SC"], "ground_truth") == (
        "test: dsc 0.2500, hd95 2.00 mm; 1 missed, 0 spurious\n"
        "mean over 1 structure seen in training, 2 cases; prompts: ground_truth ORACLE (prompts from the annotation)"
    )
    assert headline(rows, ["SC"], None).endswith("prompts: none")


def test_results_are_those_of_the_cases_in_their_order(without_text: Experiment) -> None:
    cases = []
    segmenter = Segmenter(Guess()).eval()
    result = evaluate(without_text, segmenter, source=None, device=CPU, on_case=cases.append)
    assert [case.prepared for case in cases] == without_text.cases["test"]
    assert result.prompts is None
    assert result.visibilities == []
    assert list(result.naming) == list(result.examples) == [case.prepared.case.id for case in cases]
    for case in cases:
        slices = without_text.slices(case.prepared, None)
        expected = predict_case(segmenter, case.prepared, slices, device=CPU, batch_size=4)
        np.testing.assert_array_equal(case.prediction, expected.native)
        example = case.example
        reference = case.prepared.native_mask(without_text.dataset.label_map(case.prepared.case))[0]
        np.testing.assert_array_equal(example.reference, reference[example.index])
        np.testing.assert_array_equal(example.prediction, case.prediction[example.index])


@pytest.mark.parametrize("space", ["native", "prepared"])
def test_each_annotation_is_decoded_once(
    without_text: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, space: str
) -> None:
    read: list[str] = []

    def counting(path: Path | str, plane: Any = "sagittal") -> Volume:
        read.append(str(path))
        return read_labels(path, plane)

    # Every module that could read a mask while a run is evaluated and its report is written.
    for name, module in list(sys.modules.items()):
        if name.startswith("textseg.") and getattr(module, "read_labels", None) is read_labels:
            monkeypatch.setattr(module, "read_labels", counting)
    folder = RunFolder(tmp_path)
    experiment = measured(without_text, space=space)
    evaluate_and_write(experiment, Segmenter(Guess()), folder, folder, source=None, device=CPU)
    assert sorted(read) == sorted(str(prepared.case.mask) for prepared in without_text.cases["test"])
