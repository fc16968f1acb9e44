from __future__ import annotations

import csv
from pathlib import Path

import pytest

from textseg.errors import RunError
from textseg.evaluation.probe_texts import CONDITIONS
from textseg.metrics.scores import read_scores
from textseg.metrics.statistics import Interval
from textseg.reports.probe_report import probe_run, verdict

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
    sources = {row.prompt_source for row in read_scores(probed[0] / "probe.csv")}
    assert sources == {c.label for c in CONDITIONS}
    assert {source for source in sources if "(" in source} == {
        "interactive (simulated)",
        "off_by_one (oracle)",
        "ground_truth (oracle)",
        "claimed (oracle)",
        "denied (oracle)",
    }
    assert "Verdict: the model" in probed[1]
    assert "patients: intervals and tests of fewer than 50 are rough" in probed[1]
    assert (probed[0] / "probe.png").read_bytes().startswith(b"\x89PNG")
    assert (probed[0] / "probe.md").read_text().count("\n| ") == len(CONDITIONS) + 1
    with (probed[0] / "drops.csv").open() as file:
        drops = list(csv.DictReader(file))
    assert {row["condition"] for row in drops} == {c.name for c in CONDITIONS} - {"template"}


def test_a_second_probe_says_the_same(probed: tuple[Path, str], finished_run: Path, tmp_path: Path) -> None:
    probe_run(finished_run, output=tmp_path)
    assert (tmp_path / "probe.csv").read_bytes() == (probed[0] / "probe.csv").read_bytes()


def interval(value: float, width: float = 0.01) -> Interval:
    return Interval(value, value - width, value + width, 60)


def test_the_verdict_says_whether_words_matter() -> None:
    names = [condition.name for condition in CONDITIONS if condition.name != "template"]
    assert "does not rely on its text" in verdict(dict.fromkeys(names, interval(0.001)))
    leaning = verdict({**dict.fromkeys(names, interval(0.02)), "nonsense": interval(0.3)})
    assert leaning.startswith("Verdict: the model leans on its text: text without meaning (nonsense) costs 0.300 DSC;")
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
