from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from textseg.comparison.compare import compare
from textseg.contracts import Atlas, Case
from textseg.drawing.tables import format_value
from textseg.metrics.definitions import POLICY
from textseg.metrics.scores import Score, write_scores
from textseg.runs.folder import RunFolder
from textseg.runs.saved_predictions import keeping
from textseg.volumes.files import write_labels
from textseg.volumes.geometry import Geometry

GEOMETRY = Geometry((3, 20, 16), (2.0, 0.5, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
CASES = ("a", "b", "c", "d")
STRUCTURES = ("L1", "L2")
EVIL = '<script>alert("1")</script>&\''


def make(folder: Path, seed: int, *, source: str = "none", missed: tuple[str, ...] = (), **facts: Any) -> Path:
    """A run with random scores of four cases of three patients; in the `missed` cases L2 was not found."""
    random = np.random.default_rng(seed)
    rows = []
    for case in CASES:
        for structure in STRUCTURES:
            status = "missed" if case in missed and structure == "L2" else "ok"
            dsc, hd95 = random.uniform(0.3, 0.9), random.uniform(2, 30)
            for metric, unit, value in (("dsc", "", dsc), ("hd95", "mm", hd95)):
                value = value if status == "ok" else math.nan if unit else 0.0
                worst = 100.0 if unit else 0.0
                patient = "ab" if case in "ab" else case
                rows.append(
                    Score(case, patient, None, structure, metric, unit, "native", value, worst, status, source)  # type: ignore[arg-type]
                )
    record = {
        "name": folder.parent.name,
        "seed": seed,
        "fold": None,
        "dataset": "spider",
        "hashes": {"data": "d", "split": "s", "preparation": "p"},
        "evaluation": {"metrics": ["dsc", "hd95"], "per": "volume", "space": "native", "unit": "mm", "prompts": source},
        "structures_in_training": list(STRUCTURES),
        "groups": {"vertebrae": ["L1", "L2"]},
        "parameters": 1_230_000 + seed,
        "multiply_accumulates": 45_670_000_000,
        "milliseconds_per_slice": 8.9,
        "peak_memory_bytes": 123 * 2**20,
        **facts,
    }
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    write_scores(folder / "scores.csv", rows)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two seeds of one method, another that misses, and an oracle."""
    return [
        make(tmp_path / "one" / "seed1", 1),
        make(tmp_path / "one" / "seed2", 2),
        make(tmp_path / "two" / "seed3", 3, missed=("b",)),
        make(tmp_path / "seer" / "seed4", 4, source="ground_truth"),
    ]


def keep(folder: Path, atlas: Atlas, value: int, scans: Path) -> None:
    with keeping(RunFolder(folder), atlas) as write:
        for name in CASES:
            mask = np.zeros(GEOMETRY.shape, np.uint8)
            mask[1, 4:9, 3:8] = 1
            write_labels(mask, GEOMETRY, scans / f"{name}_mask.mha")
            write_labels(mask * 90 + 5, GEOMETRY, scans / f"{name}_image.mha")
            case = Case(name, name, scans / f"{name}_image.mha", scans / f"{name}_mask.mha")
            predicted = np.zeros_like(mask)
            predicted[1, 6:11, 3:8] = value
            write(case, predicted, GEOMETRY, {0: 0, 1: 1})


def written(runs: list[Path], output: Path, **options: Any) -> tuple[str, dict[str, Any]]:
    compare(runs, output=output, **options)
    return (output / "leaderboard.html").read_text(), json.loads((output / "leaderboard.json").read_text())


def numbers(content: Any, key: str = "") -> list[tuple[str, Any]]:
    """Every number of a JSON document with the last key on the way to it."""
    if isinstance(content, dict):
        return [result for name, value in content.items() for result in numbers(value, name)]
    if isinstance(content, list):
        return [result for value in content for result in numbers(value, key)]
    return [(key, content)] if isinstance(content, int | float) and not isinstance(content, bool) else []


def test_every_number_of_the_json_stands_on_the_page(runs: list[Path], tmp_path: Path, html_page: Any) -> None:
    html, content = written(runs, tmp_path / "out", published="spider")
    page = html_page(html)
    shown = " ".join([page.text, *(value or "" for _, key, value in page.attributes if key in ("title", "aria-label"))])
    words = set(re.findall(r"[+-]?\d[\d.,e+-]*\d|\d", shown))

    def stands(*texts: str) -> bool:
        return any(text in words for text in texts)

    checked = 0
    for table in content["tables"]:
        for row in table["rows"]:
            for aggregates in row["means"].values():
                for metrics in aggregates.values():
                    for number in metrics.values():
                        unit = number["unit"]
                        for key in ("value", "low", "high", "seed_sd", "fold_sd"):
                            if number[key] is not None:
                                checked += 1
                                assert stands(format_value(number[key], unit)), (row["label"], key, number)
                        for key in ("used", "missed", "spurious", "patients"):
                            assert stands(str(number[key]))
            for key in ("by_structure", "by_case", "by_patient"):
                for metrics in row[key].values():
                    for metric, result in metrics.items():
                        unit = "mm" if metric == "hd95" else ""
                        values = [m["value"] for m in result.values()] if key == "by_structure" else result
                        for value in values:
                            if value is not None:
                                checked += 1
                                assert stands(format_value(value, unit)), (row["label"], key, metric, value)
            cost = row["cost"]
            assert stands(f"{cost['parameters'] / 1e6:.2f}")
            assert stands(f"{cost['multiply_accumulates'] / 1e9:.2f}")
            assert stands(f"{cost['milliseconds_per_slice']:.1f}")
            assert stands(f"{cost['peak_memory_bytes'] / 2**20:.0f}")
        for metric, pairs in table["differences"].items():
            for pair in pairs:
                assert stands(
                    f"{'+' if pair['mean'] > 0 else ''}{format_value(pair['mean'], 'mm' * (metric == 'hd95'))}"
                )
                assert stands(f"{pair['test']['p']:.3g}")
                assert stands(f"{pair['test']['effect']:+.2f}")
                assert stands(f"{pair['adjusted']:.3g}")
        for ranking in table["rankings"].values():
            for share in [share for shares in ranking["distribution"] for share in shares]:
                assert stands(f"{100 * share:.1f}")
            assert ranking["stability"] is None or stands(format_value(ranking["stability"]))
            for rank in [rank for ranks in ranking["schemes"].values() for rank in ranks]:
                assert stands(f"{rank:g}")
    for row in content["published"]["rows"]:
        assert row["method"] in shown
        assert stands(format_value(row["means"]["dsc"]["printed"] / 100))
    assert checked > 150
    assert POLICY in shown


def test_the_page_is_one_file_that_loads_nothing(runs: list[Path], tmp_path: Path, html_page: Any) -> None:
    html, _ = written(runs, tmp_path / "out")
    page = html_page(html)
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    script = re.search(r"<script>(.*?)</script>", html, re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = next(value for tag, key, value in page.attributes if tag == "meta" and key == "content" and "src" in value)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    assert "<link" not in html


def test_names_that_are_code_stay_text(tmp_path: Path, html_page: Any) -> None:
    places = [make(tmp_path / str(n) / "seed1", n, name=f"{EVIL}{n}", dataset=EVIL) for n in range(2)]
    html, _ = written(places, tmp_path / "out")
    page = html_page(html)
    assert page.tags.count("script") == 1
    assert "<script>alert" not in html
    assert EVIL in page.text
    assert not [value for _, key, value in page.attributes if key.startswith("on")]


def sections(html: str) -> dict[str, str]:
    """The parts of the page by heading."""
    result = re.findall(r"<section[^>]*><h2>(.*?)</h2>(.*?)</section>", html, re.S)
    return dict(result)


def test_oracles_and_published_rows_stand_apart(runs: list[Path], tmp_path: Path) -> None:
    html, _ = written(runs, tmp_path / "out", published="spider")
    parts = sections(html)
    assert "seer" not in parts["Leaderboard"]
    assert "seer" not in parts["Ranks"]
    assert "seer" not in parts["Differences"]
    (oracle,) = (body for name, body in parts.items() if name.startswith("Oracle runs"))
    assert oracle.count("ORACLE") == 3  # once for each way to count a miss
    assert "rank" not in re.search(r"<thead>.*?</thead>", oracle, re.S)[0]  # type: ignore[index]
    assert "seer (seed 4) ORACLE" in parts["Structures"]
    assert '<section class="oracle"><h2>Oracle runs' in html
    assert '<section class="published"><h2>Published on spider: another protocol, not ranked' in html
    assert "atmnet" not in parts["Leaderboard"]


def test_each_view_has_its_own_ranks_and_best(runs: list[Path], tmp_path: Path) -> None:
    html, content = written(runs, tmp_path / "out")
    table = sections(html)["Leaderboard"]
    views = dict(re.findall(r'<div data-aggregate="(\w+)">(.*?)</table>', table, re.S))
    rows = content["tables"][0]["rows"]
    for aggregate, view in views.items():
        lines = re.findall(r"<tbody>(.*)</tbody>", view, re.S)[0].split("<tr>")[1:]
        assert len(lines) == len(rows) == 2
        for line, row in zip(lines, rows, strict=True):
            assert f'<td data-value="{row["ranks"][aggregate]["dsc"]}">' in line
            hd95 = row["means"]["structures"][aggregate]["hd95"]["value"]
            best = hd95 == min(r["means"]["structures"][aggregate]["hd95"]["value"] for r in rows)
            assert f'<span class="{"best" if best else "second"}">{hd95:.2f}</span>' in line
            assert f'data-value="{hd95!r}"' in line


def test_what_was_forced_is_said_and_ranks_nobody(runs: list[Path], tmp_path: Path) -> None:
    second = make(tmp_path / "far" / "seed1", 9, hashes={"data": "x", "split": "s", "preparation": "p"})
    html, _ = written([*runs, second], tmp_path / "out", force=True)
    assert '<li class="forced">NOT COMPARABLE: these runs differ in hashes.data' in html
    assert "<h2>NOT COMPARABLE: Leaderboard</h2>" in html
    assert 'class="best"' not in sections(html)["NOT COMPARABLE: Leaderboard"]


def test_warnings_stand_at_the_top(runs: list[Path], tmp_path: Path) -> None:
    html, content = written(runs, tmp_path / "out")
    header = re.search(r"<header>(.*?)</header>", html, re.S)
    assert header is not None
    assert content["tables"][0]["warnings"]
    for warning in content["tables"][0]["warnings"]:
        assert warning in header[1].replace("&#x27;", "'")
    assert "3 patients: intervals and tests of fewer than 50 are rough" in header[1]


def test_the_same_slices_under_every_method(
    runs: list[Path], small_atlas: Atlas, tmp_path: Path, html_page: Any
) -> None:
    for value, run in enumerate(runs, start=1):
        keep(run, small_atlas, value, tmp_path)
    html, _ = written(runs, tmp_path / "out")
    html_page(html)
    body = sections(html)["The same slices"]
    assert body.count("<h3>") == 3
    assert [word.partition(":")[0] for word in re.findall(r"<h3>(.*?)</h3>", body)] == ["best", "median", "worst"]
    first = body.split("<h3>")[1]
    panels = re.findall(r"<figure>(.*?)</figure>", first, re.S)
    assert len(panels) == 5  # image, reference, two methods, the oracle
    drawn = [re.findall(r'href="data:image/png;base64,([^"]+)"', panel) for panel in panels]
    assert [len(result) for result in drawn] == [0, 1, 1, 1, 1]
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(result[0])))) for result in drawn[1:]]
    reference, *methods = pictures
    assert (reference[..., 3] > 0).sum() == 25
    for method in methods:
        assert method.shape == reference.shape
        moved = np.roll(reference[..., 3], 2, axis=0)
        np.testing.assert_array_equal(method[..., 3] > 0, moved > 0)
    assert (methods[0] != methods[1]).any()
    assert ">L2</text>" in panels[1]  # class 1, of the reference and of the first seed
    assert ">L2</text>" in panels[2]
    assert ">L1/L2</text>" in panels[3]  # class 3: the third run
    assert "seer (seed 4) ORACLE" in panels[4]
    assert first.count("data:image/jpeg") == 1  # the scan is there once


def test_without_predictions_or_scans_the_page_says_why(runs: list[Path], small_atlas: Atlas, tmp_path: Path) -> None:
    keep(runs[3], small_atlas, 1, tmp_path / "scans")
    html, _ = written(runs, tmp_path / "out")
    body = sections(html)["The same slices"]
    assert re.search(r"No picture of two \(seed 3\): .*keeps no predictions to draw. Evaluate it again", body)
    assert len(re.findall("<figure>", body)) == 9
    for scan in (tmp_path / "scans").glob("*_image.mha"):
        scan.unlink()
    html, _ = written(runs, tmp_path / "again")
    body = sections(html)["The same slices"]
    assert "<figure>" not in body
    assert re.search(r"No picture of case \w: .*_image.mha does not exist", body)
