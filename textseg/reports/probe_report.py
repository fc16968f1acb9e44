"""Probe a run and write what it shows about the model's reliance on text: tables, a verdict, a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from textseg.contracts import Source
from textseg.drawing.pictures import figure_png
from textseg.drawing.tables import markdown_table
from textseg.errors import RunError
from textseg.evaluation.evaluate import load_segmenter, rebuild
from textseg.evaluation.probe import Drop, expected_scores, measure_drops, probe
from textseg.evaluation.probe_texts import BASELINE, CONDITIONS, MOVED, Condition
from textseg.levels.obedience import POLICY, TABLE_HEADER, as_json, direction, table_rows, write_obedience
from textseg.metrics.scores import Score, write_scores
from textseg.metrics.statistics import Interval, small_sample_warning
from textseg.metrics.window_scores import PERSON_ERRS
from textseg.recipe.loading import load_trained_recipe
from textseg.reports.run_report import show_obedience
from textseg.runs.folder import RunFolder
from textseg.system.devices import chosen_device
from textseg.system.files import write_atomically
from textseg.system.user_files import csv_text

NEGLIGIBLE = 0.005  # DSC; a smaller difference is not reported as one
RATE = 100 * PERSON_ERRS  # in per cent
NOTES = (
    "A difference counts only structures of a case whose DSC is defined under both texts. A list is moved only if each "
    "structure that it names has a successor in the atlas; other cases are left out of that row.\n\n"
    f"Expected: {100 - RATE:g} % of the DSC under the right list and {RATE:g} % of the mean under moved "
    "lists, in cases whose list can be moved. The rate is that of numbering a lumbar MRI without a localiser, which "
    "was wrong in 14.1 % of 1049 patients (Korean J Radiol 2014)."
)
EXPECTED = Condition("expected", f"a person who miscounts in {RATE:g} % of the cases", "simulated", None)


def probe_run(run: Path, *, output: Path | None = None, overrides: Sequence[str] = (), trust_code: bool = False) -> str:
    """Evaluate the best checkpoint of a run under each condition; returns the tables and the verdict.

    Writes probe.csv (every score), drops.csv (the difference to the template for each condition and structure, with
    intervals over patients), obedience.csv (a row for each picture and moved text), probe.md and probe.png into
    `output`. Without `output`, they go into the run's folder `probe`, and run.json and the report get the obedience.
    Raises RunError for a run whose model reads no text, and for data other than those of the training.
    """
    folder = RunFolder.existing(run)
    recipe = load_trained_recipe(folder.recipe, overrides, trust_code=trust_code)
    if recipe.prompts_read is None:
        raise RunError(f"'{folder.path}' reads no text, so there is nothing to probe.")
    with folder.lock() if output is None else nullcontext():
        sources: list[Source] = ["template", "interactive", "ground_truth", "predicted"]
        experiment = rebuild(recipe, folder, also=sources)
        device = chosen_device()
        result = probe(experiment, load_segmenter(experiment, folder).to(device), device)
        structures = experiment.structures_in_training
        scores = {**result.scores, EXPECTED.name: expected_scores(result.scores)}
        drops = measure_drops(scores, structures)
        record = as_json(result.obedience) if experiment.atlas.ordered else None
        text = _report(scores, drops, structures, record)
        target = output or folder.path / "probe"
        write_scores(target / "probe.csv", [row for rows in result.scores.values() for row in rows])
        header = ("condition", "structure", "drop", "low", "high", "patients")
        rows = [(drop.condition, drop.structure or "all", *astuple(drop.interval)) for drop in drops]
        write_atomically(target / "drops.csv", csv_text(header, rows))
        if record is not None:
            write_obedience(target / "obedience.csv", result.obedience)
        write_atomically(target / "probe.md", f"# Probe of {folder.path.parent.name}, {folder.path.name}\n\n{text}\n")
        write_atomically(target / "probe.png", _drops_png(drops))
        if output is None and record is not None:
            folder.update(obedience={"scored_step": folder.read().get("scored_step"), **record})
            show_obedience(folder, record)
    return f"{text}\n\n{target}"


def _report(
    scores: Mapping[str, Sequence[Score]],
    drops: Sequence[Drop],
    structures: Sequence[str],
    record: Mapping[str, Any] | None,
) -> str:
    """Return the verdict, the table of all conditions, its reservations, and the obedience, as Markdown.

    `record` is the obedience as run.json has it, None for an atlas without order.
    """
    overall = {drop.condition: drop.interval for drop in drops if drop.structure is None}
    cases = len({row.case for row in scores[BASELINE]})
    rows = []
    for condition in (*CONDITIONS, EXPECTED):
        if condition.name not in scores:
            continue
        scored = [row for row in scores[condition.name] if row.structure in structures]
        known = [(row.structure, row.value) for row in scored if not np.isnan(row.value)]
        by_structure = [[value for structure, value in known if structure == name] for name in structures]
        means = [np.mean(values) for values in by_structure if values]
        interval = overall.get(condition.name)
        change = _change(interval) if interval and interval.patients else ""
        counts = [str(sum(row.status == status for row in scored)) for status in ("missed", "spurious")]
        dsc = f"{np.mean(means):.4f}" if means else "–"
        used = len({row.case for row in scores[condition.name]})
        share = str(cases) if used == cases else f"{used} of {cases}"
        counts = ["–", "–"] if condition is EXPECTED else counts
        rows.append([condition.name, dsc, change, share, *counts, condition.mark, condition.meaning])
    header = ["text", "DSC", "against the template (95 %)", "cases", "missed", "spurious", "", "what it says"]
    patients = len({row.patient for row in scores[BASELINE]})
    parts = [verdict(overall, record["conclusion"] if record else None), markdown_table(header, rows), NOTES]
    if record is not None:
        parts += ["## Obedience", markdown_table(TABLE_HEADER, table_rows(record)), POLICY]
    return "\n\n".join(part.strip() for part in (*parts, small_sample_warning(patients)) if part)


def _change(drop: Interval) -> str:
    """Return the change of DSC, the negative of a drop, with its bounds; a single patient has none."""
    bounds = "1 patient" if drop.patients == 1 else f"{-drop.high:+.4f} to {-drop.low:+.4f}"
    return f"{-drop.value:+.4f} ({bounds})"


def verdict(drops: Mapping[str, Interval], obedience: str | None = None) -> str:
    """Return one line on how much the model relies on its text.

    Args:
        drops: The macro means by condition; a condition in which no case could be scored has no patients.
        obedience: The conclusion on obedience, in words; None for an atlas without order.
    """

    def change(name: str, words: str) -> str:
        drop = drops[name]
        certain = drop.low > 0 or drop.high < 0
        sign = "costs" if drop.value > 0 else "gains"
        return f"{words} {sign} {abs(drop.value):.3f} DSC{'' if certain else ' (not certain)'}"

    headline = f"Verdict: {obedience}. The" if obedience else "Verdict: the"
    wordless = max(("empty", "nonsense"), key=lambda name: drops[name].value)
    largest = max(abs(drop.value) for drop in drops.values() if drop.patients)
    if largest < NEGLIGIBLE:
        return f"{headline} model does not rely on its text; no other text changes DSC by {NEGLIGIBLE:g} or more."
    parts = [
        change(wordless, f"text without meaning ({wordless})"),
        change("denied", "denying a structure that is there"),
        *(change(name, f"a list {direction(levels)}") for name, levels in MOVED.items() if drops[name].patients),
        change("ground_truth", "the true list (oracle)"),
    ]
    much = "leans on its text" if drops[wordless].value >= 10 * NEGLIGIBLE else "relies little on its text as such"
    return f"{headline} model {much}: {'; '.join(parts)}."


def _drops_png(drops: Sequence[Drop]) -> bytes:
    """Draw the drop of DSC under each condition: the macro mean with its interval, and a heat map by structure."""
    from matplotlib.figure import Figure

    conditions = list(dict.fromkeys(drop.condition for drop in drops))
    structures = [name for name in dict.fromkeys(drop.structure for drop in drops) if name is not None]
    values = {(drop.condition, drop.structure): drop.interval for drop in drops}
    figure = Figure(figsize=(6.5 + 0.42 * len(structures), 1.9 + 0.36 * len(conditions)), dpi=110, facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(4, max(1.0, 0.42 * len(structures))), sharey=True)
    overall = [values[condition, None] for condition in conditions]
    bounds = [[i.value - i.low for i in overall], [i.high - i.value for i in overall]]
    rows = range(len(conditions))
    left.axvline(0, color="#999999", linewidth=1)
    lengths = np.nan_to_num(bounds).clip(0)
    left.errorbar([i.value for i in overall], rows, xerr=lengths, fmt="o", color="#1f5fa8", capsize=3)
    left.set_yticks(rows, [condition.replace("_", " ") for condition in conditions])
    left.set_xlabel("drop in DSC against the template, 95 % interval")
    left.spines[["top", "right"]].set_visible(False)
    left.invert_yaxis()
    grid = np.array([[values[condition, structure].value for structure in structures] for condition in conditions])
    limit = max(float(np.nanmax(np.abs(grid))), 0.01) if grid.size and not np.isnan(grid).all() else 0.01
    image = right.imshow(grid, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    right.set_xticks(range(len(structures)), structures, rotation=60, ha="right", rotation_mode="anchor")
    right.tick_params(axis="y", length=0)
    right.set_title("by structure (red: lower than with the template)", size=10)
    figure.colorbar(image, ax=right, pad=0.02)
    figure.tight_layout()
    return figure_png(figure)
