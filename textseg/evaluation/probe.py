"""The probe: scores of one checkpoint with correct, wrong and empty texts show how much it depends on the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from textseg.contracts import Atlas, Case, TextEncoder
from textseg.data.preparation import PreparedCase
from textseg.data.slices import SliceStack
from textseg.evaluation.fields_of_view import CutCase, cut_windows, predict_window, window_texts
from textseg.evaluation.probe_texts import BASELINE, MOVED, RIGHT, probe_subject, used_conditions
from textseg.evaluation.scoring import compared_maps, score_case
from textseg.inference.slices import predict_case
from textseg.inference.structure_finder import prompted_slices
from textseg.inference.trained_model import EncodedTexts
from textseg.levels.obedience import ComparedPicture, obedience, shows_landmark
from textseg.metrics.named import DICE
from textseg.metrics.scores import Score
from textseg.metrics.statistics import Interval, macro_mean_interval
from textseg.metrics.window_scores import MOVED as MOVED_BY
from textseg.metrics.window_scores import PERSON_ERRS
from textseg.models.segmenter import Segmenter
from textseg.runs.experiment import Experiment
from textseg.system.files import cache_folder
from textseg.system.progress import progress_bar
from textseg.text.embeddings import build_text_table
from textseg.text.slice_text import SlicePrompt, SliceText
from textseg.volumes.labels import without_ignored

WINDOW = 0.5  # share of the rows in the windows of the obedience
Maps = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # prediction and reference, in the space of the recipe


@dataclass(frozen=True)
class Drop:
    """The loss of DSC against the template, over patients: for one structure, or the macro mean of all (None)."""

    condition: str
    structure: str | None
    interval: Interval


@dataclass(frozen=True)
class ProbeResult:
    """The scores of the test cases under each condition, and their obedience to a moved text.

    A condition has no scores of a case that it leaves out, because the list can't be moved within the atlas.
    """

    scores: dict[str, list[Score]]  # by condition
    obedience: list[ComparedPicture]


def probe(experiment: Experiment, segmenter: Segmenter, device: torch.device) -> ProbeResult:
    """Score the test cases under each condition, with the protocol of the recipe's evaluation.

    Obedience is also measured in windows of half of the rows, since whole pictures often all show a landmark.
    `segmenter` is in evaluation mode, on `device`.
    """
    subjects = [probe_subject(experiment, number) for number in range(len(experiment.cases["test"]))]
    conditions = used_conditions(experiment)
    prompts = {c.name: [c.write_prompts(subject) for subject in subjects] for c in conditions if c.write_prompts}
    texts = _encoded(experiment, prompts)
    result = ProbeResult({condition.name: [] for condition in conditions}, [])
    encoder = EncodedTexts(experiment.recipe, experiment.registry, experiment.task)
    with progress_bar() as bar:
        task = bar.add_task("probing", total=(len(conditions) + 1) * len(subjects))
        for number, subject in enumerate(subjects):
            prepared = subject.prepared
            reference, _ = prepared.native_mask(experiment.dataset.label_map(prepared.case))
            compared: dict[str, Maps] = {}  # under the right list and the moved ones
            for condition in conditions:
                if condition.write_prompts is None:
                    slices, _ = prompted_slices(experiment, segmenter, prepared, "predicted", device)
                elif (text := texts[condition.name][number]) is not None:
                    slices = SliceStack(prepared.image, text, prepared.spacing_mm)
                else:
                    bar.update(task, advance=1)
                    continue
                size, native = experiment.recipe.training.batch_size, experiment.recipe.evaluation.space == "native"
                prediction = predict_case(segmenter, prepared, slices, device=device, batch_size=size, native=native)
                label = condition.label
                rows, _ = score_case(experiment, prepared, prediction, reference, source=label, metrics=(DICE,))
                result.scores[condition.name] += rows
                if condition.name in (RIGHT, *MOVED):
                    compared[condition.name], _ = compared_maps(experiment, prepared, prediction, reference)
                bar.update(task, advance=1)
            result.obedience.extend(_obedience(experiment.atlas, prepared.case, compared))
            for cut in cut_windows(experiment, prepared, (WINDOW,)) if experiment.atlas.ordered else ():
                result.obedience.extend(_window_obedience(experiment, segmenter, prepared, cut, encoder, device))
            bar.update(task, advance=1)
    return result


def _window_obedience(
    experiment: Experiment,
    segmenter: Segmenter,
    prepared: PreparedCase,
    cut: CutCase,
    encoded: EncodedTexts,
    device: torch.device,
) -> Iterator[ComparedPicture]:
    """Yield the obedience in a window under each statement that can be moved."""
    texts = {text.author: text for text in window_texts(experiment, prepared, cut) if text.author != "template"}
    directions = {author: levels for author, levels in MOVED_BY.items() if author in texts}
    if not directions:
        return
    right = predict_window(experiment, segmenter, cut, texts["simulated"], encoded, device)
    for author, levels in directions.items():
        moved = predict_window(experiment, segmenter, cut, texts[author], encoded, device)
        _, *counted = without_ignored(cut.reference, right, moved)
        picture, case = obedience(counted[0], counted[1], experiment.atlas, levels), prepared.case
        location = f"{cut.location} {100 * cut.share:g} %"
        yield ComparedPicture(case.id, case.patient, cut.landmark == "yes", picture, location)


def _obedience(atlas: Atlas, case: Case, compared: Mapping[str, Maps]) -> Iterator[ComparedPicture]:
    """Yield the obedience of a case under each list that was moved."""
    right, reference = compared[RIGHT]
    for name, levels in MOVED.items():
        if name in compared:
            picture = obedience(right, compared[name][0], atlas, levels)
            yield ComparedPicture(case.id, case.patient, shows_landmark(reference, atlas), picture)


def expected_scores(scores: Mapping[str, Sequence[Score]]) -> list[Score]:
    """Return the DSC to expect if a person miscounts by one level as often as `PERSON_ERRS` says.

    Both directions are equally likely where the atlas allows both. Cases whose list can't be moved are left out, and so
    are structures without a DSC under one of the texts.
    """
    moved: dict[tuple[str, int | None, str], list[float]] = {}
    for name in MOVED:
        for row in scores[name]:
            moved.setdefault(row.place, []).append(row.value)
    return [
        replace(row, value=(1 - PERSON_ERRS) * row.value + PERSON_ERRS * float(np.mean(moved[row.place])))
        for row in scores[RIGHT]
        if row.place in moved
    ]


def measure_drops(scores: Mapping[str, Sequence[Score]], structures: Sequence[str]) -> list[Drop]:
    """Return DSC under the template minus DSC under each other condition: the macro mean, and each structure.

    A structure of a case (or slice) counts only if its DSC is defined under both. Intervals are over patients.
    """
    patients = sorted({row.patient for row in scores[BASELINE]})
    rows = {patient: number for number, patient in enumerate(patients)}
    columns = {name: number for number, name in enumerate(structures)}
    before = {row.place: row for row in scores[BASELINE]}
    drops = []
    for name in scores:
        if name == BASELINE:
            continue
        # Sums and counts [patients, structures]: the interval resamples patients, and averages over structures.
        sums, counts = np.zeros((len(patients), len(structures))), np.zeros((len(patients), len(structures)))
        for row in scores[name]:
            difference = before[row.place].value - row.value
            if row.structure in columns and not np.isnan(difference):
                cell = rows[row.patient], columns[row.structure]
                sums[cell] += difference
                counts[cell] += 1
        drops.append(Drop(name, None, macro_mean_interval(sums, counts)))
        for structure, column in columns.items():
            part = slice(column, column + 1)
            drops.append(Drop(name, structure, macro_mean_interval(sums[:, part], counts[:, part])))
    return drops


def _encoded(
    experiment: Experiment, prompts: Mapping[str, Sequence[Sequence[SlicePrompt] | None]]
) -> dict[str, list[SliceText | None]]:
    """Return the features of every text, by condition and case, None for a case that a condition leaves out.

    A text that is too long for the run is cut at its end.
    """
    settings, length = experiment.recipe.prompts, experiment.task.text_length
    assert settings is not None
    assert length is not None
    part = settings.text_encoder
    encoder: TextEncoder = experiment.registry.build("text_encoder", part.use, settings=part.settings)
    by_slice = chain.from_iterable(filter(None, chain.from_iterable(prompts.values())))
    every = dict.fromkeys(text for prompt in by_slice for text in (prompt.holistic, *prompt.classwise))
    fitting = {text: _cut(text, encoder, length) for text in every}
    table = build_text_table(encoder, fitting.values(), text_length=length, cache=cache_folder() / "text")

    def encoded(slices: Sequence[SlicePrompt], name: str) -> SliceText:
        cut = [
            replace(p, holistic=fitting[p.holistic], classwise=tuple(fitting[text] for text in p.classwise))
            for p in slices
        ]
        return SliceText(table, experiment.atlas, {name: cut})

    return {
        name: [None if slices is None else encoded(slices, name) for slices in by_case]
        for name, by_case in prompts.items()
    }


def _cut(text: str, encoder: TextEncoder, length: int) -> str:
    words = text.split()
    while text and encoder.count_tokens([text])[0] > length:
        words.pop()
        text = " ".join(words)
    return text
