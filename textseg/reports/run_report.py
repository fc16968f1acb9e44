"""The report of one run: report.html."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from textseg.contracts import Atlas
from textseg.drawing.page import render
from textseg.drawing.pictures import OverlayPicture, Panels, line_chart, overlay_png, panels_png
from textseg.drawing.tables import TEXTS, share_title, window_table
from textseg.evaluation.evaluate import ExampleSlice
from textseg.evaluation.fields_of_view import ExampleWindow
from textseg.hookspecs import ReportSection
from textseg.levels.obedience import POLICY as OBEDIENCE_POLICY
from textseg.levels.obedience import TABLE_HEADER, table_rows
from textseg.metrics.definitions import POLICY
from textseg.metrics.scores import Score, summarise
from textseg.metrics.window_scores import MOVED, WindowMeans
from textseg.metrics.window_scores import POLICY as WINDOW_POLICY
from textseg.runs.folder import RunFolder, measured_obedience
from textseg.system.files import write_atomically
from textseg.volumes.scan import read_picture

_SOURCES = {
    "template": "nothing known about the case",
    "interactive": "a person named the visible structures",
    "simulated": "a simulated person: first and last structure read from the reference masks",
    "report": "words that came with the case, whose author may have seen the image or the reference masks",
    "predicted": "read from a first prediction of the model itself",
    "ground_truth": "read from the reference masks",
    "none": "the model reads no text",
}
# They use the annotation, or words whose author may have seen it, so they are never ranked with others.
_MARKS = {"ground_truth": "ORACLE", "simulated": "SIMULATED", "report": "REPORT"}
_WINDOW_INCHES = 3.0  # width of each panel of a window; five lie side by side
_EXAMPLES = 3  # class-wise prompts shown of each source


def write_report(
    run_folder: Path,
    *,
    run: Mapping[str, Any],
    scores: Sequence[Score],
    group_scores: Sequence[Score] = (),
    overlays: Sequence[OverlayPicture],
    prompts: Sequence[Mapping[str, Any]],
    history: Sequence[Mapping[str, Any]],
    windows: Sequence[WindowMeans] = (),
    window_pictures: Sequence[Panels] = (),
    further: Sequence[ReportSection] = (),
) -> None:
    """Write report.html, one file that works offline, from run.json, the scores, prompts.jsonl and the log.

    Results with prompts from the ground truth carry a red ORACLE badge. Raises RunError if the scores contradict each
    other.
    """
    trained = list(run.get("structures_in_training") or dict.fromkeys(row.structure for row in scores))
    present = dict.fromkeys(row.structure for row in scores if row.status != "absent")
    only_test = [name for name in present if name not in set(trained)]
    groups = list(dict.fromkeys(row.structure for row in group_scores))
    evaluation = run.get("evaluation") or {}
    content = render(
        "run_report.html.j2",
        name=run.get("name", run_folder.name),
        run=run,
        reference=str(run.get("reference") or ""),
        evaluation=evaluation,
        sources=sorted({row.prompt_source for row in scores} or {str(evaluation.get("prompts") or "none")}),
        explanations=_SOURCES,
        marks=_MARKS,
        patients=len({row.patient for row in scores}),
        charts=_charts(run, history),
        trained=trained,
        summary=summarise(scores, structures=trained),
        policy=POLICY,
        only_test=only_test,
        only_test_summary=summarise(scores, structures=only_test),
        groups=groups,
        group_summary=summarise(group_scores, structures=groups),
        obedience=_obedience_section(measured_obedience(run)),
        overlays=[{"png": overlay_png(picture), "title": picture.title} for picture in overlays],
        windows=window_table(windows),
        window_policy=WINDOW_POLICY,
        window_pictures=[
            {"png": panels_png([panels], columns=len(panels.masks), panel_inches=_WINDOW_INCHES), "title": panels.title}
            for panels in window_pictures
        ],
        further=further,
        prompts=_prompts_by_source(prompts),
        fact_text=_fact_text,
    )
    write_atomically(RunFolder(run_folder).report, content)


def show_obedience(folder: RunFolder, record: Mapping[str, Any]) -> None:
    """Write the obedience, as run.json has it, into the report of a run, if there is one."""
    if folder.report.exists():
        page = folder.report.read_text(encoding="utf-8")
        begin, end = "<!-- obedience -->", "<!-- end of obedience -->"
        section = f"{begin}{_obedience_section(record)}{end}"
        write_atomically(folder.report, re.sub(f"{begin}.*?{end}", lambda match: section, page, flags=re.DOTALL))


def _obedience_section(record: Mapping[str, Any] | None) -> Markup:
    if not record:
        return Markup()
    conclusion = str(record["conclusion"])
    rows = table_rows(record)
    sentence = f"{conclusion[0].upper()}{conclusion[1:]}."
    return Markup(
        render("obedience.html.j2", conclusion=sentence, header=TABLE_HEADER, rows=rows, policy=OBEDIENCE_POLICY)
    )


def example_picture(example: ExampleSlice, atlas: Atlas, rank: str = "") -> OverlayPicture:
    """Return an example slice with its scan, to be drawn; its title begins with `rank`, such as "best"."""
    prepared = example.prepared
    spacing_mm = prepared.native_spacing_mm if example.native else prepared.spacing_mm
    volume = read_picture(prepared.case.image, prepared.plane).array if example.native else prepared.image[:, 0]
    title = f"case {prepared.case.id}, slice {example.index + 1} of {prepared.slice_count}, mean DSC {example.dsc:.3f}"
    return OverlayPicture(
        title=f"{rank}: {title}" if rank else title,
        image=np.asarray(volume[example.index], np.float32),
        reference=example.reference,
        prediction=example.prediction,
        names={structure.index: structure.name for structure in atlas.structures},
        pixel_aspect=spacing_mm[1] / spacing_mm[2],
    )


def window_picture(example: ExampleWindow, atlas: Atlas, rank: str = "") -> Panels:
    """Return a window under the right text, the template and a text one level off, to be drawn beside the reference."""
    prepared, statements = example.case, example.statements
    volume = read_picture(prepared.case.image, prepared.plane).array
    moved = next((author for author in MOVED if author in example.predictions), None)
    masks: dict[str, NDArray[np.uint8] | None] = {"image": None, "reference": example.reference}
    for author in ("none", "simulated", "template", moved):
        if author is not None and author in example.predictions:
            heading = "prediction" if author == "none" else TEXTS[author].removesuffix(" (simulated)")
            if statements[author]:
                heading += f": {statements[author]}"
            masks[heading] = example.predictions[author]
    position = f"{example.location} {share_title(example.share)}, slice {example.index + 1} of {prepared.slice_count}"
    text = "" if "none" in statements else " under the right text"
    title = f"{rank}: case {prepared.case.id}, {position}, mean DSC {example.dsc:.3f}{text}"
    return Panels(
        title=title,
        image=np.asarray(volume[example.window.slices][example.index], np.float32),
        masks=masks,
        names={structure.index: structure.name for structure in atlas.structures},
        pixel_aspect=prepared.native_spacing_mm[1] / prepared.native_spacing_mm[2],
    )


def _charts(run: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the charts of the log: the losses, the validation DSC and the learning rate, if it has values for them."""
    losses = sorted({key for row in history for key in row if key.startswith("train_")})
    losses.sort(key=lambda key: key != "train_loss")
    epoch, dsc = (_number((run.get("best") or {}).get(key)) for key in ("epoch", "validation_dsc"))
    mark = None if epoch is None or dsc is None else (epoch, dsc, f"best: {dsc:.4f} at epoch {epoch:g}")
    epochs = [number for row in history if (number := _number(row.get("epoch"))) is not None]
    charts = []
    headings = {"Loss": losses, "Validation DSC": ["validation_dsc"], "Learning rate": ["learning_rate"]}
    for heading, keys in headings.items():
        series = {key.removeprefix("train_"): curve for key in keys if (curve := _by_epoch(history, key))}
        if series:
            svg = line_chart(heading, series, epochs=epochs, mark=mark if keys == ["validation_dsc"] else None)
            charts.append({"heading": heading, "svg": svg, "names": list(series)})
    return charts


def _by_epoch(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return the mean of `key` in each epoch; a row of the log is empty for a key that was not logged."""
    values: dict[float, list[float]] = {}
    for row in history:
        epoch, value = _number(row.get("epoch")), _number(row.get(key))
        if epoch is not None and value is not None:
            values.setdefault(epoch, []).append(value)
    return [(epoch, math.fsum(numbers) / len(numbers)) for epoch, numbers in sorted(values.items())]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _prompts_by_source(prompts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return counts and examples of each source: one holistic text, and the first texts of different structures."""
    groups = []
    for source in dict.fromkeys(str(row["source"]) for row in prompts):
        rows = [row for row in prompts if row["source"] == source]
        holistic = [row for row in rows if row["view"] == "holistic"]
        classwise = [row for row in rows if row["view"] != "holistic"]
        by_structure: dict[str, Mapping[str, Any]] = {}
        for row in classwise:
            by_structure.setdefault(str(row.get("structure") or row["text"]), row)
        examples = [*holistic[:1], *list(by_structure.values())[:_EXAMPLES]]
        tokens = max(int(row["tokens"]) for row in rows)
        counts = {"holistic": len(holistic), "classwise": len(classwise), "tokens": tokens}
        groups.append({"source": source, **counts, "examples": examples})
    return groups


def _fact_text(key: str, value: Any) -> str:
    """Return a value of run.json as text for readers: sizes in GiB, times in hours, counts with separators."""
    if value in (None, "", {}, [], ()):
        return "–"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if key.endswith("_bytes"):
            return f"{value / 2**30:.2f} GiB"
        if key == "wall_seconds":
            return f"{int(value) // 3600} h {int(value) % 3600 // 60:02d} min {int(value) % 60:02d} s"
        if "parameters" in key or key == "multiply_accumulates":
            return f"{value:,}"
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return str(value)
