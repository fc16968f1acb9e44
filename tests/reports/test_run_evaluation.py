from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from textseg.comparison.compare import compare
from textseg.comparison.text import as_text
from textseg.contracts import SegmenterOutput, TextFeatures
from textseg.errors import DataError, PromptError, RecipeError, RunError
from textseg.inference.slices import predict_case
from textseg.metrics.scores import Score, read_scores
from textseg.metrics.window_scores import means_as_json, read_window_scores, summarise_windows
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import dump, load_recipe
from textseg.recipe.schema import MetricSpec
from textseg.reports import run_evaluation
from textseg.reports.figure import features_figure, predictions_figure
from textseg.reports.probe_report import probe_run
from textseg.reports.run_evaluation import evaluate_and_write, evaluate_run
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder
from textseg.runs.saved_predictions import read_kept

pytestmark = pytest.mark.usefixtures("stranger")
CPU = torch.device("cpu")


class Bright(torch.nn.Module):
    """Predicts class 1 where the image is bright, and class 19 elsewhere."""

    uses_text = False
    size_multiple = 1

    def forward(self, image: torch.Tensor, text: TextFeatures | None) -> SegmenterOutput:
        logits = torch.zeros(image.shape[0], 20, *image.shape[-2:])
        logits[:, 1] = (image[:, 0] > 0.5).float()
        logits[:, 19] = 0.5
        return SegmenterOutput(logits)


@pytest.fixture(scope="module")
def without_text(tiny_recipe: Path, stranger: None) -> Experiment:
    overrides = ["prompts=null", "auxiliary_losses=[]", "model={network: {use: plain}}"]
    return build(load_recipe(tiny_recipe, overrides))


def scored(experiment: Experiment, path: Path, **settings: Any) -> list[Score]:
    recipe = experiment.recipe
    evaluation = recipe.evaluation.model_copy(update=settings)
    changed = replace(experiment, recipe=recipe.model_copy(update={"evaluation": evaluation}))
    folder = RunFolder(path)
    return evaluate_and_write(changed, Segmenter(Bright()), folder, folder, source=None, device=CPU)


def test_predictions_are_kept_in_the_geometry_of_the_scan(without_text: Experiment, tmp_path: Path) -> None:
    scored(without_text, tmp_path)
    kept = read_kept(RunFolder(tmp_path))
    assert list(kept.cases) == [prepared.case.id for prepared in without_text.cases["test"]]
    for prepared in without_text.cases["test"]:
        prediction, geometry = kept.cases[prepared.case.id].read_prediction()
        label_map = without_text.dataset.label_map(prepared.case)
        segmenter = Segmenter(Bright()).eval()
        expected = predict_case(segmenter, prepared, without_text.slices(prepared, None), device=CPU, batch_size=4)
        np.testing.assert_array_equal(prediction, expected.native)
        np.testing.assert_array_equal(kept.cases[prepared.case.id].read_reference(), prepared.native_mask(label_map)[0])
        assert kept.cases[prepared.case.id].read_image(geometry).shape == prediction.shape


def test_pictures_are_chosen_by_dsc_also_where_it_is_not_asked_for(
    without_text: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, Any] = {}
    monkeypatch.setattr(run_evaluation, "write_report", lambda path, **parts: shown.update(parts))
    scored(without_text, tmp_path / "asked", metrics=(MetricSpec(use="dsc"), MetricSpec(use="jaccard")))
    titles = [picture.title for picture in shown["overlays"]]
    rows = scored(without_text, tmp_path / "unasked", metrics=(MetricSpec(use="jaccard"),))
    assert {row.metric for row in rows} == {"jaccard"}
    assert [picture.title for picture in shown["overlays"]] == titles
    assert [title.partition(":")[0] for title in titles] == ["best", "median", "worst"]
    assert shown["run"]["structures_in_training"] == without_text.structures_in_training
    assert shown["prompts"] == []


def test_oracle_prompts_stand_apart(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    target = evaluate_run(copied.parent, prompts="ground_truth")
    assert target == copied / "evaluations" / "ground_truth"
    assert {path: path.read_bytes() for path in before} == before
    assert "ORACLE" in capsys.readouterr().out
    assert "ORACLE" in (target / "report.html").read_text()
    assert {row.prompt_source for row in read_scores(target / "scores.csv")} == {"ground_truth"}
    assert json.loads((target / "run.json").read_text())["evaluation"]["prompts"] == "ground_truth"
    ranked, _, oracles = as_text(compare([copied, target])).partition("Oracle runs (prompts from the ground truth)")
    assert oracles
    tables = [part.partition("95 % interval")[0] for part in (ranked, oracles)]
    assert [table.count("tiny (seed 2025)") for table in tables] == [1, 1]
    assert "not ranked" in oracles


@pytest.mark.parametrize("source", ["ground_truth", "interactive"])
def test_a_stored_recipe_that_was_edited_gives_no_oracle_unasked(copied: Path, source: str) -> None:
    before = (copied / "scores.csv").read_bytes()
    text = (copied / "recipe.yaml").read_text()
    edited, count = re.subn(r"evaluation: template", f"evaluation: {source}", text)
    assert count == 1
    (copied / "recipe.yaml").write_text(edited)
    with pytest.raises(RecipeError, match=f"'{source}' prompts are read off the annotation"):
        evaluate_run(copied)
    assert (copied / "scores.csv").read_bytes() == before


def test_interactive_prompts(copied: Path) -> None:
    target = evaluate_run(copied, prompts="interactive")
    assert target.name == "simulated"  # nobody named anything
    assert {row.prompt_source for row in read_scores(target / "scores.csv")} == {"simulated"}
    assert "SIMULATED · test prompts: simulated" in (target / "report.html").read_text()
    lines = [json.loads(line) for line in (target / "prompts.jsonl").read_text().splitlines()]
    assert {line["source"] for line in lines} == {"simulated"}
    assert as_text(compare([target])).startswith("Simulated interaction")
    # A table of levels for the whole test set is a person's, and ranked.
    named = evaluate_run(copied, prompts="interactive", visible=str(target / "visible.csv"))
    assert named.name == "interactive"
    assert json.loads((named / "run.json").read_text())["named"] == str(target / "visible.csv")
    assert "Simulated" not in as_text(compare([named]))
    assert [row.value for row in read_scores(named / "scores.csv")] == pytest.approx(
        [row.value for row in read_scores(target / "scores.csv")], nan_ok=True
    )


def test_reports_of_the_cases_stand_apart(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = run_evaluation.rebuild(load_recipe(copied / "recipe.yaml"), RunFolder(copied))
    first, *others = [prepared.case.id for prepared in experiment.cases["test"]]
    path = tmp_path / "reports.jsonl"
    path.write_text(json.dumps({"case": others[0], "levels": "D12 to L5"}))
    setting = f"prompts.report={{file: {path}, visible: levels}}"
    target = evaluate_run(copied, prompts="report", overrides=[setting])
    assert target == copied / "evaluations" / "report"
    output = capsys.readouterr().out
    assert f"1 of {1 + len(others)} in test; the others get the template" in output
    assert "REPORT" in output
    assert "REPORT · test prompts: report" in (target / "report.html").read_text()
    sources = {row.case: row.prompt_source for row in read_scores(target / "scores.csv")}
    assert (sources[first], sources[others[0]]) == ("template", "report")
    record = json.loads((target / "run.json").read_text())
    assert record["reports"]["test"] == [1, 1 + len(others)]
    assert {json.loads(line)["source"] for line in (target / "prompts.jsonl").read_text().splitlines()} == {
        "report",
        "template",
    }
    with (target / "visible.csv").open() as file:
        assert [(row["case"], row["visible"]) for row in csv.DictReader(file)] == [(others[0], "T12:L5")]
    assert as_text(compare([target])).startswith("With reports (words that came with the cases")
    with pytest.raises(RecipeError, match="does not say where the reports of the cases are"):
        evaluate_run(copied, prompts="report")
    sentences = setting.replace("visible", "sentences")
    with pytest.raises(RecipeError, match="prompts.report.sentences: .* was trained on no sentence"):
        evaluate_run(copied, prompts="report", overrides=[sentences])


def test_words_of_a_person_are_shown_as_they_were_read(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = evaluate_run(copied, prompts="interactive", visible="D12 to L5")
    assert "read: T12:L5, 11 structures and the spinal canal\n" in capsys.readouterr().out
    with (target / "visible.csv").open() as file:
        assert {row["visible"] for row in csv.DictReader(file)} == {"T12:L5"}
    for words, message in (("L5 to T12", "case '.*': 'L5 to T12': .* runs upwards"), ("", "No visible structure")):
        with pytest.raises(PromptError, match=message):
            evaluate_run(copied, prompts="interactive", visible=words)


def test_a_case_without_words_gets_the_template_and_says_so(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = sorted({row.case for row in read_scores(copied / "scores.csv")})
    table = tmp_path / "visible.csv"
    table.write_text(f"case,visible\n{first},T12:L5\n{others[0]},\n")
    target = evaluate_run(copied, prompts="interactive", visible=str(table))
    printed = capsys.readouterr().out
    assert f"no words: {len(others)} cases ({', '.join(others)}); prompts: template\n" in printed
    assert f"prompts: interactive (1 case) + template ({len(others)} cases)\n" in printed
    scores, template = read_scores(target / "scores.csv"), read_scores(copied / "scores.csv")
    assert {row.case for row in scores if row.prompt_source == "interactive"} == {first}
    rest = [row.value for row in scores if row.prompt_source == "template"]
    assert rest == pytest.approx([row.value for row in template if row.case in others], nan_ok=True)
    lines = [json.loads(line) for line in (target / "prompts.jsonl").read_text().splitlines()]
    assert {line["source"] for line in lines} == {"interactive", "template"}
    assert "interactive+template" in as_text(compare([target]))


def test_data_that_have_moved_are_named_by_set(copied: Path, tmp_path: Path) -> None:
    scores, recipe = (copied / "scores.csv").read_bytes(), load_recipe(copied / "recipe.yaml")
    moved = Path(shutil.copytree(Path(recipe.dataset.settings["folder"]), tmp_path / "moved #1"))
    here = f"dataset.folder={moved}"
    assert evaluate_run(copied, prompts="ground_truth", overrides=[here]) == copied / "evaluations" / "ground_truth"
    assert load_recipe(copied / "recipe.yaml") == recipe  # its own scores are as they were
    evaluate_run(copied, overrides=[here])
    assert (copied / "scores.csv").read_bytes() == scores
    assert load_recipe(copied / "recipe.yaml").dataset.settings["folder"] == str(moved)
    assert len(predictions_figure([copied], overrides=[here])) > 1000
    for value in ("training.epochs=5", "datasets=1"):
        with pytest.raises(RecipeError, match=f"--set {value}: the model is trained, so only keys that begin with dat"):
            evaluate_run(copied, overrides=[value])


def test_the_advice_on_data_that_have_moved_is_one_that_works(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise DataError("No images in 'data'.")

    monkeypatch.setattr("textseg.evaluation.evaluate.build", missing)
    for command in (evaluate_run, probe_run, lambda run: features_figure([run])):
        with pytest.raises(DataError, match="No images in 'data'.\nIf the data have moved .* --set dataset.folder=DIR"):
            command(copied)


def test_the_runs_own_prompts_replace_its_scores(copied: Path) -> None:
    before = (copied / "scores.csv").read_bytes()
    (copied / "scores.csv").unlink()
    assert evaluate_run(copied) == copied
    assert (copied / "scores.csv").read_bytes() == before
    assert not (copied / "evaluations").exists()


def test_predicted_prompts_say_what_the_first_pass_found(copied: Path) -> None:
    target = evaluate_run(copied, prompts="predicted")
    scores, record = read_scores(target / "scores.csv"), json.loads((target / "run.json").read_text())
    assert {row.prompt_source for row in scores} == {"predicted"}
    assert record["visible"]["cases"] == 3
    with (target / "visible.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    lines = [json.loads(line) for line in (target / "prompts.jsonl").read_text().splitlines()]
    assert {line["source"] for line in lines} == {"predicted"}
    # What was found, named by a person, gives the same text and so the same masks.
    again = evaluate_run(copied, prompts="interactive", visible=str(target / "visible.csv"))
    named = read_scores(again / "scores.csv")
    assert [row.value for row in named] == pytest.approx([row.value for row in scores], nan_ok=True)
    assert {row.prompt_source for row in named} == {"interactive"}


def test_sources_that_there_are_not(finished_run: Path) -> None:
    with pytest.raises(RunError, match="there is no source 'ground_thruth'. Did you mean 'ground_truth'"):
        evaluate_run(finished_run, prompts="ground_thruth")
    with pytest.raises(RunError, match="--visible goes with --prompts interactive; 'template' prompts need no person"):
        evaluate_run(finished_run, visible="T12:L5")
    assert not (finished_run / "evaluations").exists()


def test_other_data_are_refused(copied: Path) -> None:
    recipe = copied / "recipe.yaml"
    text = recipe.read_text()
    assert "  seed: 0" not in text
    recipe.write_text(text.replace("  cases: 8", "  cases: 9"))
    before = (copied / "scores.csv").read_bytes()
    with pytest.raises(RunError, match="trained on other data than those at hand: data, split changed"):
        evaluate_run(copied)
    assert (copied / "scores.csv").read_bytes() == before


def test_a_run_keeps_the_scores_of_groups_and_shows_them(finished_run: Path) -> None:
    folder = RunFolder(finished_run)
    rows = read_scores(folder.group_scores)
    assert {row.structure for row in rows} == {"vertebrae", "discs", "canal"}
    assert {row.case for row in rows} == {row.case for row in read_scores(folder.scores)}
    assert "merged into one before scoring" in folder.report.read_text()


def test_windows_are_added_to_a_finished_run(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, run = (copied / "scores.csv").read_bytes(), json.loads((copied / "run.json").read_text())
    assert not (copied / "fields_of_view.csv").exists()
    evaluate_run(copied, fields_of_view=[0.5])
    assert (copied / "scores.csv").read_bytes() == scores
    record = json.loads((copied / "run.json").read_text())
    assert (record["test"], record["bound"]) == (run["test"], run["bound"])
    assert record["evaluation"] == {**run["evaluation"], "fields_of_view": [0.5]}
    rows = read_window_scores(copied / "fields_of_view.csv")
    assert {row.share for row in rows} == {1.0, 0.5}
    means = record["fields_of_view"]
    assert means == json.loads(json.dumps(means_as_json(summarise_windows(rows, record["structures_in_training"]))))
    assert {(row["share"], row["landmark"]) for row in means} >= {(1.0, "all"), (0.5, "yes"), (0.5, "no")}

    report = (copied / "report.html").read_text()
    assert "Fields of view" in report
    assert re.search(r'<tr><th scope="row">50 % of the rows</th><td>without</td><td>right \(simulated\)</td>', report)
    titles = re.findall(r'alt="(\w+: case [^"]*) of the rows, slice [^"]*: image, reference and the prediction', report)
    assert [title.split(":")[0] for title in titles] == ["best", "median", "worst"]
    assert "fields of view" not in report.partition("Provenance")[2]

    # Other prompts leave the windows alone, and the recipe of the run asks for them from now on.
    before = (copied / "fields_of_view.csv").read_bytes()
    oracle = evaluate_run(copied, prompts="ground_truth")
    assert not (oracle / "fields_of_view.csv").exists()
    assert json.loads((oracle / "run.json").read_text())["fields_of_view"] is None
    evaluate_run(copied)
    assert (copied / "fields_of_view.csv").read_bytes() == before
    with pytest.raises(RunError, match=r"--fields-of-view has its own texts, so it goes with no --prompts predicted"):
        evaluate_run(copied, prompts="predicted", fields_of_view=[0.5])
    with pytest.raises(RecipeError, match=r"evaluation\.fields_of_view"):
        evaluate_run(copied, fields_of_view=[1.5])

    # Without the setting, no windows of earlier settings stay.
    recipe = copied / "recipe.yaml"
    recipe.write_text(dump(load_recipe(recipe, ["evaluation.fields_of_view=null"])))
    evaluate_run(copied)
    assert not (copied / "fields_of_view.csv").exists()
    assert json.loads((copied / "run.json").read_text())["fields_of_view"] is None


def test_a_failed_evaluation_leaves_the_recipe_of_the_scores(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **named: Any) -> Any:
        raise DataError("A metric is broken.")

    before = RunFolder(copied).recipe.read_bytes()
    monkeypatch.setattr(run_evaluation, "evaluate", fail)
    with pytest.raises(DataError, match="is broken"):
        evaluate_run(copied, overrides=["evaluation.metrics=[jaccard]"])
    assert RunFolder(copied).recipe.read_bytes() == before
