"""Runs that are evaluated with further sources of prompts, and runs whose text serves the training alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import textseg
from textseg.comparison.compare import compare
from textseg.errors import RecipeError, RunError
from textseg.recipe.loading import load_recipe
from textseg.reports.run_evaluation import evaluate_run
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.training.run import run

SHORT = ("training.epochs=1", "evaluation={metrics: [dsc]}")
FURTHER = "prompts.also_evaluate=[ground_truth, interactive]"
TRAINING_ALONE = ("model.fusion.stages=0", "prompts.evaluation=none")

pytestmark = pytest.mark.usefixtures("stranger")


def test_further_sources_are_evaluated_and_compared_apart(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tiny_recipe, overrides=[*SHORT, FURTHER], output=tmp_path)
    printed = capsys.readouterr().out
    assert "evaluation with 'template', then 'ground_truth', then 'interactive'" in printed
    assert printed.index("prompts: template") < printed.index("prompts: ground_truth ORACLE")
    folder = RunFolder(path)
    further = folder.read()["further_evaluations"]
    assert list(further) == ["ground_truth", "simulated"]
    for source, means in further.items():
        record = folder.evaluation(source).read()
        assert (record["evaluation"]["prompts"], record["test"]) == (source, means)
        assert "further_evaluations" not in record
    assert "With other prompts" in folder.report.read_text(encoding="utf-8")
    assert "With other prompts" not in folder.evaluation("ground_truth").report.read_text(encoding="utf-8")

    board = compare([path.parent])  # as the leaderboard of `textseg run`
    assert {table.kind: len(table.rows) for table in board.tables} == {"ranked": 1, "simulated": 1, "oracle": 1}

    before = folder.scores.stat().st_mtime_ns
    run(tiny_recipe, overrides=[*SHORT, FURTHER], output=tmp_path)
    assert folder.scores.stat().st_mtime_ns == before  # finished earlier
    folder.evaluation("ground_truth").report.unlink()
    run(tiny_recipe, overrides=[*SHORT, FURTHER], output=tmp_path)  # as after an interruption
    assert folder.evaluation("ground_truth").report.exists()


def test_text_that_serves_the_training_alone_is_no_prompt(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tiny_recipe, overrides=[*SHORT, *TRAINING_ALONE], output=tmp_path)
    printed = capsys.readouterr().out
    assert "evaluation without text" in printed
    assert "prompts: none" in printed
    assert ", ccae " in printed
    assert RunFolder(path).read()["evaluation"]["prompts"] == "none"
    with pytest.raises(RunError, match="reads no text, so there are no 'ground_truth' prompts"):
        evaluate_run(path, prompts="ground_truth")
    model = textseg.load(path, device="cpu")
    assert not model.reads_text


def test_text_changes_no_logit_of_such_a_model_and_reaches_its_auxiliary_loss(tiny_recipe: Path) -> None:
    experiment = build(load_recipe(tiny_recipe, list(TRAINING_ALONE)))
    batch = next(experiment.batches())
    segmenter = experiment.segmenter().eval()
    assert not segmenter.uses_text
    with torch.no_grad():
        with_text, without = segmenter(batch.image, batch.text), segmenter(batch.image)
    assert torch.equal(with_text.logits, without.logits)
    assert with_text.text is batch.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.fusion.stages=0",), "'hasf' with these settings reads no text, .* Write `evaluation: none`"),
        (("model.fusion.text_stages=0",), "'hasf' with these settings reads no text"),
        (("prompts.evaluation=none",), "'none' is for a model that reads no text when it predicts"),
        (("prompts.also_evaluate=[template]",), "a source is listed more than once, or is that of 'evaluation'"),
        ((*TRAINING_ALONE, "prompts.also_evaluate=[template]"), "no other text to give it"),
        (("prompts.evaluation=ground_truth",), r"also_evaluate: \[ground_truth\] for scores apart"),
    ],
)
def test_a_source_that_would_mislead_is_refused(tiny_recipe: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(load_recipe(tiny_recipe, list(overrides))).segmenter()
