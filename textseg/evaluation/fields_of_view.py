"""Score the test cases in windows of their scans, under a right text, the template, and texts that are off by a level.

A window stands for a scan that shows only a part of the body. There the image alone often does not give the names, so
these scores show whether the text decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from textseg.contracts import IGNORED, Atlas
from textseg.data.field_of_view import Window, fixed_windows, named_structures
from textseg.data.preparation import PreparedCase
from textseg.data.slice_geometry import PreparedVolume, prepare_volume
from textseg.data.slices import SliceStack
from textseg.inference.slices import predict_case
from textseg.inference.trained_model import EncodedTexts
from textseg.levels.level_naming import compare_names
from textseg.levels.obedience import obedience, shows_landmark
from textseg.metrics.definitions import score
from textseg.metrics.named import DICE
from textseg.metrics.window_scores import MOVED, PLACES, StatedBy, WindowScore
from textseg.models.segmenter import Segmenter
from textseg.runs.experiment import Experiment
from textseg.system import distributed
from textseg.text.reading import interactive_visibility
from textseg.text.slice_text import SlicePrompt, SliceText, volume_prompts
from textseg.text.visibility import shifted
from textseg.volumes.labels import fullest_slice, without_ignored
from textseg.volumes.scan import Scan, read_scan


@dataclass(frozen=True)
class CutCase:
    """A window of a case: its slices as networks read them, and what it shows."""

    share: float
    location: str  # one of `textseg.metrics.window_scores.PLACES`
    window: Window
    prepared: PreparedVolume
    reference: NDArray[np.uint8]  # [S, H, W] of the window, in the pixels of the file: named structures and `IGNORED`
    named: tuple[str, ...]  # the structures that a person names, in class order
    landmark: str  # "yes" or "no"; empty for an atlas without landmarks


@dataclass(frozen=True)
class ExampleWindow:
    """One slice of a window with its reference, and its prediction under each text."""

    case: PreparedCase
    share: float
    location: str
    window: Window
    index: int  # 0-based
    reference: NDArray[np.uint8]  # [H, W]
    predictions: Mapping[StatedBy, NDArray[np.uint8]]  # each [H, W]
    statements: Mapping[StatedBy, str]
    dsc: float  # mean over the named structures under the right text


@dataclass(frozen=True)
class WindowEvaluation:
    """The scores of all test cases in all windows, and an example of each case."""

    scores: list[WindowScore] = field(default_factory=list)
    examples: dict[str, ExampleWindow] = field(default_factory=dict)  # by case id


@dataclass(frozen=True)
class WindowText:
    """A text about a window, with its author; `prompts` is None for a model without text."""

    author: StatedBy
    statement: str  # such as "T12:L3"
    prompts: Sequence[SlicePrompt] | None


def evaluate_windows(
    experiment: Experiment,
    segmenter: Segmenter,
    *,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> WindowEvaluation:
    """Score the test cases in the windows of the recipe's `evaluation.fields_of_view`, and on the whole picture.

    Several processes share the cases; each of them gets all results. `progress` is called with the number of cases
    that are done, and of all cases.
    """
    shares = experiment.recipe.evaluation.fields_of_view or ()
    encoded = EncodedTexts(experiment.recipe, experiment.registry, experiment.task)
    segmenter.eval()
    result = WindowEvaluation()

    def scored(prepared: PreparedCase) -> tuple[list[WindowScore], ExampleWindow | None]:
        rows: list[WindowScore] = []
        examples: list[tuple[bool, ExampleWindow]] = []
        for cut in cut_windows(experiment, prepared, (1.0, *sorted(shares, reverse=True))):
            texts = window_texts(experiment, prepared, cut)
            predictions = {
                text.author: predict_window(experiment, segmenter, cut, text, encoded, device) for text in texts
            }
            scores = _score(experiment.atlas, prepared, cut, texts, predictions)
            rows += scores
            if cut.share == min(shares):
                example = _example(prepared, cut, texts, predictions, scores)
                examples.append((cut.landmark != "no", example))
        # A window without a landmark shows best whether the text decides.
        return rows, min(examples, key=lambda pair: pair[0])[1] if examples else None

    cases = experiment.cases["test"]
    for done, (prepared, (rows, example)) in enumerate(
        zip(cases, distributed.in_turns(cases, scored), strict=True), start=1
    ):
        progress(done, len(cases))
        result.scores.extend(rows)
        if example is not None:
            result.examples[prepared.case.id] = example
    return result


def cut_windows(experiment: Experiment, prepared: PreparedCase, shares: Sequence[float]) -> Iterator[CutCase]:
    """Yield the windows of a case, each prepared like a file of its own; those that show nothing to name are left out.

    Share 1 is the whole picture.
    """
    atlas = experiment.atlas
    preparation = experiment.recipe.preparation
    scan = read_scan(prepared.case.image, prepared.plane, resample=preparation.resample_channels)
    reference, _ = prepared.native_mask(experiment.dataset.label_map(prepared.case))
    before = _sizes(reference, atlas)
    for share in shares:
        windows = fixed_windows(share, (reference.shape[1], reference.shape[2]))
        for location, window in zip(PLACES[1:] if len(windows) > 1 else PLACES[:1], windows, strict=True):
            part = reference[window.slices]
            after = _sizes(part, atlas)
            named = named_structures(atlas, before, after)
            if not named:
                continue
            kept = np.isin(part, [*(atlas[name].index for name in named), IGNORED])
            yield CutCase(
                share=share,
                location=location,
                window=window,
                prepared=prepare_volume(cut_scan(scan, window), preparation),
                reference=np.where(kept, part, 0).astype(np.uint8),
                named=named,
                landmark=("yes" if shows_landmark(part, atlas) else "no") if atlas.landmarks else "",
            )


def cut_scan(scan: Scan, window: Window) -> Scan:
    """Return the voxels of a window, as a scan that shows no more; the geometry is still that of the whole file."""
    return replace(scan, array=scan.array[:, *window.slices])


def _sizes(label_map: NDArray[np.uint8], atlas: Atlas) -> dict[int, int]:
    counts = np.bincount(label_map.ravel(), minlength=atlas.class_count).tolist()
    return {structure.index: counts[structure.index] for structure in atlas.structures}


def statements(atlas: Atlas, named: Sequence[str]) -> dict[StatedBy, str | Sequence[str]]:
    """Return what a person states about a window that shows the structures `named`, rightly and one level off.

    A statement is moved only if every name has a successor. A list that is cut at the end of the atlas would be
    shorter, not wrong.
    """
    stretch = [name for name in atlas.sequence if name in named]
    if not stretch:
        return {"simulated": named}
    moved = {author: shifted(atlas, stretch[0], stretch[-1], levels) for author, levels in MOVED.items()}
    return {
        "simulated": f"{stretch[0]}:{stretch[-1]}",
        **{author: statement for author, statement in moved.items() if statement},
    }


def window_texts(experiment: Experiment, prepared: PreparedCase, cut: CutCase) -> list[WindowText]:
    """Return the texts about a window; a model without text has one entry, without prompts."""
    text, atlas = experiment.text_read, experiment.atlas
    if text is None:
        return [WindowText("none", "", None)]
    # The template knows nothing of the picture, so it is the same in a window as in the whole volume.
    texts = [WindowText("template", "", text.prompts[prepared.case.id]["template"])]
    for author, named in statements(atlas, cut.named).items():
        visibility = interactive_visibility(atlas, named, prepared.case.facts)
        prompts = volume_prompts(visibility, prepared.slice_count, text.generator, atlas)
        texts.append(WindowText(author, named if isinstance(named, str) else ", ".join(named), prompts))
    return texts


def predict_window(
    experiment: Experiment,
    segmenter: Segmenter,
    cut: CutCase,
    text: WindowText,
    encoded: EncodedTexts,
    device: torch.device,
) -> NDArray[np.uint8]:
    """Return the label map of a window [S, H, W], in the pixels of the file."""
    # In 16 bits, as the slice store and `predict` have them.
    stack = SliceStack(cut.prepared.image.half().numpy(), spacing_mm=cut.prepared.spacing_mm)
    if text.prompts is not None:
        table = encoded(list(dict.fromkeys(line for prompt in text.prompts for line in prompt.texts)))
        stack = replace(stack, text=SliceText(table, experiment.atlas, {text.author: text.prompts}))
    batch_size = experiment.recipe.training.batch_size
    prediction = predict_case(segmenter, cut.prepared, stack, device=device, batch_size=batch_size)
    assert prediction.native is not None
    return prediction.native


def _score(
    atlas: Atlas,
    prepared: PreparedCase,
    cut: CutCase,
    texts: Sequence[WindowText],
    predictions: Mapping[StatedBy, NDArray[np.uint8]],
) -> list[WindowScore]:
    """Return the scores of a window under each text."""
    rows: list[WindowScore] = []
    reference, *counted = without_ignored(cut.reference, *predictions.values())
    predictions = dict(zip(predictions, counted, strict=True))
    labels = [atlas[name].index for name in cut.named]
    for text in texts:
        prediction = predictions[text.author]

        def row(structure: str, metric: str, value: float, text: WindowText = text) -> WindowScore:
            return WindowScore(
                case=prepared.case.id,
                patient=prepared.case.patient,
                share=cut.share,
                location=cut.location,
                landmark=cut.landmark,
                statement=text.statement,
                stated_by=text.author,
                structure=structure,
                metric=metric,
                value=value,
            )

        spacing_mm = prepared.native_spacing_mm
        scores = score(prediction, reference, spacing=spacing_mm, structures=labels, metrics=[DICE])
        rows += [row(atlas.names[label - 1], "dsc", scores[label].values["dsc"]) for label in labels]
        naming = compare_names(prediction, reference, atlas)
        rows += [row("", "dsc_without_names", naming.dsc_without_names), row("", "level_shift", float(naming.shift))]
        if levels := MOVED.get(text.author):
            followed = obedience(predictions["simulated"], prediction, atlas, levels)
            rows.append(row("", "obedience", followed.value))
    return rows


def _example(
    prepared: PreparedCase,
    cut: CutCase,
    texts: Sequence[WindowText],
    predictions: Mapping[StatedBy, NDArray[np.uint8]],
    scores: Sequence[WindowScore],
) -> ExampleWindow:
    index = fullest_slice(cut.reference)
    dsc = [row.value for row in scores if row.metric == "dsc" and row.stated_by in ("simulated", "none")]
    return ExampleWindow(
        case=prepared,
        share=cut.share,
        location=cut.location,
        window=cut.window,
        index=index,
        # Copies: a view would keep the whole volume.
        reference=cut.reference[index].copy(),
        predictions={author: label_map[index].copy() for author, label_map in predictions.items()},
        statements={text.author: text.statement for text in texts},
        dsc=float(np.nanmean(dsc)),
    )
