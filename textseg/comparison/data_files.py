"""A leaderboard as files for programs: CSV with a line for each row, JSON with everything."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from pydantic_core import to_jsonable_python

from textseg.comparison.leaderboard import CASES, STRUCTURES, WINDOW_SHARE, WITHOUT_RARE, Leaderboard, Row, Table
from textseg.comparison.significance import SCHEMES
from textseg.levels.level_naming import POLICY as NAMES_POLICY
from textseg.levels.obedience import POLICY as OBEDIENCE_POLICY
from textseg.metrics.aggregation import AGGREGATES, DEFINITIONS
from textseg.metrics.definitions import POLICY
from textseg.metrics.statistics import DRAWS, MINIMUM_PATIENTS, SEED
from textseg.metrics.window_scores import POLICY as WINDOW_POLICY
from textseg.system.user_files import csv_text
from textseg.version import __version__

FORMAT = 1
SCOPES = {
    STRUCTURES: "the mean over structures of their means over cases",
    CASES: "the mean over cases of their means over structures",
    WITHOUT_RARE: "as `structures`, without those that few test cases show",
}
NUMBER = {
    "structures": "structures that have a value in the mean",
    "used": "values in the mean, over repeats",
    "missed": "places where the reference shows a structure and a repeat found none",
    "spurious": "places where a repeat found a structure and the reference shows none",
    "low": "lower bound of the 95 % interval",
    "high": "upper bound of the 95 % interval",
    "seed_sd": "standard deviation between the means of seeds",
    "fold_sd": "standard deviation between the means of folds",
}


def as_csv(board: Leaderboard) -> str:
    """Return every row of every table, means over structures in full precision; published results at the end."""
    header = ["table", "rank", "run", "label", "seeds", "folds", "runs", "folders", "prompts"]
    for metric in board.metrics:
        for aggregate in AGGREGATES:
            name = "_".join(filter(None, (metric, board.unit[metric], aggregate)))
            header += [name, *(f"{name}_{part}" for part in ("low", "high", "n", "rank"))]
        header += [f"{metric}_seed_sd", f"{metric}_fold_sd"]
    further = [f"dsc_at_{100 * WINDOW_SHARE:g}_{text}" for text in ("no_person", "simulated")] * board.has_windows
    further += ["obedience"] * board.has_obedience
    header += [f"{name}{part}" for name in further for part in ("", "_low", "_high")]
    costs = list(board.tables[0].rows[0].cost)
    header += ["missed", "spurious", *costs, "per", "space", "test_patients", "not_comparable"]
    lines = [_line(board, table, row) for table in board.tables for row in table.rows]
    for published in board.published:
        line: list[object] = ["published", "", published.method, published.method, "", "", "", "", ""]
        for metric in board.metrics:
            mean = published.value(metric) if published.unit(metric) == board.unit[metric] else math.nan
            line += [mean, *[""] * (5 * len(AGGREGATES) - 1), "", ""]
        line += [""] * 3 * len(further)
        line += ["", "", published.parameters, "", published.milliseconds_per_slice, "", "", "", ""]
        lines.append([*line, "another protocol"])
    return csv_text(header, lines)


def _line(board: Leaderboard, table: Table, row: Row) -> list[object]:
    finished = row.finished
    line: list[object] = [table.kind, "" if row.rank is None else row.rank, finished.first.name, row.label]
    for numbers in (finished.seeds, finished.folds):
        line.append("+".join("" if number is None else str(number) for number in numbers))
    line += [len(finished.runs), "+".join(str(run.folder) for run in finished.runs), "+".join(finished.sources)]
    for metric in board.metrics:
        for aggregate in AGGREGATES:
            number = row.number(metric, aggregate)
            rank = row.ranks[aggregate][metric] if table.ranked else ""
            line += [number.value, number.low, number.high, number.used, rank]
        number = row.number(metric, AGGREGATES[0])
        line += [number.seed_sd, number.fold_sd]
    for mean in row.further(board):
        line += ["", "", ""] if mean is None else [mean.value, mean.low, mean.high]
    first = row.number(board.metrics[0], AGGREGATES[0])
    evaluation = [finished.first.value("evaluation", key) for key in ("per", "space")]
    keys = "+".join(dict.fromkeys(mismatch.key for mismatch in board.mismatches))
    return [*line, first.missed, first.spurious, *row.cost.values(), *evaluation, first.patients, keys]


def as_json(board: Leaderboard) -> str:
    """Return all means with intervals, ranks and tests, and their definitions; null where undefined."""
    content = {
        "format": FORMAT,
        "textseg": __version__,
        "comparable": not board.mismatches,
        "mismatches": [{"key": m.key, "one": m.first, "other": m.second, "line": m.line} for m in board.mismatches],
        "settings": board.settings,
        "patients": board.patients,
        "cases": board.cases,
        "structures": board.structures,
        "rare": {
            "below_share": board.rare_share,
            "structures": {name: {"cases": shown, "of": of} for name, (shown, of) in board.rare.items()},
        },
        "definitions": {
            "policy": POLICY,
            "names": NAMES_POLICY,
            "fields_of_view": WINDOW_POLICY,
            "obedience": OBEDIENCE_POLICY,
            "metrics": {m: {"lower_is_better": board.lower(m), **asdict(board.facts[m])} for m in board.metrics},
            "aggregates": DEFINITIONS,
            "scopes": {name: SCOPES.get(name, "as `structures`, of this group of the atlas") for name in board.scopes},
            "rank_schemes": SCHEMES,
            "numbers": NUMBER,
            "interval": f"95 %, bias-corrected and accelerated bootstrap over patients, {DRAWS} draws, seed {SEED}",
            "test": "Wilcoxon signed-rank on patients' means, two-sided, penalised; Holm over the pairs of a metric",
            "effect": "matched-pairs rank-biserial correlation, 1 where the first is better in every patient",
            "few_patients": len(board.patients) < MINIMUM_PATIENTS,
        },
        "scopes": board.scopes,
        "tables": [_table(board, table) for table in board.tables],
        "published": {
            "protocol": " ".join(dict.fromkeys(row.note for row in board.published)),
            "rows": [
                {
                    "dataset": row.dataset,
                    "method": row.method,
                    "means": {metric: {"found" if key == "structures" else key: value
                                       for key, value in asdict(mean).items()} for metric, mean in row.means.items()},
                    "parameters": row.parameters,
                    "milliseconds_per_slice": row.milliseconds_per_slice,
                }
                for row in board.published
            ],
        },
    }  # fmt: skip
    # Data classes become objects, and the arrays of numpy lists; what is undefined becomes null.
    plain = to_jsonable_python(content, inf_nan_mode="null", fallback=lambda value: value.tolist())
    return json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _table(board: Leaderboard, table: Table) -> dict[str, Any]:
    return {
        "kind": table.kind,
        "title": table.title,
        "warnings": table.warnings,
        "places": {"all": table.all_places, "common": table.common_places},
        "rows": [
            {
                "label": row.label,
                "name": row.finished.first.name,
                "rank": row.rank,
                "seeds": row.finished.seeds,
                "folds": row.finished.folds,
                "folders": [str(run.folder) for run in row.finished.runs],
                "prompts": row.finished.sources,
                "report": row.finished.mark == "report",
                "oracle": row.finished.mark == "oracle",
                "simulated": row.finished.mark == "simulated",
                "means": {
                    scope: {a: {m: row.number(m, a, scope) for m in board.metrics} for a in AGGREGATES}
                    for scope in board.scopes
                },
                "ranks": row.ranks if table.ranked else None,
                "by_structure": row.by_structure,
                "by_case": row.by_case,
                "by_patient": row.by_patient,
                "cost": row.cost,
                "enumeration": row.level_naming,
                "fields_of_view": row.windows,
                "obedience": row.obedience,
            }
            for row in table.rows
        ],
        "differences": table.differences,
        "rankings": {
            metric: {
                "methods": ranking.methods,
                "schemes": ranking.schemes,
                "distribution": ranking.distribution,
                "likely": {name: ranking.likely(index) for index, name in enumerate(ranking.methods)},
                "kendall_tau": [{"one": a, "other": b, "tau": tau} for (a, b), tau in ranking.tau.items()],
                "stability": ranking.stability,
            }
            for metric, ranking in table.rankings.items()
        },
    }
