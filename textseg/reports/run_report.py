"""One run as a page to read (report.html), and tables as Markdown and plain text."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from textseg.contracts import Atlas
from textseg.drawing.page import page, section
from textseg.drawing.pictures import OverlayPicture, line_chart, overlay_png
from textseg.drawing.tables import format_value, metric_title
from textseg.evaluation.evaluate import ExampleSlice
from textseg.hookspecs import ReportSection
from textseg.metrics.definitions import POLICY
from textseg.metrics.scores import Score, Summary, summarise
from textseg.runs.folder import RunFolder
from textseg.system.files import write_atomically
from textseg.system.messages import counted
from textseg.volumes.files import read_volume

_SOURCES = {
    "template": "every structure listed, nothing known about the case",
    "interactive": "a person named the visible structures",
    "simulated": "a person was simulated: first and last structure read off the reference masks",
    "predicted": "read off the model's own first pass",
    "ground_truth": "read off the reference masks",
    "none": "the model reads no text",
}
_MARKS = {"ground_truth": "ORACLE", "simulated": "SIMULATED"}  # told of the annotation, so never ranked
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
    further: Sequence[ReportSection] = (),
) -> None:
    """Write report.html: one file that needs no network, made of run.json, the scores, prompts.jsonl and the log.

    Results with prompts from the ground truth carry a red ORACLE badge. Raises RunError where the scores contradict
    themselves.
    """
    trained = list(run.get("structures_in_training") or dict.fromkeys(row.structure for row in scores))
    found = dict.fromkeys(row.structure for row in scores if row.status != "absent")
    only_test = [name for name in found if name not in set(trained)]
    summary = summarise(scores, structures=trained)
    sections = [
        _headline(run, scores, summary),
        section("Training", _curves(run, history)),
        section("Test results by structure", _score_table(trained, summary) + _policy(run)),
    ]
    if only_test:
        explanation = "<p>No patient of the training shows these, so they do not enter any mean above.</p>"
        table = _score_table(only_test, summarise(scores, structures=only_test), total=False)
        sections.append(section("Structures that occur only in test", explanation + table))
    if group_scores:
        groups = list(dict.fromkeys(row.structure for row in group_scores))
        explanation = (
            "<p>Each group merged into one structure before it is scored: right places, whatever the names.</p>"
        )
        table = _score_table(groups, summarise(group_scores, structures=groups), total=False)
        sections.append(section("Groups", explanation + table))
    if overlays:
        sections.append(section("Test cases", "".join(map(_overlay, overlays))))
    sections += [section(part.heading, part.html) for part in further]
    sections += [section("What the model was told", _prompts(prompts)), section("Provenance", _provenance(run))]
    content = page(f"{run.get('name', run_folder.name)} · textseg", "\n".join(sections))
    write_atomically(RunFolder(run_folder).report, content)


def example_picture(example: ExampleSlice, atlas: Atlas, rank: str = "") -> OverlayPicture:
    """Return an example slice with its scan, to be drawn; its title begins with `rank`, such as "best"."""
    prepared = example.prepared
    spacing_mm = prepared.native_spacing_mm if example.native else prepared.spacing_mm
    if example.native:
        image = read_volume(prepared.case.image_path, prepared.plane).array[example.index]
    else:
        image = np.asarray(prepared.image[example.index], np.float32)
    place = f"case {prepared.case.id}, slice {example.index + 1} of {prepared.slice_count}, mean DSC {example.dsc:.3f}"
    return OverlayPicture(
        title=f"{rank}: {place}" if rank else place,
        image=image,
        reference=example.reference,
        prediction=example.prediction,
        names={structure.index: structure.name for structure in atlas.structures},
        pixel_aspect=spacing_mm[1] / spacing_mm[2],
    )


def _headline(run: Mapping[str, Any], scores: Sequence[Score], summary: Summary) -> str:
    evaluation = run.get("evaluation") or {}
    sources = sorted({row.prompt_source for row in scores} or {str(evaluation.get("prompts") or "none")})
    badges = "".join(
        f'<span class="badge {"oracle" if source in _MARKS else "source"}">'
        f"{_MARKS[source] + ' · ' if source in _MARKS else ''}test prompts: {escape(source.replace('_', ' '))}</span>"
        f' <span class="quiet">{escape(_SOURCES.get(source, ""))}'
        f"{': an upper bound, never ranked beside other runs' if source in _MARKS else ''}</span> "
        for source in sources
    )
    fold = "" if run.get("fold") is None else f" · fold {run['fold']}"
    about = escape(f"{run.get('dataset', '–')} · seed {run.get('seed', '–')}{fold}")
    reference = str(run.get("reference") or "")
    if reference.startswith(("https://", "http://")):
        about += f' · <a href="{escape(reference)}" rel="noreferrer">{escape(reference)}</a>'
    elif reference:
        about += f" · {escape(reference)}"
    tiles = [
        (format_value(mean.value, mean.unit), f"mean {metric_title(metric, mean.unit)}, {counted(mean.n, 'structure')}")
        for metric, mean in summary.overall.items()
    ]
    patients = len({row.patient for row in scores})
    tiles.append((str(patients), "test patient" if patients == 1 else "test patients"))
    first = next(iter(summary.overall.values()), None)
    if first is not None:
        tiles.append((f"{first.missed} / {first.spurious}", "missed / spurious"))
    cells = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(what)}</span></div>' for v, what in tiles)
    return (
        f'<header><h1>{escape(str(run.get("name", "run")))}</h1><p class="quiet">{about}</p>'
        f'<p>{badges}</p><div class="tiles">{cells}</div></header>'
    )


def _policy(run: Mapping[str, Any]) -> str:
    evaluation = run.get("evaluation") or {}
    per, space = evaluation.get("per", "–"), evaluation.get("space", "–")
    said = f"Scores per {per} in {space} space; distances in {evaluation.get('unit', '–')}. {POLICY}"
    return f'<p class="quiet">{escape(said)}</p>'


def _score_table(structures: Sequence[str], summary: Summary, *, total: bool = True) -> str:
    metrics = list(summary.overall)
    if not metrics:
        return '<p class="quiet">There are no scores.</p>'
    header = ["structure", *(metric_title(name, summary.overall[name].unit) for name in metrics)]
    header += ["n", "missed", "spurious"]
    rows = []
    for name in structures:
        means = [summary.per_structure[name, metric] for metric in metrics]
        cells = "".join(_cell(mean.metric, mean.value, mean.unit) for mean in means)
        counts = "".join(_count(n) for n in (means[0].missed, means[0].spurious))
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}<td>{means[0].n}</td>{counts}</tr>')
    if total:
        means = list(summary.overall.values())
        cells = "".join(_cell(mean.metric, mean.value, mean.unit) for mean in means)
        rows.append(
            f'<tr class="total"><th scope="row">mean over structures</th>{cells}<td></td>'
            f"<td>{means[0].missed}</td><td>{means[0].spurious}</td></tr>"
        )
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(metric: str, value: float, unit: str) -> str:
    if metric != "dsc" or math.isnan(value):
        return f"<td>{format_value(value, unit)}</td>"
    hue = 130 * min(max((value - 0.5) / 0.45, 0.0), 1.0)  # red up to 0.5, green from 0.95
    bar = f'<i style="width:{100 * value:.1f}%;background:hsl({hue:.0f} 65% 45%)"></i>'
    return f'<td class="bar"><span>{format_value(value, unit)}</span><span class="track">{bar}</span></td>'


def _count(n: int) -> str:
    return f'<td class="bad">{n}</td>' if n else "<td>0</td>"


def _curves(run: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    losses = sorted({key for row in history for key in row if key.startswith("train_")})
    losses.sort(key=lambda key: key != "train_loss")
    best = run.get("best") or {}
    mark = None
    if best.get("epoch") is not None and _number(best.get("validation_dsc")) is not None:
        epoch, dsc = float(best["epoch"]), float(best["validation_dsc"])
        mark = (epoch, dsc, f"best: {dsc:.4f} at epoch {epoch:g}")
    epochs = [number for row in history if (number := _number(row.get("epoch"))) is not None]
    charts = []
    for heading, keys in (
        ("Loss", losses),
        ("Validation DSC", ["validation_dsc"]),
        ("Learning rate", ["learning_rate"]),
    ):
        series = {key.removeprefix("train_"): curve for key in keys if (curve := _by_epoch(history, key))}
        if not series:
            continue
        chart = line_chart(heading, series, epochs=epochs, mark=mark if keys == ["validation_dsc"] else None)
        names = enumerate(series) if len(series) > 1 else ()
        legend = "".join(f'<span><i class="key c{i % 8}"></i>{escape(name)}</span>' for i, name in names)
        charts.append(f'<figure><figcaption>{heading}</figcaption>{chart}<div class="legend">{legend}</div></figure>')
    return f'<div class="charts">{"".join(charts)}</div>' if charts else '<p class="quiet">Nothing was logged.</p>'


def _by_epoch(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """The mean of `key` in each epoch; a row of the log is blank where its key was not logged."""
    values: dict[float, list[float]] = {}
    for row in history:
        epoch, value = _number(row.get("epoch")), _number(row.get(key))
        if epoch is not None and value is not None:
            values.setdefault(epoch, []).append(value)
    return [(epoch, math.fsum(some) / len(some)) for epoch, some in sorted(values.items())]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _overlay(picture: OverlayPicture) -> str:
    data = base64.b64encode(overlay_png(picture)).decode("ascii")
    alternative = escape(f"{picture.title}: image, reference and prediction side by side")
    return f'<div class="scroll overlay"><img src="data:image/png;base64,{data}" alt="{alternative}"></div>'


def _prompts(prompts: Sequence[Mapping[str, Any]]) -> str:
    if not prompts:
        return "<p>Nothing: the model reads no text.</p>"
    parts = []
    for source in dict.fromkeys(str(row["source"]) for row in prompts):
        rows = [row for row in prompts if row["source"] == source]
        holistic = [row for row in rows if row["view"] == "holistic"]
        classwise = [row for row in rows if row["view"] != "holistic"]
        oracle = " oracle" if source in _MARKS else " source"
        parts.append(
            f'<h3><span class="badge{oracle}">{escape(source.replace("_", " "))}</span> '
            f'<span class="quiet">{escape(_SOURCES.get(source, ""))}</span></h3>'
            f'<p class="quiet">{len(holistic)} holistic and {counted(len(classwise), "class-wise text")}, '
            f"the longest of {max(int(row['tokens']) for row in rows)} tokens. Examples:</p>"
        )
        one_each = {str(row.get("structure") or row["text"]): row for row in reversed(classwise)}
        for row in [*holistic[:1], *list(reversed(one_each.values()))[:_EXAMPLES]]:
            what = (
                "holistic"
                if row["view"] == "holistic"
                else f"class-wise, {row.get('structure') or 'several structures'}"
            )
            note = f'<span class="quiet">{escape(what)} · {counted(int(row["tokens"]), "token")}</span>'
            parts.append(f"<blockquote>{escape(str(row['text']))}<br>{note}</blockquote>")
    return "".join(parts)


def _provenance(run: Mapping[str, Any]) -> str:
    rows = []
    for key, value in run.items():
        label = escape(key.replace("_", " "))
        rows.append(f'<tr><th scope="row">{label}</th><td>{_shown(key, value)}</td></tr>')
    return f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>'


def _shown(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        parts = (f"<dt>{escape(str(k))}</dt><dd>{_shown(str(k), v)}</dd>" for k, v in value.items())
        return f"<dl>{''.join(parts)}</dl>" if value else "–"
    if isinstance(value, list | tuple):
        return ", ".join(_shown("", item) for item in value) or "–"
    if value is None or value == "":
        return "–"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if key.endswith("_bytes"):
            return f"{value / 2**30:.2f} GiB"
        if key == "wall_seconds":
            return f"{int(value) // 3600} h {int(value) % 3600 // 60:02d} min {int(value) % 60:02d} s"
        if "parameters" in key or key == "multiply_accumulates":
            return f"{value:,}"
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return escape(str(value))
