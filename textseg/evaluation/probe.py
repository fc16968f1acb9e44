"""How a result depends on the text: one checkpoint, evaluated under texts that are right, wrong, and none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from textseg.contracts import Source, TextEncoder
from textseg.data.preparation import PreparedCase
from textseg.data.slices import SliceStack
from textseg.drawing.pictures import drop_png
from textseg.drawing.tables import markdown_table
from textseg.errors import RunError
from textseg.evaluation.evaluate import check_data, load_segmenter
from textseg.evaluation.probe_texts import BASELINE, CONDITIONS, Condition, Subject, probe_subject
from textseg.evaluation.scoring import score_case
from textseg.inference.slices import predict_case
from textseg.inference.structure_finder import told_slices
from textseg.metrics.scores import Score, csv_text, write_scores
from textseg.metrics.statistics import Interval, macro_mean_interval, small_sample_warning
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder
from textseg.system.files import cache_folder, write_atomically
from textseg.system.progress import progress_bar
from textseg.text.embeddings import build_text_table
from textseg.text.slice_text import SlicePrompt, SliceText

NEGLIGIBLE = 0.005  # DSC; below it a difference is not worth a sentence


@dataclass(frozen=True)
class Drop:
    """How much DSC falls against the template, over patients; for one structure or, macro, for all (None)."""

    condition: str
    structure: str | None
    interval: Interval


def probe_run(run: Path, *, output: Path | None = None) -> str:
    """Evaluate the best checkpoint of a run under each condition; returns the table and the verdict.

    Writes probe.csv (every score), drops.csv (the difference to the template for each condition and structure, with
    intervals over patients), probe.md and probe.png into `output`, else into the run's folder `probe`. The protocol is
    that of the recipe's evaluation. Raises RunError for a run whose model reads no text, and for other data than those
    of the training.
    """
    folder = RunFolder.existing(run)
    recipe = load_recipe(folder.recipe)
    if recipe.prompts is None:
        raise RunError(f"'{folder.path}' reads no text, so there is nothing to probe.")
    sources: list[Source] = ["template", "interactive", "ground_truth", "predicted"]
    experiment = build(recipe, also=sources)
    check_data(experiment, folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    segmenter = load_segmenter(experiment, folder).to(device)
    scores: dict[str, list[Score]] = {condition.name: [] for condition in CONDITIONS}
    for condition, slices, prepared in _told(experiment, segmenter, device):
        scores[condition.name] += _scored(experiment, segmenter, prepared, slices, condition, device)
    drops = measure_drops(scores, experiment.structures_in_training)
    target = output or folder.path / "probe"
    text = _report(scores, drops, experiment.structures_in_training)
    write_scores(target / "probe.csv", [row for rows in scores.values() for row in rows])
    write_atomically(target / "drops.csv", _drops_csv(drops))
    write_atomically(target / "probe.md", f"# Probe of {folder.path.parent.name}, {folder.path.name}\n\n{text}\n")
    write_atomically(target / "probe.png", drop_png([(d.condition, d.structure, d.interval) for d in drops]))
    return f"{text}\n\n{target}"


def _told(
    experiment: Experiment, segmenter: Segmenter, device: torch.device
) -> Iterator[tuple[Condition, SliceStack, PreparedCase]]:
    """Every test case under every condition."""
    cases = [probe_subject(experiment, number) for number in range(len(experiment.cases["test"]))]
    told = {
        condition.name: [condition.tell(case) for case in cases]
        for condition in CONDITIONS
        if condition.tell is not None
    }
    slice_texts = _encoded(experiment, told, cases)
    with progress_bar() as bar:
        task = bar.add_task("probing", total=len(CONDITIONS) * len(cases))
        for condition in CONDITIONS:
            for number, case in enumerate(cases):
                if condition.tell is None:
                    slices, _ = told_slices(experiment, segmenter, case.prepared, "predicted", device)
                else:
                    slices = SliceStack(case.prepared.image, slice_texts[condition.name][number])
                yield condition, slices, case.prepared
                bar.update(task, advance=1)


def _encoded(
    experiment: Experiment, told: Mapping[str, Sequence[Sequence[SlicePrompt]]], cases: Sequence[Subject]
) -> dict[str, list[SliceText]]:
    """The features of every text, by condition and case; a text too long for the run is cut at its end."""
    settings, length = experiment.recipe.prompts, experiment.task.text_length
    assert settings is not None
    assert length is not None
    encoder: TextEncoder = experiment.registry.build(
        "text_encoder", settings.text_encoder.use, settings=settings.text_encoder.settings
    )
    every = dict.fromkeys(
        text
        for by_case in told.values()
        for prompts in by_case
        for prompt in prompts
        for text in (prompt.holistic, *prompt.classwise)
    )
    fitting = {text: _cut(text, encoder, length) for text in every}
    table = build_text_table(encoder, fitting.values(), text_length=length, cache=cache_folder() / "text")
    found: dict[str, list[SliceText]] = {}
    for name, by_case in told.items():
        for prompts in by_case:
            cut = [
                replace(p, holistic=fitting[p.holistic], classwise=tuple(fitting[text] for text in p.classwise))
                for p in prompts
            ]
            found.setdefault(name, []).append(SliceText(table, experiment.atlas, {name: cut}))
    return found


def _cut(text: str, encoder: TextEncoder, length: int) -> str:
    words = text.split()
    while text and encoder.count_tokens([text])[0] > length:
        words.pop()
        text = " ".join(words)
    return text


def _scored(
    experiment: Experiment,
    segmenter: Segmenter,
    prepared: PreparedCase,
    slices: SliceStack,
    condition: Condition,
    device: torch.device,
) -> list[Score]:
    prediction = predict_case(
        segmenter,
        prepared,
        slices,
        device=device,
        batch_size=experiment.recipe.training.batch_size,
        native=experiment.recipe.evaluation.space == "native",
    )
    return score_case(experiment, prepared, prediction, condition.label, ("dsc",))[0]


def measure_drops(scores: Mapping[str, Sequence[Score]], structures: Sequence[str]) -> list[Drop]:
    """DSC under the template less DSC under each other condition: macro over structures, and for each of them.

    Only places where both are defined count; the interval is over patients.
    """
    patients = sorted({row.patient for row in scores[BASELINE]})
    rows = {patient: number for number, patient in enumerate(patients)}
    columns = {name: number for number, name in enumerate(structures)}
    before = {row.place: row for row in scores[BASELINE]}
    drops = []
    for name in scores:
        if name == BASELINE:
            continue
        sums, counts = np.zeros((len(patients), len(structures))), np.zeros((len(patients), len(structures)))
        for row in scores[name]:
            difference = before[row.place].value - row.value
            if row.structure in columns and not np.isnan(difference):
                place = rows[row.patient], columns[row.structure]
                sums[place] += difference
                counts[place] += 1
        drops.append(Drop(name, None, macro_mean_interval(sums, counts)))
        for structure, column in columns.items():
            one = slice(column, column + 1)
            drops.append(Drop(name, structure, macro_mean_interval(sums[:, one], counts[:, one])))
    return drops


def _report(scores: Mapping[str, Sequence[Score]], drops: Sequence[Drop], structures: Sequence[str]) -> str:
    overall = {drop.condition: drop.interval for drop in drops if drop.structure is None}
    rows = []
    for condition in CONDITIONS:
        found = [row for row in scores[condition.name] if row.structure in structures]
        means = [
            np.mean(values)
            for name in structures
            if (values := [row.value for row in found if row.structure == name and not np.isnan(row.value)])
        ]
        interval = overall.get(condition.name)
        change = "" if interval is None else f"{-interval.value:+.4f} ({-interval.high:+.4f} to {-interval.low:+.4f})"
        missed, spurious = (sum(row.status == status for row in found) for status in ("missed", "spurious"))
        dsc = f"{np.mean(means):.4f}" if means else "–"
        rows.append([condition.name, dsc, change, str(missed), str(spurious), condition.mark, condition.meaning])
    header = ["text", "DSC", "against the template (95 %)", "missed", "spurious", "", "what it says"]
    patients = len({row.patient for row in scores[BASELINE]})
    differences = "Differences are over the places where DSC is defined under both texts."
    notes = [verdict(overall), differences, small_sample_warning(patients)]
    return "\n\n".join([markdown_table(header, rows), *(note for note in notes if note)])


def verdict(drops: Mapping[str, Interval]) -> str:
    """One line: how much the model relies on its text. `drops` are the macro drops by condition."""

    def said(name: str, words: str) -> str:
        drop = drops[name]
        certain = drop.low > 0 or drop.high < 0
        sign = "costs" if drop.value > 0 else "gains"
        return f"{words} {sign} {abs(drop.value):.3f} DSC{'' if certain else ' (not certain)'}"

    wordless = max(("empty", "nonsense"), key=lambda name: drops[name].value)
    largest = max(abs(drop.value) for drop in drops.values())
    if largest < NEGLIGIBLE:
        return f"Verdict: the model does not rely on its text; no other text changes DSC by {NEGLIGIBLE:g} or more."
    parts = [
        said(wordless, f"text without meaning ({wordless})"),
        said("denied", "denying a structure that is there"),
        said("off_by_one", "a list off by one level"),
        said("ground_truth", "the true list (oracle)"),
    ]
    much = "leans on its text" if drops[wordless].value >= 10 * NEGLIGIBLE else "relies little on its text as such"
    return f"Verdict: the model {much}: {'; '.join(parts)}."


def _drops_csv(drops: Sequence[Drop]) -> str:
    header = ("condition", "structure", "drop", "low", "high", "patients")
    rows = [
        (
            drop.condition,
            drop.structure or "all",
            *(getattr(drop.interval, k) for k in ("value", "low", "high", "patients")),
        )
        for drop in drops
    ]
    return csv_text(header, rows)
