"""Predict and score the test cases of a checkpoint, and the validation cases while it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from textseg.contracts import Source, Visibility
from textseg.data.augmentation import FixedOrder
from textseg.data.field_of_view import find_body, fixed_windows, named_structures, view_of_window
from textseg.data.preparation import PreparedCase
from textseg.data.slice_geometry import highest
from textseg.data.slices import SliceStack
from textseg.errors import DataError, RunError
from textseg.evaluation.scoring import compared_maps, score_case
from textseg.inference.slices import CasePrediction, predict_case, slice_logits
from textseg.inference.structure_finder import prompted_slices
from textseg.levels.level_naming import LevelNaming, compare_names
from textseg.metrics.definitions import score
from textseg.metrics.named import DICE
from textseg.metrics.scores import Score, StatedSource, summarise
from textseg.models.segmenter import Segmenter
from textseg.recipe.schema import AugmentationSettings, Recipe
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder, load_weights
from textseg.runs.identity import PREDICTING, component_changes, warn_of_changes
from textseg.system import distributed
from textseg.system.messages import counted
from textseg.text.visibility import FEW, person_visibility
from textseg.volumes.geometry import Geometry
from textseg.volumes.labels import fullest_slice, without_ignored

VALIDATED_SHARE = 0.5  # of the rows, in the windows that validation cuts
ALWAYS_EQUAL = ("data", "split", "preparation")  # hashes that training and evaluation must share


@dataclass(frozen=True)
class ExampleSlice:
    """The slice of a case whose reference shows the most structures, with its prediction."""

    prepared: PreparedCase
    index: int  # 0-based
    reference: NDArray[np.uint8]  # class indices [H, W]
    prediction: NDArray[np.uint8]  # class indices [H, W]
    dsc: float  # mean over the structures of the whole case
    native: bool  # True for the size of the file, False for the prepared size


@dataclass(frozen=True)
class CaseResult:
    """A test case with its prediction, its scores, and the errors in its level names."""

    prepared: PreparedCase
    prediction: NDArray[np.uint8]  # class indices [S, H, W] in the size of the file
    geometry: Geometry  # of the annotation
    example: ExampleSlice
    visibility: Visibility | None  # what the prompts stated about the whole volume
    naming: LevelNaming
    scores: Sequence[Score]
    group_scores: Sequence[Score]


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of all test cases, in the order of the cases; the keys of mappings are case ids.

    It holds no volume, so that a large test set needs little memory.
    """

    prompts: StatedSource | None  # the source of the prompts
    scores: list[Score] = field(default_factory=list)
    group_scores: list[Score] = field(default_factory=list)
    naming: dict[str, LevelNaming] = field(default_factory=dict)
    examples: dict[str, ExampleSlice] = field(default_factory=dict)
    visibilities: list[tuple[PreparedCase, Visibility]] = field(default_factory=list)  # if the prompts state one

    def add(self, case: CaseResult) -> None:
        """Add the results of one case."""
        self.scores.extend(case.scores)
        self.group_scores.extend(case.group_scores)
        self.naming[case.prepared.case.id] = case.naming
        self.examples[case.prepared.case.id] = case.example
        if case.visibility is not None:
            self.visibilities.append((case.prepared, case.visibility))


@dataclass(frozen=True)
class Validation:
    """The mean DSC on the validation cases during training."""

    dsc: float  # mean over structures, on whole pictures
    groups: Mapping[str, float] = field(default_factory=dict)  # mean over the structures of each group
    examples: Sequence[ExampleSlice] = ()
    windows_dsc: float | None = None  # mean over structures, in windows of `VALIDATED_SHARE`; None without them

    @property
    def score(self) -> float:
        """The number that selects the best checkpoint: the mean of both."""
        return self.dsc if self.windows_dsc is None else (self.dsc + self.windows_dsc) / 2


def evaluate(
    experiment: Experiment,
    segmenter: Segmenter,
    *,
    source: Source | None,
    device: torch.device,
    named: str | None = None,
    on_case: Callable[[CaseResult], None] = lambda case: None,
) -> EvaluationResult:
    """Predict and score the test cases with the prompts of `source`.

    Several processes share the cases; each of them gets all results.

    Args:
        experiment: the experiment, with the prompts of `source`.
        segmenter: the model, on `device`.
        source: the source of the prompts; None for a model without text.
        device: the device to compute on.
        named: the structures that a person named for `interactive` prompts; without it the scores state `simulated`.
        on_case: a function that is called with each result, so that a caller can save predictions.
    """
    result = EvaluationResult(stated_source(source, named))
    names = [metric.name for metric in experiment.metrics]
    # Examples are ranked by DSC, so it is computed even where the recipe does not ask for it.
    scored = list({DICE.name: DICE, **{metric.name: metric for metric in experiment.metrics}}.values())
    segmenter.eval()

    def evaluated(prepared: PreparedCase) -> CaseResult:
        prediction, visibility = _predict(experiment, segmenter, prepared, source, device)
        assert prediction.native is not None
        # The annotation is decoded here, once: scores, level names, the example and the geometry come from it.
        reference, geometry = prepared.native_mask(experiment.dataset.label_map(prepared.case))
        prompts = result.prompts or "none"
        if visibility is not None and visibility.source == "template":
            prompts = "template"  # of a case without a report or a statement
        rows, merged = score_case(experiment, prepared, prediction, reference, source=prompts, metrics=scored)
        maps, _ = compared_maps(experiment, prepared, prediction, reference)
        dsc = [row.value for row in rows if row.metric == DICE.name and row.status in ("ok", "missed")]
        index = fullest_slice(reference)
        mean = float(np.mean(dsc)) if dsc else 0.0
        return CaseResult(
            prepared=prepared,
            prediction=prediction.native,
            geometry=geometry,
            # Copies: a view would keep the whole volume.
            example=ExampleSlice(
                prepared, index, reference[index].copy(), prediction.native[index].copy(), mean, native=True
            ),
            visibility=visibility,
            naming=compare_names(*maps, experiment.atlas),
            scores=[row for row in rows if row.metric in names],
            group_scores=[row for row in merged if row.metric in names],
        )

    for case in distributed.in_turns(experiment.cases["test"], evaluated):
        on_case(case)
        result.add(case)
    return result


def stated_source(source: Source | None, named: str | None) -> StatedSource | None:
    """Return the source that scores state: `simulated` for interactive prompts that no person named."""
    return source if source is None or named else stated_as(source)


def stated_as(source: Source) -> StatedSource:
    """Return the source that scores state if no person named a structure."""
    return "simulated" if source == "interactive" else source


def rebuild(recipe: Recipe, folder: RunFolder, **options: Any) -> Experiment:
    """Return the experiment of a finished run; `options` are those of `build`.

    Raises DataError for missing data, and RunError for data that differ from those of the training.
    """
    try:
        experiment = build(recipe, **options)
    except DataError as error:
        advice = "If the data have moved since the training, add: --set dataset.folder=DIR"
        raise DataError(f"{error}\n{advice}") from error
    check_data(experiment, folder)
    return experiment


def check_data(experiment: Experiment, folder: RunFolder) -> None:
    """Raise RunError if the data differ from those of the training: a training patient could then be a test patient.

    Warn if the code of the model or of the data set has changed since.
    """
    before, now = folder.read().get("hashes", {}), experiment.hashes()
    if changed := [key for key in ALWAYS_EQUAL if before.get(key) != now[key]]:
        raise RunError(
            f"'{folder.path}' was trained on other data than those at hand: {', '.join(changed)} changed, so patients "
            f"of the training may be among the test. Restore the data of '{experiment.recipe.dataset.use}', or train "
            "again: textseg run RECIPE --fresh"
        )
    recorded = folder.read().get("components", {})
    changes = component_changes(recorded, experiment.component_facts(), of=PREDICTING | {"dataset"})
    warn_of_changes(folder.path, changes)


def load_segmenter(experiment: Experiment, folder: RunFolder) -> Segmenter:
    """Return the model of a run with the weights of the checkpoint that the recipe evaluates, in evaluation mode.

    Raises RunError for a checkpoint of another model.
    """
    segmenter, name = experiment.segmenter(), experiment.recipe.evaluation.checkpoint
    mismatch = f"'{folder.checkpoint(name)}' does not fit the model of '{folder.recipe}'"
    origin = "It comes from another version of a plug-in, or from another run"
    advice = f"{origin}: train again with `textseg run RECIPE --fresh`."
    load_weights(segmenter, folder.load_checkpoint(name), mismatch, advice)
    return segmenter.eval()


def headline(
    scores: Sequence[Score], structures: Sequence[str], prompts: StatedSource | None, *, of: str = "seen in training"
) -> str:
    """Return the scores in two lines; `prompts` is the source of the prompts, `of` describes the `structures`."""
    overall = summarise(scores, structures=structures).overall
    means = ", ".join(
        f"{metric} –"
        if not mean.n
        else f"{metric} {mean.value:.4f}"
        if not mean.unit
        else f"{metric} {mean.value:.2f} {mean.unit}"
        for metric, mean in overall.items()
    )
    first = next(iter(overall.values()))
    cases, sources = len({row.case for row in scores}), {row.prompt_source for row in scores}
    mark = {
        "ground_truth": " ORACLE (prompts from the annotation)",
        "simulated": " SIMULATED (first and last structure from the annotation)",
        "report": " REPORT (words that came with the cases)",
    }.get(prompts or "", "")
    by_source = {source: len({row.case for row in scores if row.prompt_source == source}) for source in sources}
    mixture = " + ".join(f"{source} ({counted(number, 'case')})" for source, number in sorted(by_source.items()))
    return (
        f"test: {means}; {first.missed} missed, {first.spurious} spurious\n"
        f"mean over {counted(first.n, 'structure')} {of}, {counted(cases, 'case')}; "
        f"prompts: {mixture if len(sources) > 1 else prompts or 'none'}{mark}"
    )


def validate(
    experiment: Experiment, segmenter: Segmenter, part: str, device: torch.device, *, examples: int = 0
) -> Validation:
    """Return the mean DSC over cases and structures, per volume at the prepared size; it selects the best checkpoint.

    If the recipe trains on windows, the cases are also scored in windows, under the text that is right for each.
    `examples` is the number of example slices, one for each case.
    """
    from textseg.evaluation.mean_dice import MeanDice  # the import of torchmetrics is slow, and only training validates

    cases, dice, dice_in_windows = experiment.cases[part], MeanDice(experiment.atlas), MeanDice(experiment.atlas)
    drawn: dict[int, tuple[int, NDArray[np.uint8], NDArray[np.uint8], float]] = {}  # by the number of the case
    for number in range(distributed.rank(), len(cases), distributed.count()):
        prepared = cases[number]
        prediction, _ = _predict(experiment, segmenter, prepared, experiment.evaluation_source, device, native=False)
        shown = sorted({index for plane in prepared.present for index in plane})
        reference = np.asarray(prepared.mask)
        expected, predicted = without_ignored(reference, prediction.prepared)
        values = _dice(predicted, expected, shown)
        dice.update(values)
        if number < examples:
            index, mean = fullest_slice(reference), float(np.mean([*values.values()] or 0.0))
            drawn[number] = index, reference[index].copy(), prediction.prepared[index].copy(), mean
        if experiment.augmentation.windows:
            for values in _window_scores(experiment, segmenter, prepared, device=device):
                dice_in_windows.update(values)
    (dsc, groups), (in_windows, _) = dice.compute(), dice_in_windows.compute()
    shared = {number: example for share in distributed.gathered(drawn) for number, example in share.items()}
    slices = [ExampleSlice(cases[number], *shared[number], native=False) for number in sorted(shared)]
    return Validation(
        dsc=0.0 if math.isnan(dsc) else dsc,
        groups=groups,
        examples=slices,
        windows_dsc=None if math.isnan(in_windows) else in_windows,
    )


def _dice(prediction: NDArray[Any], reference: NDArray[Any], structures: Sequence[int]) -> dict[int, float]:
    result = score(prediction, reference, spacing=(1.0, 1.0, 1.0), structures=structures, metrics=[DICE])
    return {index: values.values[DICE.name] for index, values in result.items()}


def _window_scores(
    experiment: Experiment, segmenter: Segmenter, prepared: PreparedCase, *, device: torch.device
) -> Iterator[dict[int, float]]:
    """Yield the DSC of the structures that a person would name in each window of a case, by index.

    The windows are cut from the prepared slices, as in training. The text states what the window shows. A model whose
    training never named what a picture shows gets the template. So does a window about which no text was encoded: one
    without a level, or any of an atlas with many structures and no order.
    """
    atlas, recipe = experiment.atlas, experiment.recipe
    informed = recipe.prompts is not None and recipe.prompts.names_levels_in_training
    image, mask = torch.from_numpy(np.array(prepared.image)).float(), torch.from_numpy(np.array(prepared.mask))
    body = find_body(prepared.image) if recipe.preparation.crop == "body" else None
    unchanged = FixedOrder(AugmentationSettings(), recipe.seed)
    for window in fixed_windows(VALIDATED_SHARE, prepared.slice_geometry.native_size):
        view = view_of_window(prepared, window, body)
        shown, labels = unchanged.of_batch(image, mask, [0], epoch=0, views=[view])
        before, after = (torch.bincount(m.flatten(), minlength=atlas.class_count).tolist() for m in (mask, labels))
        sizes = {index: count * view.area_scale for index, count in enumerate(before)}
        named = named_structures(atlas, sizes, dict(enumerate(after)))
        if not named:
            continue
        text = None
        encoded = bool(set(named) & set(atlas.sequence)) if atlas.ordered else len(atlas.names) <= FEW
        if experiment.text_read is not None and informed and encoded:
            text = experiment.text_read.stating(prepared, person_visibility(atlas, named, prepared.case.facts))
        elif experiment.text_read is not None:
            text = experiment.text_read.of([prepared], ["template"])
        slices_mm, rows_mm, columns_mm = prepared.spacing_mm
        spacing_mm = (slices_mm, rows_mm * view.scale[0], columns_mm * view.scale[1])
        stack = SliceStack(shown.half().numpy(), text, spacing_mm)
        logits = slice_logits(segmenter, stack, device=device, batch_size=recipe.training.batch_size)
        prediction = torch.cat([highest(batch.unbind(1))[1].cpu() for batch in logits]).numpy()
        # A structure between the first and the last one may be missing; it has no DSC.
        indices = [index for index in (atlas[name].index for name in named) if after[index]]
        expected, predicted = without_ignored(labels.numpy(), prediction)
        yield _dice(predicted, expected, indices)


def _predict(
    experiment: Experiment,
    segmenter: Segmenter,
    prepared: PreparedCase,
    source: Source | None,
    device: torch.device,
    *,
    native: bool = True,
) -> tuple[CasePrediction, Visibility | None]:
    slices, visibility = prompted_slices(experiment, segmenter, prepared, source, device)
    batch_size = experiment.recipe.training.batch_size
    prediction = predict_case(segmenter, prepared, slices, device=device, batch_size=batch_size, native=native)
    return prediction, visibility
