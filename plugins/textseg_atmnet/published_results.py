"""The tables of the ATM-Net paper (arXiv 2504.03476): thirteen methods, two data sets, four metrics."""

from __future__ import annotations

import csv
from pathlib import Path

from textseg import PublishedMethod, PublishedTable

FOLDER = Path(__file__).with_name("published")
RARE = ("T9", "T10", "T9/T10")  # seldom in view, by the paper's figure 4
PROTOCOL = "2-D slices after resizing, distances in pixels, an unnamed split, one run, prompts not said"


def published_tables() -> list[PublishedTable]:
    """Return a table for each data set. The paper's FLOPs are of a batch of 8 and are left out."""
    tables: dict[str, dict[str, PublishedMethod]] = {}
    units: dict[str, str] = {}
    costs = {row["method"]: row for row in _read("complexity")}
    for row in _read("average"):
        cost = costs.get(row["method"])
        method = tables.setdefault(row["dataset"], {}).setdefault(
            row["method"],
            PublishedMethod(
                row["method"],
                means={},
                by_structure={},
                parameters=round(float(cost["parameters_m"]) * 1e6) if cost else None,
                milliseconds_per_slice=float(cost["inference_ms"]) if cost else None,
            ),
        )
        method.means[row["metric"]] = float(row["value"])
        units[row["metric"]] = row["unit"]
    for row in _read("per_class"):
        by_metric = tables[row["dataset"]][row["method"]].by_structure
        by_metric.setdefault(row["metric"], {})[row["structure"]] = float(row["value"] or "nan")
    return [
        PublishedTable(dataset, "ATM-Net, arXiv 2504.03476", PROTOCOL, units, list(methods.values()), RARE)
        for dataset, methods in tables.items()
    ]


def _read(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
