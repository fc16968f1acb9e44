from __future__ import annotations

import json
from pathlib import Path

import pytest

from textseg.comparison.finished_runs import grouped, read_runs
from textseg.errors import RecipeError, RunError
from textseg.metrics.scores import Score, write_scores
from textseg.recipe.loading import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
BOUND = {"seed": 1, "split": "s", "data": "d", "training": {"learning_rate": 0.1, "batch_size": 8}}


def write(folder, *, case="c1", source="template", rows=(), **facts):
    folder.mkdir(parents=True, exist_ok=True)
    record = {"name": "net", "seed": 1, "fold": None, "bound": BOUND, "structures_in_training": ["L5"], **facts}
    (folder / "run.json").write_text(json.dumps(record))
    score = Score(case, f"p_{case}", None, "L5", "dsc", "", "native", 0.5, 0.0, "ok", source)
    write_scores(folder / "scores.csv", [score, *rows])
    return folder


def rows_of(*paths, apart=False):
    return grouped(read_runs(paths), apart=apart)


def test_seeds_and_folds_of_one_name_are_one_row(tmp_path):
    for seed in (1, 2):
        for fold in (0, 1):
            name = f"seed{seed}_fold{fold}"
            bound = {**BOUND, "seed": seed, "split": f"s{fold}"}
            write(tmp_path / "net" / name, case=f"c{fold}", seed=seed, fold=fold, bound=bound)
    (row,) = rows_of(tmp_path / "net")
    assert (row.label, row.seeds, row.folds, len(row.runs)) == ("net (2 seeds x 2 folds)", [1, 2], [0, 1], 4)
    assert len(rows_of(tmp_path / "net", apart=True)) == 4
    assert [r.label for r in rows_of(tmp_path / "net", apart=True)][:2] == [
        "net (seed 1, fold 0)",
        "net (seed 1, fold 1)",
    ]
    # Named one by one, as a shell does for seed*, they are the same row
    (again,) = rows_of(*sorted((tmp_path / "net").iterdir()))
    assert again.label == row.label


def test_the_probe_of_a_run_belongs_to_all_its_evaluations(tmp_path):
    folder = write(tmp_path / "net" / "seed1", obedience={"by_patient": {"p": 0.5}})
    evaluation = write(folder / "evaluations/simulated", source="simulated")  # scored before the probe
    runs = read_runs([folder, evaluation])
    assert [run.facts["obedience"] for run in runs] == [{"by_patient": {"p": 0.5}}] * 2
    assert read_runs([write(tmp_path / "other" / "seed1")])[0].facts["obedience"] is None


def test_what_counts_as_a_repeat(tmp_path):
    seeds = [write(tmp_path / "net" / f"seed{seed}", seed=seed) for seed in (1, 2, 3)]
    assert [row.label for row in rows_of(tmp_path / "net")] == ["net (3 seeds)"]
    elsewhere = write(tmp_path / "elsewhere" / "net" / "seed1")
    assert len(rows_of(tmp_path / "net", elsewhere)) == 2
    pointed = [write(seed / "evaluations/interactive", seed=n, source="interactive") for n, seed in enumerate(seeds)]
    rows = rows_of(tmp_path / "net", *pointed)
    assert [(row.label, row.sources) for row in rows] == [
        ("net (3 seeds)", ("template",)),
        ("net (3 seeds)", ("interactive",)),
    ]
    masks = [write(tmp_path / "masks" / f"seed{n}", predictions="x") for n in (1, 2)]
    assert [row.label for row in rows_of(*masks)] == ["net", "net"]


def test_every_run_that_has_not_finished_is_named(tmp_path):
    write(tmp_path / "net/seed1")
    for seed in (2, 3):
        (tmp_path / f"net/seed{seed}").mkdir()
    with pytest.raises(RunError, match="seed2' has no run.json.*\n.*seed3' has no run.json"):
        rows_of(tmp_path / "net")


def test_other_recipes_are_no_repeats(tmp_path):
    write(tmp_path / "net/seed1")
    changed = {**BOUND, "seed": 2, "split": "other", "training": {"learning_rate": 0.2, "batch_size": 8}}
    write(tmp_path / "net/seed2", seed=2, bound=changed)
    with pytest.raises(RunError) as error:
        rows_of(tmp_path / "net")
    lines = [line for line in str(error.value).splitlines() if line.startswith("  ")]
    assert len(lines) == 1  # neither seed nor split
    assert "training.learning_rate: " in lines[0]
    assert "seed1 has '0.1'" in lines[0]
    assert "seed2 has '0.2'" in lines[0]
    assert "--single-runs" in str(error.value)
    assert len(rows_of(tmp_path / "net", apart=True)) == 2


def test_a_seed_of_a_fold_that_is_missing_or_there_twice(tmp_path):
    for seed, fold in ((1, 0), (1, 1), (2, 0)):
        write(tmp_path / f"net/seed{seed}_fold{fold}", case=f"c{fold}", seed=seed, fold=fold)
    with pytest.raises(RunError, match="seed 2 of fold 1 is missing"):
        rows_of(tmp_path / "net")
    write(tmp_path / "twice/seed1")
    write(tmp_path / "twice/seed2")
    with pytest.raises(RunError, match="seed 1 is there twice"):
        rows_of(tmp_path / "twice")


def test_a_case_that_two_folds_test(tmp_path):
    for fold in (0, 1):
        write(tmp_path / f"net/seed1_fold{fold}", fold=fold)
    with pytest.raises(RunError, match="Two folds of 'net' test the case 'c1': 0 and 1"):
        rows_of(tmp_path / "net")


ORACLE_ROW = Score("c2", "p_c2", None, "L5", "dsc", "", "native", 0.9, 0.0, "ok", "ground_truth")


@pytest.mark.parametrize(
    "disguise",
    [
        {"rows": [ORACLE_ROW]},  # merged into the scores of an honest run
        {"evaluation": {"prompts": "ground_truth"}},
        {"name": "renamed", "source": "ground_truth"},
        {"predictions": "masks", "source": "ground_truth"},  # passed off as another tool's
    ],
)
def test_an_oracle_under_another_name_is_one_still(tmp_path, disguise):
    (row,) = rows_of(write(tmp_path / "net/seed1", **disguise))
    assert row.mark == "oracle"


def test_an_oracle_that_was_moved_and_rewritten_is_given_away_by_its_other_files(tmp_path):
    folder = write(tmp_path / "net/seed1", evaluation={"prompts": "template"})
    assert not rows_of(folder)[0].mark
    (folder / "prompts.jsonl").write_text('{"source": "template"}\n{"source": "ground_truth"}\n')  # of the training
    assert not rows_of(folder)[0].mark
    (folder / "prompts.jsonl").write_text('{"source": "ground_truth"}\n' * 2)
    assert rows_of(folder)[0].mark
    (folder / "prompts.jsonl").write_text("{damaged")
    assert not rows_of(folder)[0].mark
    (folder / "recipe.yaml").write_text("prompts: {evaluation: ground_truth}\n")
    assert rows_of(folder)[0].mark
    (folder / "recipe.yaml").write_text("prompts: null\n")
    assert not rows_of(folder)[0].mark
    moved = write(folder / "evaluations/ground_truth", evaluation={"prompts": "template"})
    assert rows_of(moved)[0].mark == "oracle"


@pytest.mark.parametrize(
    ("facts", "mark"),
    [
        ({"source": "simulated"}, "simulated"),
        ({"source": "interactive"}, "simulated"),  # nothing says that anybody named anything
        ({"source": "interactive", "named": "T10:L5"}, ""),
        ({"evaluation": {"prompts": "simulated"}, "named": "T10:L5"}, "simulated"),
        ({"source": "simulated", "evaluation": {"prompts": "ground_truth"}}, "oracle"),
        ({"source": "report"}, "report"),
        ({"evaluation": {"prompts": "report"}}, "report"),
        ({"source": "report", "evaluation": {"prompts": "simulated"}}, "simulated"),
    ],
)
def test_a_simulated_person_is_told_from_one_who_was_there(tmp_path, facts, mark):
    (row,) = rows_of(write(tmp_path / "net/seed1", **facts))
    assert row.mark == mark


def test_an_oracle_among_seeds_makes_no_row_with_them(tmp_path):
    write(tmp_path / "net/seed1", seed=1)
    write(tmp_path / "net/seed2", seed=2, evaluation={"prompts": "ground_truth"})
    assert [(row.label, row.mark) for row in rows_of(tmp_path / "net")] == [
        ("net (seed 1)", ""),
        ("net (seed 2)", "oracle"),
    ]


@pytest.mark.parametrize("override", [[], ["prompts.evaluation=ground_truth"]])
def test_no_recipe_and_no_override_asks_for_an_oracle(tmp_path, override):
    recipe = tmp_path / "quickstart.yaml"
    text = (RECIPES / "quickstart.yaml").read_text()
    if not override:
        assert "evaluation: template" in text
        text = text.replace("evaluation: template", "evaluation: ground_truth")
    recipe.write_text(text)
    with pytest.raises(RecipeError, match="prompts.evaluation"):
        load_recipe(recipe, override)
