from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest

from textseg.errors import RunError
from textseg.evaluation.probe_texts import CONDITIONS
from textseg.metrics.scores import read_scores
from textseg.metrics.statistics import Interval
from textseg.reports.probe_report import probe_run, verdict
from textseg.reports.run_report import show_obedience
from textseg.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("stranger")


@pytest.fixture(scope="module")
def probed(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("probe")
    return output, probe_run(finished_run, output=output)


def test_the_template_scores_as_the_run_did(probed: tuple[Path, str], finished_run: Path) -> None:
    own = [row for row in read_scores(finished_run / "scores.csv") if row.metric == "dsc"]
    rows = [row for row in read_scores(probed[0] / "probe.csv") if row.prompt_source == "template"]
    assert [row.value for row in rows] == pytest.approx([row.value for row in own], nan_ok=True)


def test_every_condition_is_scored_and_what_needs_the_annotation_is_an_oracle(probed: tuple[Path, str]) -> None:
    used = [condition for condition in CONDITIONS if condition.name != "report"]  # the run has no reports
    sources = {row.prompt_source for row in read_scores(probed[0] / "probe.csv")}
    # Every test scan shows L5/S, the end of the atlas, so that no list can be moved downwards.
    assert sources == {c.label for c in used if c.name != "one_level_down"}
    assert {source for source in sources if "(" in source} == {
        "interactive (simulated)",
        "one_level_up (oracle)",
        "ground_truth (oracle)",
        "claimed (oracle)",
        "denied (oracle)",
    }
    assert re.match(r"Verdict: without a landmark, obedience \d\.\d\d .*: the names .*\. The model ", probed[1])
    assert "patients: intervals and tests of fewer than 50 are rough" in probed[1]
    assert (probed[0] / "probe.png").read_bytes().startswith(b"\x89PNG")
    table, _, obedience = (probed[0] / "probe.md").read_text().partition("## Obedience")
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in table.splitlines() if line[:2] == "| "}
    assert len(lines) == len(used) + 2  # a header, and what to expect of a person who errs
    assert [lines[name][3] for name in ("interactive", "one_level_up", "one_level_down")] == ["3", "1 of 3", "0 of 3"]
    assert lines["expected"][3] == "1 of 3"
    assert lines["one_level_down"][1:3] == ["–", ""]
    assert lines["one_level_up"][2].endswith(" (1 patient)")
    assert "14.1 % of 1049 patients (Korean J Radiol 2014)" in table
    assert "| all directions |" in obedience
    with (probed[0] / "drops.csv").open() as file:
        drops = list(csv.DictReader(file))
    assert {row["condition"] for row in drops} == {c.name for c in used} - {"template"} | {"expected"}
    with (probed[0] / "obedience.csv").open() as file:
        pictures = list(csv.DictReader(file))
    (picture,) = [row for row in pictures if row["picture"] == "whole"]
    assert (picture["case"], picture["levels"], picture["landmark"]) == ("3_t2", "-1", "yes")
    assert {row["landmark"] for row in pictures} == {"yes", "no"}


def test_a_second_probe_says_the_same(probed: tuple[Path, str], finished_run: Path, tmp_path: Path) -> None:
    probe_run(finished_run, output=tmp_path)
    assert (tmp_path / "probe.csv").read_bytes() == (probed[0] / "probe.csv").read_bytes()


def test_the_record_and_the_report_of_the_run_get_the_obedience(copied: Path) -> None:
    folder = RunFolder(copied)
    before = folder.report.read_text(encoding="utf-8")
    assert "<h2>Obedience</h2>" not in before
    probe_run(copied)
    record = folder.read()["obedience"]
    assert record["scored_step"] == folder.read()["scored_step"] == 15
    assert "3" in record["by_patient"]
    groups = [(row["levels"], row["landmark"]) for row in record["summaries"]]
    assert groups[:4] == [(None, None), (None, True), (None, False), (-1, None)]
    report = folder.report.read_text(encoding="utf-8")
    sentence = record["conclusion"].capitalize()
    assert f"<h2>Obedience</h2>\n<p>{sentence}.</p>" in report
    # A second probe replaces the section; the rest of the report stays.
    show_obedience(folder, {**record, "conclusion": "obedience 1.00: a test"})
    report = folder.report.read_text(encoding="utf-8")
    assert report.count("<h2>Obedience</h2>") == 1
    assert "<p>Obedience 1.00: a test.</p>" in report
    begin, end = report.index("<!-- obedience -->"), report.index("<!-- end of obedience -->")
    assert before == f"{report[:begin]}<!-- obedience -->{report[end:]}"


def interval(value: float, width: float = 0.01) -> Interval:
    return Interval(value, value - width, value + width, 60)


def test_the_verdict_says_whether_words_matter() -> None:
    names = [condition.name for condition in CONDITIONS if condition.name != "template"]
    assert "does not rely on its text" in verdict(dict.fromkeys(names, interval(0.001)))
    leaning = verdict({**dict.fromkeys(names, interval(0.02)), "nonsense": interval(0.3)})
    assert leaning.startswith("Verdict: the model leans on its text: text without meaning (nonsense) costs 0.300 DSC;")
    unmoved = {**dict.fromkeys(names, interval(0.02)), "one_level_down": Interval(math.nan, math.nan, math.nan, 0)}
    text = verdict(unmoved, "obedience 0.83 [0.70, 0.90]: the names follow the text")
    assert text.startswith("Verdict: obedience 0.83 [0.70, 0.90]: the names follow the text. The model relies little ")
    assert "a list one level up costs 0.020 DSC; the true list" in text  # no list could be moved downwards
    gains = verdict({**dict.fromkeys(names, interval(0.02)), "ground_truth": interval(-0.05, 0.1)})
    assert "the true list (oracle) gains 0.050 DSC (not certain)" in gains
    assert "relies little on its text as such" in gains


def test_a_run_without_text_can_not_be_probed(tmp_path: Path, tiny_recipe: Path) -> None:
    from textseg.training.run import run

    plain = tmp_path / "plain.yaml"
    text = tiny_recipe.read_text().replace("name: tiny", "name: plain")
    start, stop = text.index("prompts:"), text.index("segmentation_loss:")
    text = (
        text[:start]
        + "model: {network: {use: plain}}\n"
        + text[stop:].replace("auxiliary_losses: [{use: ccae, weight: 0.2}]\n", "")
    )
    plain.write_text(text)
    folder = run(plain, overrides=["training.epochs=1"], output=tmp_path / "runs")
    with pytest.raises(RunError, match="reads no text, so there is nothing to probe"):
        probe_run(folder)
