from __future__ import annotations

import copy
import csv
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from textseg.comparison.compare import comparable, compare
from textseg.comparison.text import as_text
from textseg.errors import RunError
from textseg.metrics.definitions import POLICY
from textseg.metrics.scores import Score, read_scores, write_scores
from textseg.metrics.window_scores import WindowScore, write_window_scores

FACTS = {
    "name": "run",
    "seed": 1,
    "fold": None,
    "dataset": "phantom",
    "hashes": {"data": "d1", "split": "s1", "preparation": "p1", "prompts": "t1"},
    "evaluation": {"metrics": ["dsc", "hd95"], "per": "volume", "space": "native", "unit": "mm", "prompts": "template"},
    "structures_in_training": ["L4", "L5"],
    "parameters": 1_500_000,
    "milliseconds_per_slice": 12.34,
}
MISSED, SPURIOUS = "missed", "spurious"


def make(folder, values, *, source="template", **facts):
    """A run whose `values` are, for each case and structure, (dsc, hd95) or a status."""
    rows = []
    for (case, structure), value in values.items():
        status = value if isinstance(value, str) else "ok"
        dsc, hd95 = value if status == "ok" else (0.0, math.nan)
        for metric, unit, number in (("dsc", "", dsc), ("hd95", "mm", hd95)):
            rows.append(
                Score(
                    case,
                    f"p_{case}",
                    None,
                    structure,
                    metric,
                    unit,
                    "native",
                    number,
                    100.0 if unit else 0.0,
                    status,
                    source,
                )
            )
    folder.mkdir(parents=True)
    merged = copy.deepcopy(FACTS)
    for key, value in facts.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    (folder / "run.json").write_text(json.dumps(merged))
    write_scores(folder / "scores.csv", rows)
    return folder


# By hand: the careful run finds everything, the hasty one misses the structure that is hard for both.
CAREFUL = {
    ("c1", "L4"): (0.9, 2.0),
    ("c1", "L5"): (0.5, 9.0),
    ("c2", "L4"): (0.8, 4.0),
    ("c2", "L5"): (0.7, 3.0),
}
HASTY = {
    ("c1", "L4"): (0.8, 3.0),
    ("c1", "L5"): MISSED,
    ("c2", "L4"): (0.8, 5.0),
    ("c2", "L5"): (0.6, 4.0),
}


def text_of(runs, **options):
    return as_text(compare(runs, **options))


def table_of(folder):
    with (folder / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_values_by_hand(tmp_path):
    hasty = make(tmp_path / "hasty/seed1", HASTY, name="hasty")
    careful = make(tmp_path / "careful/seed1", CAREFUL, name="careful")
    text = text_of([hasty, careful], output=tmp_path / "out")
    first, second = table_of(tmp_path / "out")
    assert [first["run"], first["rank"], second["run"], second["rank"]] == ["careful", "1", "hasty", "2"]
    assert float(first["dsc_as_published"]) == pytest.approx(((0.9 + 0.8) / 2 + (0.5 + 0.7) / 2) / 2)
    assert float(second["dsc_as_published"]) == pytest.approx(((0.8 + 0.8) / 2 + (0.0 + 0.6) / 2) / 2)
    assert float(first["hd95_mm_as_published"]) == pytest.approx(((2 + 4) / 2 + (9 + 3) / 2) / 2)
    assert float(second["hd95_mm_as_published"]) == pytest.approx(((3 + 5) / 2 + 4) / 2)
    assert float(first["hd95_mm_common"]) == pytest.approx(((2 + 4) / 2 + 3) / 2)
    assert float(second["hd95_mm_common"]) == pytest.approx(((3 + 5) / 2 + 4) / 2)
    assert [(row["missed"], row["spurious"], row["test_patients"]) for row in (first, second)] == [
        ("0", "0", "2"),
        ("1", "0", "2"),
    ]
    lines = text.splitlines()
    assert lines.index(next(line for line in lines if line.startswith("careful (seed 1)"))) < lines.index(
        next(line for line in lines if line.startswith("hasty (seed 1)"))
    )
    assert "0.7250" in text
    assert "1.50" in text  # million parameters
    assert "12.3" in text
    assert "HD95 (mm) 3 of 4" in text
    assert "2 test patients, 2 cases; scores per volume in native space; distances in mm." in text
    assert POLICY in text


def test_a_change_of_rank_is_told_in_one_line_that_names_the_runs(tmp_path):
    runs = [
        make(tmp_path / name / "seed1", values, name=name) for name, values in (("careful", CAREFUL), ("hasty", HASTY))
    ]
    warnings = [line for line in text_of(runs).splitlines() if line.startswith("Warning")]
    (warning,) = warnings
    assert warning.startswith("Warning: ranks by HD95 (mm) depend on the aggregate (as_published, common, penalised): ")
    assert warning.endswith("careful (seed 1) 2, 1, 1; hasty (seed 1) 1, 2, 2.")


def test_no_warning_where_the_order_stays(tmp_path):
    worse = {key: (value[0] - 0.1, value[1] + 1) for key, value in CAREFUL.items()}
    runs = [make(tmp_path / name, values, name=name) for name, values in (("a", CAREFUL), ("b", worse))]
    assert "Warning" not in text_of(runs)


def test_the_best_is_bold_in_markdown_and_names_cannot_break_the_table(tmp_path):
    a = make(tmp_path / "a", CAREFUL, name="a|b <i>")
    b = make(tmp_path / "b", HASTY, name="hasty")
    text_of([a, b], output=tmp_path / "out")
    markdown = (tmp_path / "out/leaderboard.md").read_text()
    careful, hasty, *_ = (line for line in markdown.splitlines() if "seed 1" in line and line.startswith("|"))
    assert careful.startswith("| a\\|b &lt;i> (seed 1) | 1 | **0.7250** [0.700, 0.750] | 4.50 [")
    assert hasty.startswith("| hasty (seed 1) | 2 | 0.5500 [0.400, 0.700] | **4.00** [")
    assert POLICY in markdown


def test_an_oracle_stands_apart_and_is_never_ranked_or_bold(tmp_path):
    runs = [
        make(tmp_path / "oracle", dict.fromkeys(CAREFUL, (1.0, 0.0)), name="oracle", source="ground_truth"),
        make(tmp_path / "hasty", HASTY, name="hasty"),
        make(tmp_path / "pointed", CAREFUL, name="pointed", source="interactive", named="T10:L5"),
        make(tmp_path / "simulated", CAREFUL, name="simulated", source="simulated"),
    ]
    text = text_of(runs, output=tmp_path / "out")
    assert (
        text.index("pointed (seed 1)")
        < text.index("hasty (seed 1)")
        < text.index("Simulated interaction (first and last structure read off the annotation), not ranked")
        < text.index("simulated (seed 1)")
        < text.index("Oracle runs")
        < text.index("oracle (")
    )
    rows = table_of(tmp_path / "out")
    assert [(row["table"], row["rank"], row["run"]) for row in rows] == [
        ("ranked", "1", "pointed"),
        ("ranked", "2", "hasty"),
        ("simulated", "", "simulated"),
        ("oracle", "", "oracle"),
    ]
    assert "**1.0000**" not in (tmp_path / "out/leaderboard.md").read_text()
    assert (
        "Simulated: first and last structure from the annotation, not ranked"
        in (tmp_path / "out/leaderboard.tex").read_text()
    )
    assert "SIMULATED</span>" in (tmp_path / "out/leaderboard.html").read_text()
    # The oracle found what the hasty run missed; that must not change what is common to the ranked ones.
    assert float(rows[0]["hd95_mm_common"]) == pytest.approx(3.0)
    assert text.count(POLICY) == 1


def test_a_run_that_declares_ground_truth_prompts_is_an_oracle_whatever_its_rows_say(tmp_path):
    run = make(tmp_path / "a", CAREFUL, evaluation={"prompts": "ground_truth"})
    assert text_of([run]).startswith("Oracle runs")
    assert compare([run]).tables[0].rows[0].rank is None


def test_means_are_over_structures_that_every_run_was_trained_on(tmp_path):
    a = make(tmp_path / "a", CAREFUL, name="a", structures_in_training=["L4", "L5"])
    b = make(tmp_path / "b", CAREFUL, name="b", structures_in_training=["T10", "L4"])
    text_of([a, b], output=tmp_path / "out")
    assert [float(row["dsc_as_published"]) for row in table_of(tmp_path / "out")] == [pytest.approx(0.85)] * 2
    c = make(tmp_path / "c", CAREFUL, structures_in_training=["T10"])
    with pytest.raises(RunError, match="No structure occurs in the training data of all"):
        text_of([a, c])


def test_a_name_means_all_its_seeds_once_and_nothing_moved_aside(tmp_path):
    for seed in (1, 2):
        make(tmp_path / f"net/seed{seed}", CAREFUL, name="net", seed=seed)
    make(tmp_path / "net/seed1.old", HASTY, name="net")
    (table,) = compare([tmp_path / "net", tmp_path / "net/seed2"]).tables
    assert [row.label for row in table.rows] == ["net (2 seeds)"]
    (table,) = compare([tmp_path / "net", tmp_path / "net/seed2"], single_runs=True).tables
    assert [row.label for row in table.rows] == ["net (seed 1)", "net (seed 2)"]


def test_equal_labels_are_told_apart_by_their_folders(tmp_path):
    text = text_of([make(tmp_path / "x", CAREFUL), make(tmp_path / "y", CAREFUL)])
    assert f"run (seed 1) [template prompts] [{tmp_path / 'x'}]" in text


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"dataset": "spider"}, "dataset: .*a has 'phantom', .*b has 'spider'"),
        ({"hashes": {"data": "d2"}}, "hashes.data: .*a has 'd1', .*b has 'd2'"),
        ({"hashes": {"split": "s2"}}, "hashes.split: .*a has 's1', .*b has 's2'"),
        ({"hashes": {"preparation": None}}, "hashes.preparation: .*a has 'p1', .*b has nothing"),
        ({"evaluation": {"per": "slice"}}, "evaluation.per: .*a has 'volume', .*b has 'slice'"),
        ({"evaluation": {"space": "prepared"}}, "evaluation.space: .*'native', .*b has 'prepared'"),
        ({"evaluation": {"unit": "pixel"}}, "evaluation.unit: .*'mm', .*b has 'pixel'"),
        ({"evaluation": {"metrics": ["dsc"]}}, "evaluation.metrics: .*a has dsc, hd95, .*b has dsc"),
    ],
)
def test_runs_that_differ_in_what_counts_are_refused(tmp_path, change, line):
    runs = [make(tmp_path / "a", CAREFUL), make(tmp_path / "b", CAREFUL, **change)]
    with pytest.raises(RunError, match=line):
        text_of(runs)


def test_runs_fall_into_groups_that_may_be_compared(tmp_path):
    runs = [
        make(tmp_path / name, CAREFUL, **facts)
        for name, facts in (
            ("a", {}),
            ("b", {"hashes": {"data": "d2"}}),
            ("c", {"seed": 7}),
            ("d", {"hashes": {"data": "d2"}}),
            ("e", {"evaluation": {"per": "slice"}}),
        )
    ]
    a, b, c, d, e = runs
    assert comparable(runs) == [[a, c], [b, d], [e]]
    assert comparable([]) == []
    for group in comparable(runs):
        text_of(group)
    with pytest.raises(RunError):
        text_of([a, b])


def test_what_no_run_says_is_not_taken_for_equal(tmp_path):
    runs = [make(tmp_path / name, CAREFUL, hashes={"split": None}) for name in "ab"]
    with pytest.raises(RunError, match=r"hashes.split: .*a has nothing, .*b has nothing"):
        text_of(runs)


def test_every_difference_has_its_line(tmp_path):
    fewer = {key: value for key, value in CAREFUL.items() if key[0] == "c1"}
    runs = [
        make(tmp_path / "a", CAREFUL),
        make(tmp_path / "b", CAREFUL, dataset="x", hashes={"data": "y"}),
        make(tmp_path / "c", fewer),
    ]
    with pytest.raises(RunError) as error:
        text_of(runs, output=tmp_path / "out")
    assert len([line for line in str(error.value).splitlines() if line.startswith("  ")]) == 3
    assert "cases in scores.csv" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_order_of_metrics_does_not_matter(tmp_path):
    second = make(tmp_path / "b", CAREFUL, name="b", evaluation={"metrics": ["hd95", "dsc"]})
    assert "b (seed 1)" in text_of([make(tmp_path / "a", CAREFUL), second])


def test_what_is_missing_is_named_with_what_to_do(tmp_path):
    good = make(tmp_path / "good", CAREFUL)
    with pytest.raises(RunError, match=r"no run at .*nowhere.*textseg run"):
        text_of([good, tmp_path / "nowhere"])
    with pytest.raises(RunError, match="nothing to compare"):
        text_of([])
    unscored = make(tmp_path / "unscored", CAREFUL)
    (unscored / "scores.csv").unlink()
    with pytest.raises(RunError, match=r"textseg evaluate .*unscored"):
        text_of([good, unscored])
    unfinished = tmp_path / "net/seed3"
    unfinished.mkdir(parents=True)
    with pytest.raises(RunError, match=r"seed3' has no run.json.*textseg run"):
        text_of([tmp_path / "net"])
    (good / "run.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        text_of([good])
    (good / "run.json").write_text("[]")
    with pytest.raises(RunError, match="is damaged .*dictionary"):
        text_of([good])


def test_a_distance_that_no_run_has_is_a_dash(tmp_path):
    run = make(tmp_path / "a", dict.fromkeys(CAREFUL, MISSED), parameters=None, milliseconds_per_slice=None)
    text_of([run], output=tmp_path / "out")
    row = (tmp_path / "out/leaderboard.md").read_text().splitlines()[4]
    assert row == "| run (seed 1) | 1 | **0.0000** [0.000, 0.000] | – [–, –] | 4 | 0 | template |"


def test_spurious_structures_are_counted(tmp_path):
    text_of([make(tmp_path / "a", {**CAREFUL, ("c2", "L5"): SPURIOUS})], output=tmp_path / "out")
    assert [(r["missed"], r["spurious"]) for r in table_of(tmp_path / "out")] == [("0", "1")]


def test_scores_of_an_earlier_checkpoint_are_refused(tmp_path):
    run = make(tmp_path / "run" / "seed1", CAREFUL)
    evaluated = make(run / "evaluations" / "ground_truth", CAREFUL)
    for folder, step in ((run, 20), (evaluated, 10)):
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, "scored_step": step}))
    with pytest.raises(RunError, match="earlier checkpoint: .* textseg evaluate .*seed1 --prompts ground_truth"):
        text_of([run, evaluated])


def test_intervals_and_differences_stand_below_the_ranking(tmp_path):
    many = [f"c{number}" for number in range(12)]
    better = {(case, "L4"): (0.9 - 0.01 * number, 2.0) for number, case in enumerate(many)}
    worse = {(case, "L4"): (0.8 - 0.012 * number, 3.0 + number) for number, case in enumerate(many)}
    runs = [make(tmp_path / name, values, name=name) for name, values in (("better", better), ("worse", worse))]
    text = text_of(runs, output=tmp_path / "out")
    line = next(line for line in text.splitlines() if line.startswith("better (seed 1) - worse (seed 1)"))
    assert line.split()[-4:] == ["+0.1110", "+1.00", "0.000488", "0.000488"]
    assert "12 patients: intervals and tests of fewer than 50 are rough" in text
    with (tmp_path / "out/leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, values in zip(rows, (better, worse), strict=True):
        sample = np.array([dsc for dsc, _ in values.values()])
        theirs = stats.bootstrap((sample,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
        assert float(row["dsc_as_published_low"]) == pytest.approx(theirs.low, abs=0.003)
        assert float(row["dsc_as_published_high"]) == pytest.approx(theirs.high, abs=0.003)


def test_oracles_are_not_tested_against_each_other(tmp_path):
    runs = [make(tmp_path / name, CAREFUL, name=name, source="ground_truth") for name in ("a", "b")]
    assert "Differences in DSC" not in text_of(runs)


@pytest.mark.parametrize("seed", range(8))
def test_missing_the_ten_hardest_of_twenty_never_ranks_better_for_it(tmp_path, seed):
    generator = np.random.default_rng(seed)
    hardened = {
        (f"c{case}", name): (float(generator.uniform(0.5, 0.95)), float(generator.uniform(1, 40)))
        for case in range(20)
        for name in ("L4", "L5")
    }
    by_distance = sorted(range(20), key=lambda case: -hardened[f"c{case}", "L4"][1] - hardened[f"c{case}", "L5"][1])
    hardest = {f"c{case}" for case in by_distance[:10]}
    missing = {key: MISSED if key[0] in hardest else value for key, value in hardened.items()}
    runs = [make(tmp_path / "all", hardened, name="all"), make(tmp_path / "half", missing, name="half")]
    text = text_of(runs, output=tmp_path / "out")
    rows = {row["run"]: row for row in table_of(tmp_path / "out")}
    assert float(rows["half"]["hd95_mm_as_published"]) < float(rows["all"]["hd95_mm_as_published"])  # the trap
    assert float(rows["half"]["hd95_mm_common"]) == float(rows["all"]["hd95_mm_common"])
    assert float(rows["half"]["hd95_mm_penalised"]) > float(rows["all"]["hd95_mm_penalised"])
    assert float(rows["half"]["dsc_penalised"]) < float(rows["all"]["dsc_penalised"])
    assert "ranks by HD95 (mm) depend" in text
    for metric in ("dsc", "hd95_mm"):
        for aggregate in ("common", "penalised"):
            assert int(rows["all"][f"{metric}_{aggregate}_rank"]) <= int(rows["half"][f"{metric}_{aggregate}_rank"])
    assert rows["half"]["missed"] == "20"


def measured(folder, values, *, name="volume_error", unit="ml", **facts):
    """Add the scores of a metric to a run, a value for each of its rows of DSC, and its facts to run.json."""
    rows = read_scores(folder / "scores.csv")
    own = [row for row in rows if row.metric == "dsc"]
    added = [
        replace(row, metric=name, unit=unit, value=value, worst=50.0) for row, value in zip(own, values, strict=True)
    ]
    write_scores(folder / "scores.csv", [*rows, *added])
    record = json.loads((folder / "run.json").read_text())
    record["evaluation"]["metrics"].append(name)
    if facts:
        record["metrics"] = {name: {"unit": unit, **facts}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


VOLUME_ERROR = {
    "higher_is_better": False,
    "missed": None,
    "definition": "Difference of the volumes. 0 is best.",
    "distribution": "textseg-volumes",
    "version": "0.3",
}


def test_a_metric_of_a_plugin_that_is_not_installed_has_its_column_unit_and_direction(tmp_path):
    careful = measured(make(tmp_path / "careful", CAREFUL, name="careful"), [4.0, 3.0, 2.0, 3.0], **VOLUME_ERROR)
    hasty = measured(make(tmp_path / "hasty", HASTY, name="hasty"), [1.0, math.nan, 1.0, 2.0], **VOLUME_ERROR)
    text = text_of([hasty, careful], output=tmp_path / "out")
    assert "Volume error (ml) [95 %]" in text
    note = "Volume error (ml), of textseg-volumes 0.3: Difference of the volumes. 0 is best. The lower, the better; "
    assert f"{note}a missed or spurious structure is left out of the mean." in text
    rows = {row["run"]: row for row in table_of(tmp_path / "out")}
    assert float(rows["careful"]["volume_error_ml_as_published"]) == 3.0
    assert float(rows["hasty"]["volume_error_ml_as_published"]) == (1.0 + 2.0) / 2
    assert [rows[name]["volume_error_ml_as_published_rank"] for name in ("hasty", "careful")] == ["1", "2"]
    assert float(rows["hasty"]["volume_error_ml_penalised"]) == pytest.approx((1.0 + (50.0 + 2.0) / 2) / 2)
    assert [rows[name]["volume_error_ml_penalised_rank"] for name in ("hasty", "careful")] == ["2", "1"]
    latex = (tmp_path / "out/leaderboard.tex").read_text()
    assert r"Volume error (ml) $\downarrow$" in latex
    assert r"Volume error (ml), common $\downarrow$" in latex
    assert note in latex
    page = (tmp_path / "out/leaderboard.html").read_text()
    assert page.count(VOLUME_ERROR["definition"]) >= 1
    assert "mean Volume error" in page or "Volume error (ml)" in page
    content = json.loads((tmp_path / "out/leaderboard.json").read_text())
    assert content["definitions"]["metrics"]["volume_error"] == {"lower_is_better": True, "unit": "ml", **VOLUME_ERROR}
    (pair,) = content["tables"][0]["differences"]["volume_error"]
    assert (pair["first"], pair["mean"] < 0, pair["test"]["effect"] > 0) == ("careful (seed 1)", True, True)


def test_a_ratio_that_is_better_when_lower_and_has_a_value_for_a_miss(tmp_path):
    facts = {**VOLUME_ERROR, "missed": 1.0}
    low = measured(make(tmp_path / "low", CAREFUL, name="low"), [0.5, 0.5, 0.5, 0.5], unit="", **facts)
    high = measured(make(tmp_path / "high", CAREFUL, name="high"), [3.5, 0.5, 0.5, -0.5], unit="", **facts)
    text_of([low, high], output=tmp_path / "out")
    rows = {row["run"]: row for row in table_of(tmp_path / "out")}
    assert [rows[name]["volume_error_as_published_rank"] for name in ("low", "high")] == ["1", "2"]
    latex = (tmp_path / "out/leaderboard.tex").read_text()
    assert latex.count("Volume error") == 2  # its only column, since every miss has a value, and its definition
    page = (tmp_path / "out/leaderboard.html").read_text()
    drawn = [float(percent) for percent in re.findall(r'<circle cx="([-\d.]+)%', page)]
    assert min(drawn) >= 0
    assert max(drawn) <= 100


def test_scores_of_an_unknown_metric_without_its_direction_are_refused(tmp_path):
    first, second = (measured(make(tmp_path / name, CAREFUL, name=name), [1.0] * 4) for name in ("a", "b"))
    with pytest.raises(RunError, match="does not say if a high or a low 'volume_error' is better, .* textseg evaluate"):
        compare([first, second])
    record = json.loads((first / "run.json").read_text())
    record["metrics"] = {"volume_error": {"unit": 3}}
    (first / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"run.json' is damaged \(metrics: volume_error: "):
        compare([first, second])


def test_two_metrics_of_one_name_are_not_compared(tmp_path):
    rival = {**VOLUME_ERROR, "distribution": "textseg-other"}
    first, second = (
        measured(make(tmp_path / name, CAREFUL, name=name), [1.0] * 4, **facts)
        for name, facts in (("a", VOLUME_ERROR), ("b", rival))
    )
    with pytest.raises(RunError, match="metrics.volume_error.distribution: .*textseg-volumes.*textseg-other"):
        compare([first, second])


def test_a_surface_dice_of_another_tolerance_is_another_number(tmp_path):
    runs = []
    for name, tolerance in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
        metrics = [{"use": "nsd", "tolerance": tolerance}]
        folder = make(
            tmp_path / name,
            CAREFUL,
            name=name,
            evaluation={"metrics": metrics},
            metrics={"nsd": {"unit": "", "higher_is_better": True, "missed": 0.0}},
        )
        text = (folder / "scores.csv").read_text()
        (folder / "scores.csv").write_text(text.replace("dsc", "nsd"))
        runs.append(folder)
    with pytest.raises(RunError, match="evaluation.metrics: .*'tolerance': 1.0.* has .*'tolerance': 2.0"):
        text_of(runs[:2])
    assert "NSD" in text_of([runs[0], runs[2]])


def test_a_forced_comparison_is_marked_in_every_file(tmp_path):
    runs = [
        make(tmp_path / "a", CAREFUL, name="a"),
        make(tmp_path / "b", HASTY, name="b", evaluation={"per": "slice"}, hashes={"data": "d2"}),
    ]
    with pytest.raises(RunError, match="--force makes a table anyway, marked as not comparable"):
        compare(runs, output=tmp_path / "out")
    board = compare(runs, force=True, output=tmp_path / "out")
    assert [mismatch.key for mismatch in board.mismatches] == ["hashes.data", "evaluation.per"]
    assert {row["not_comparable"] for row in table_of(tmp_path / "out")} == {"hashes.data+evaluation.per"}
    for path in sorted((tmp_path / "out").iterdir()):
        if path.suffix in {".md", ".tex", ".html"}:
            assert "NOT COMPARABLE: these runs differ in hashes.data, evaluation.per" in path.read_text(), path
    assert json.loads((tmp_path / "out/leaderboard.json").read_text())["comparable"] is False


def test_units_that_differ_are_told_apart_in_a_forced_table(tmp_path):
    a = make(tmp_path / "a", CAREFUL, name="a")
    b = make(tmp_path / "b", CAREFUL, name="b", evaluation={"unit": "pixel"})
    (b / "scores.csv").write_text((b / "scores.csv").read_text().replace(",mm,", ",pixel,"))
    assert "4.50 pixel" in text_of([a, b], force=True)


def test_folds_and_seeds_end_to_end(tmp_path):
    for seed, shift in ((1, 0.0), (2, 0.05)):
        for fold, case in enumerate(("c1", "c2")):
            values = {k: (v[0] + shift, v[1]) for k, v in CAREFUL.items() if k[0] == case}
            hashes = {"split": f"s{fold}"}
            make(tmp_path / f"net/seed{seed}_fold{fold}", values, name="net", seed=seed, fold=fold, hashes=hashes)
            make(tmp_path / f"other/seed{seed}_fold{fold}", values, name="other", seed=seed, fold=fold, hashes=hashes)
    text_of([tmp_path / "net", tmp_path / "other"], output=tmp_path / "out")
    (row, _) = table_of(tmp_path / "out")
    assert (row["label"], row["seeds"], row["folds"], row["runs"]) == ("net (2 seeds x 2 folds)", "1+2", "0+1", "4")
    assert float(row["dsc_as_published"]) == pytest.approx(0.725 + 0.025)
    assert float(row["dsc_seed_sd"]) == pytest.approx(np.std([0.725, 0.775], ddof=1))
    assert float(row["dsc_fold_sd"]) == pytest.approx(np.std([0.7, 0.75], ddof=1))
    assert row["test_patients"] == "2"
    text = text_of([tmp_path / "net", tmp_path / "other"], single_runs=True, force=True)
    assert "net (seed 1, fold 0)" in text


@pytest.mark.parametrize("disguise", ["rows", "record", "folder", "prompts", "recipe"])
def test_a_disguised_oracle_is_never_ranked_or_bold(tmp_path, disguise):
    """Its scores are perfect; only one trace of the annotation is left each time."""
    source = "ground_truth" if disguise == "rows" else "template"
    evaluation = {"prompts": "ground_truth" if disguise == "record" else "template"}
    folder = tmp_path / ("net/seed1/evaluations/ground_truth" if disguise == "folder" else "net/seed1")
    oracle = make(folder, dict.fromkeys(CAREFUL, (1.0, 0.0)), name="new", source=source, evaluation=evaluation)
    if disguise == "prompts":
        (oracle / "prompts.jsonl").write_text('{"source": "ground_truth"}\n')
    if disguise == "recipe":
        (oracle / "recipe.yaml").write_text("prompts: {evaluation: ground_truth}\n")
    honest = make(tmp_path / "honest", HASTY, name="honest")
    text_of([oracle, honest], output=tmp_path / "out", force=True)
    assert [(row["table"], row["rank"], row["run"]) for row in table_of(tmp_path / "out")] == [
        ("ranked", "1", "honest"),
        ("oracle", "", "new"),
    ]
    assert "**1.0000**" not in (tmp_path / "out/leaderboard.md").read_text()
    assert r"\textbf{1.0000}" not in (tmp_path / "out/leaderboard.tex").read_text()
    tables = json.loads((tmp_path / "out/leaderboard.json").read_text())["tables"]
    assert [(table["kind"], len(table["rows"])) for table in tables] == [("ranked", 1), ("oracle", 1)]


def test_scores_merged_from_two_sources_are_an_oracles(tmp_path):
    honest = make(tmp_path / "a", HASTY, name="a")
    cheat = make(tmp_path / "b", dict.fromkeys(CAREFUL, (1.0, 0.0)), name="b", source="ground_truth")
    header, *rows = (honest / "scores.csv").read_text().splitlines()
    best = (cheat / "scores.csv").read_text().splitlines()[1:]
    (honest / "scores.csv").write_text("\n".join([header, *best[:2], *rows[2:]]) + "\n")
    (table,) = compare([honest]).tables
    assert not table.ranked
    assert table.rows[0].rank is None


def test_published_results_stand_beside_and_are_never_ranked(tmp_path):
    run = make(tmp_path / "a", HASTY, name="a")
    board = compare([run], published="spider", output=tmp_path / "out")
    assert [row.rank for table in board.tables for row in table.rows] == [1]
    assert {row["rank"] for row in table_of(tmp_path / "out") if row["table"] == "published"} == {""}
    with pytest.raises(RunError, match="no published results of 'x'"):
        compare([run], published="x")


def test_windows_get_columns_in_every_file_and_are_never_ranked(tmp_path):
    reader = make(tmp_path / "reader/seed1", CAREFUL, name="reader")
    plain = make(tmp_path / "plain/seed1", HASTY, name="plain")
    base = WindowScore("c1", "p_c1", 0.5, "upper", "no", "", "template", "L4", "dsc", 0.25)
    right = replace(base, stated_by="simulated", statement="L4:L5", value=0.75)
    whole = replace(base, structure="", metric="dsc_without_names", value=0.5)
    write_window_scores(reader / "fields_of_view.csv", [base, right, whole])
    compare([reader, plain], output=tmp_path / "out")
    first, second = table_of(tmp_path / "out")
    assert (first["run"], first["dsc_at_50_no_person"], first["dsc_at_50_simulated"]) == ("reader", "0.25", "0.75")
    assert (second["dsc_at_50_no_person"], second["rank"]) == ("", "2")
    rows = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["tables"][0]["rows"]
    assert [mean["dsc"]["value"] for mean in rows[0]["fields_of_view"]] == [0.75, 0.25]
    assert rows[1]["fields_of_view"] == []
    page = (tmp_path / "out" / "leaderboard.html").read_text()
    assert page.count("DSC at 50 %, right text (simulated)") == 3  # once for each way to count a miss
    markdown = (tmp_path / "out" / "leaderboard.md").read_text()
    assert "| DSC at 50 %, no person | DSC at 50 %, right text (simulated) |" in markdown
    line = next(line for line in markdown.split("\n") if line.startswith("| reader") and "template | 1 |" in line)
    assert line.split(" | ")[1:7] == ["50 % of the rows", "", "template", "1", "0.250", "0.500"]
    latex = (tmp_path / "out" / "leaderboard.tex").read_text()
    header = next(line for line in latex.split("\n") if line.startswith("Method"))
    lines = [line for line in latex.split("\n") if line.startswith(("reader", "plain"))]
    assert [line.count("&") for line in lines] == [header.count("&")] * 2
    assert "& 0.250 & 0.750 &" in lines[0]
    assert "& -- & -- &" in lines[1]

    (reader / "fields_of_view.csv").write_text("case,patient\n")
    with pytest.raises(RunError, match="is not a table of scores in windows"):
        compare([reader, plain])
