"""Probe a run and write what it shows about the model's reliance on text: tables, a verdict, a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np

from textseg.contracts import Source
from textseg.drawing.pictures import figure_png
from textseg.drawing.tables import markdown_table
from textseg.errors import RunError
from textseg.evaluation.evaluate import check_data, load_segmenter
from textseg.evaluation.probe import Drop, measure_drops, probe
from textseg.evaluation.probe_texts import BASELINE, CONDITIONS
from textseg.metrics.scores import Score, csv_text, write_scores
from textseg.metrics.statistics import Interval, small_sample_warning
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.system.devices import chosen_device
from textseg.system.files import write_atomically

NEGLIGIBLE = 0.005  # DSC; a smaller difference is not reported as one


def probe_run(run: Path, *, output: Path | None = None) -> str:
    """Evaluate the best checkpoint of a run under each condition; returns the table and the verdict.

    Writes probe.csv (every score), drops.csv (the difference to the template for each condition and structure, with
    intervals over patients), probe.md and probe.png into `output`, else into the run's folder `probe`. Raises RunError
    for a run whose model reads no text, and for data other than those of the training.
    """
    folder = RunFolder.existing(run)
    recipe = load_recipe(folder.recipe)
    if recipe.prompts is None:
        raise RunError(f"'{folder.path}' reads no text, so there is nothing to probe.")
    sources: list[Source] = ["template", "interactive", "ground_truth", "predicted"]
    experiment = build(recipe, also=sources)
    check_data(experiment, folder)
    device = chosen_device()
    scores = probe(experiment, load_segmenter(experiment, folder).to(device), device)
    drops = measure_drops(scores, experiment.structures_in_training)
    target = output or folder.path / "probe"
    text = _report(scores, drops, experiment.structures_in_training)
    write_scores(target / "probe.csv", [row for rows in scores.values() for row in rows])
    header = ("condition", "structure", "drop", "low", "high", "patients")
    rows = [(drop.condition, drop.structure or "all", *astuple(drop.interval)) for drop in drops]
    write_atomically(target / "drops.csv", csv_text(header, rows))
    write_atomically(target / "probe.md", f"# Probe of {folder.path.parent.name}, {folder.path.name}\n\n{text}\n")
    write_atomically(target / "probe.png", _drops_png(drops))
    return f"{text}\n\n{target}"


def _report(scores: Mapping[str, Sequence[Score]], drops: Sequence[Drop], structures: Sequence[str]) -> str:
    """Return the table of all conditions, the verdict and its reservations, as Markdown."""
    overall = {drop.condition: drop.interval for drop in drops if drop.structure is None}
    rows = []
    for condition in CONDITIONS:
        scored = [row for row in scores[condition.name] if row.structure in structures]
        known = [(row.structure, row.value) for row in scored if not np.isnan(row.value)]
        by_structure = [[value for structure, value in known if structure == name] for name in structures]
        means = [np.mean(values) for values in by_structure if values]
        interval = overall.get(condition.name)
        change = "" if interval is None else f"{-interval.value:+.4f} ({-interval.high:+.4f} to {-interval.low:+.4f})"
        missed, spurious = (sum(row.status == status for row in scored) for status in ("missed", "spurious"))
        dsc = f"{np.mean(means):.4f}" if means else "–"
        rows.append([condition.name, dsc, change, str(missed), str(spurious), condition.mark, condition.meaning])
    header = ["text", "DSC", "against the template (95 %)", "missed", "spurious", "", "what it says"]
    patients = len({row.patient for row in scores[BASELINE]})
    differences = "A difference counts only structures of a case whose DSC is defined under both texts."
    notes = [verdict(overall), differences, small_sample_warning(patients)]
    return "\n\n".join([markdown_table(header, rows), *(note for note in notes if note)])


def verdict(drops: Mapping[str, Interval]) -> str:
    """Return one line on how much the model relies on its text; `drops` are the macro means by condition."""

    def change(name: str, words: str) -> str:
        drop = drops[name]
        certain = drop.low > 0 or drop.high < 0
        sign = "costs" if drop.value > 0 else "gains"
        return f"{words} {sign} {abs(drop.value):.3f} DSC{'' if certain else ' (not certain)'}"

    wordless = max(("empty", "nonsense"), key=lambda name: drops[name].value)
    largest = max(abs(drop.value) for drop in drops.values())
    if largest < NEGLIGIBLE:
        return f"Verdict: the model does not rely on its text; no other text changes DSC by {NEGLIGIBLE:g} or more."
    parts = [
        change(wordless, f"text without meaning ({wordless})"),
        change("denied", "denying a structure that is there"),
        change("off_by_one", "a list off by one level"),
        change("ground_truth", "the true list (oracle)"),
    ]
    much = "leans on its text" if drops[wordless].value >= 10 * NEGLIGIBLE else "relies little on its text as such"
    return f"Verdict: the model {much}: {'; '.join(parts)}."


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
