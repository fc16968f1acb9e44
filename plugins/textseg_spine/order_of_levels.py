"""A section of the report on the names of the levels of the spine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from textseg import ReportSection, Run

ATLASES = frozenset({"lumbar_spider", "lumbar_mrspineseg"})
DATASETS = frozenset({"spider", "mrspineseg", "lumbar_phantom"})
INTRODUCTION = (
    "<p>A level too high or too low, and names are wrong where outlines are right: the gap between the two DSC is what "
    "wrong names cost.</p>"
)
SWAPS = 5  # shown, the most frequent ones


def order_of_levels(run: Run) -> list[ReportSection]:
    """Return a section on the level names in enumeration.json, for runs on this plug-in's atlases only."""
    dataset = run.recipe["dataset"]
    if dataset["use"] not in DATASETS and dataset.get("atlas") not in ATLASES:
        return []
    naming = json.loads((run.folder / "enumeration.json").read_text(encoding="utf-8"))
    totals, wrong = naming["totals"], [case for case in naming["cases"] if _is_wrong(case)]
    rows = [
        ("volumes off by a level or more", f"{_share(totals['level_shift_rate'])} of {totals['cases']}"),
        ("structures in place under another name", f"{totals['misnamed']} of {totals['matched']}"),
        ("neighbours in the wrong order", str(totals["order_violations"])),
        ("structures in two places", str(totals["duplicates"])),
        ("DSC by name", _ratio(totals["dsc"])),
        ("DSC by place, whatever the name", _ratio(totals["dsc_without_names"])),
    ]
    parts = [INTRODUCTION, _table(("over all test volumes", ""), rows)]
    if wrong:
        header = ("volume", "off by", "misnamed", "wrong order", "twice", "DSC by name", "by place")
        parts.append(_table(header, map(_row, wrong)))
    if swaps := totals["swaps"]:
        named = [f"{swap['reference']} called {swap['prediction']} ({swap['count']})" for swap in swaps[:SWAPS]]
        parts.append(f"<p>Most often: {escape(', '.join(named))}.</p>")
    parts.append(f'<p class="quiet">{escape(naming["policy"])}</p>')
    return [ReportSection("Order of levels", "".join(parts))]


def _is_wrong(case: dict[str, float]) -> bool:
    return any(case[key] for key in ("shift", "misnamed", "order_violations", "duplicates"))


def _row(case: dict[str, float]) -> Sequence[str]:
    counts = (f"{case['shift']:+d}", case["misnamed"], case["order_violations"], case["duplicates"])
    return (str(case["case"]), *map(str, counts), _ratio(case["dsc"]), _ratio(case["dsc_without_names"]))


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
