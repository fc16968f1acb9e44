from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from textseg import Run
from textseg.levels.level_naming import POLICY, LevelNaming, write_level_naming
from textseg_spine.order_of_levels import order_of_levels

FOUND = {
    "right": LevelNaming(4, 0, 0, 0, 0, 0.9, 0.9),
    "<shifted>": LevelNaming(3, 3, 1, 0, 1, 0.05, 0.85, (("L1", "L2"), ("L2", "L3"), ("L3", "L4"))),
    "empty": LevelNaming(0, 0, 0, 0, 0, float("nan"), float("nan")),
}


def run(folder: Path, **dataset: Any) -> Run:
    write_level_naming(folder / "enumeration.json", FOUND)
    return Run(folder, {"dataset": dataset}, {})


def cells(html: str) -> dict[str, list[str]]:
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', html)
    return {first: re.findall("<td>(.*?)</td>", rest) for first, rest in rows}


def test_totals_and_the_volumes_that_are_wrong(tmp_path: Path) -> None:
    (section,) = order_of_levels(run(tmp_path, use="spider"))
    assert section.heading == "Order of levels"
    assert cells(section.html) == {
        "volumes off by a level or more": ["33% of 3"],
        "structures in place under another name": ["3 of 7"],
        "neighbours in the wrong order": ["0"],
        "structures in two places": ["1"],
        "DSC by name": ["0.4750"],
        "DSC by place, whatever the name": ["0.8750"],
        "&lt;shifted&gt;": ["+1", "3", "0", "1", "0.0500", "0.8500"],
    }
    assert "Most often: L1 called L2 (1), L2 called L3 (1), L3 called L4 (1)." in section.html
    assert POLICY in section.html


def test_no_volume_is_listed_where_none_is_wrong(tmp_path: Path) -> None:
    write_level_naming(tmp_path / "enumeration.json", {"right": FOUND["right"]})
    (section,) = order_of_levels(Run(tmp_path, {"dataset": {"use": "lumbar_phantom"}}, {}))
    assert "right" not in cells(section.html)
    assert "Most often" not in section.html


def test_it_speaks_of_the_lumbar_spine_alone(tmp_path: Path) -> None:
    assert order_of_levels(run(tmp_path, use="heart")) == []
    assert order_of_levels(run(tmp_path, use="nifti_folder", atlas="heart")) == []
    assert order_of_levels(run(tmp_path, use="nifti_folder", atlas="lumbar_spider")) != []


def test_a_run_on_the_phantom_has_the_section(finished_run: Path) -> None:
    naming = json.loads((finished_run / "enumeration.json").read_text())
    report = (finished_run / "report.html").read_text(encoding="utf-8")
    below = report.partition("<h2>Order of levels</h2>")[2]
    assert cells(below)["structures in place under another name"] == [
        f"{naming['totals']['misnamed']} of {naming['totals']['matched']}"
    ]
