from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from textseg.comparison.data_files import as_csv, as_json
from textseg.comparison.finished_runs import FinishedRuns, Run
from textseg.comparison.latex import as_latex
from textseg.comparison.leaderboard import make_leaderboard
from textseg.comparison.page import as_html
from textseg.comparison.sections import sections, short_section
from textseg.errors import RunError
from textseg.metrics.aggregation import AGGREGATES
from textseg.metrics.scores import Score, summarise
from textseg.metrics.window_scores import WindowScore

GROUPS = {"vertebrae": ["L4", "L5"], "canal": ["SC"], "discs": ["L4/L5"]}


def run(name, values, *, seed=1, fold=None, source="template", metric_pair=("dsc", "hd95"), **facts):
    """A run in memory; `values` are, by case and structure, (dsc, hd95) or a status."""
    rows = []
    for (case, structure), value in values.items():
        status = value if isinstance(value, str) else "ok"
        numbers = (0.0, math.nan) if isinstance(value, str) else value
        if status == "absent":
            numbers = (math.nan, math.nan)
        for metric, unit, worst, number in zip(metric_pair, ("", "mm"), (0.0, 100.0), numbers, strict=True):
            patient = f"p{case.partition('_')[0]}"
            rows.append(Score(case, patient, None, structure, metric, unit, "native", number, worst, status, source))
    known = {"name": name, "seed": seed, "fold": fold, "groups": GROUPS, "dataset": "phantom",
             "structures_in_training": ["L4", "L5", "L4/L5", "SC"],
             "evaluation": {"per": "volume", "space": "native", "unit": "mm"}}  # fmt: skip
    return Run(Path(f"runs/{name}/seed{seed}_fold{fold}"), {**known, **facts}, rows)


def board(*rows, rare=0.0, **options):
    compared = [FinishedRuns(tuple(row) if isinstance(row, list) else (row,)) for row in rows]
    return make_leaderboard(compared, rare_share=rare, **options)


def only(result):
    (table,) = result.tables
    return table.rows


def drawn(seed, cases=8, structures=("L4", "L5")):
    generator = np.random.default_rng(seed)
    return {(str(c), s): (float(generator.uniform(0.3, 0.95)), float(generator.uniform(1, 30)))
            for c in range(cases) for s in structures}  # fmt: skip


def test_one_run_has_the_means_of_its_scores():
    values = {**drawn(0), ("0", "L4"): "missed", ("1", "L5"): "spurious", ("2", "L5"): "absent"}
    single = run("a", values)
    (row,) = only(board(single))
    expected = summarise(single.scores, structures=["L4", "L5", "L4/L5", "SC"])
    for metric in ("dsc", "hd95"):
        number = row.number(metric, "as_published")
        assert number.value == pytest.approx(expected.overall[metric].value, rel=1e-12)
        assert (number.structures, number.missed, number.spurious) == (2, 1, 1)
        for name in ("L4", "L5"):
            mean = row.by_structure["as_published"][metric][name]
            theirs = expected.per_structure[name, metric]
            assert mean.value == pytest.approx(theirs.value, rel=1e-12)
            assert (mean.n, mean.missed, mean.spurious) == (theirs.n, theirs.missed, theirs.spurious)
    assert (row.number("dsc", "as_published").used, row.number("hd95", "as_published").used) == (15, 13)
    assert row.number("hd95", "penalised").used == 15
    assert math.isnan(row.number("dsc", "as_published").seed_sd)


def test_seeds_are_averaged_and_their_spread_is_shown():
    first, second = drawn(1), drawn(2)
    (row,) = only(board([run("a", first, seed=1), run("a", second, seed=2)]))
    means = [np.mean([v[0] for v in values.values()]) for values in (first, second)]
    number = row.number("dsc", "as_published")
    assert number.value == pytest.approx(np.mean(means))
    assert number.seed_sd == pytest.approx(np.std(means, ddof=1))
    assert math.isnan(number.fold_sd)
    assert (number.used, number.patients) == (32, 8)
    # The interval is that of the patients' means over both, not of twice as many patients
    averaged = {key: tuple(np.mean([first[key], second[key]], axis=0)) for key in first}
    (single,) = only(board(run("b", averaged)))
    assert (number.low, number.high) == pytest.approx(
        (single.number("dsc", "as_published").low, single.number("dsc", "as_published").high)
    )
    np.testing.assert_allclose(row.by_patient["penalised"]["hd95"], single.by_patient["penalised"]["hd95"])


def test_folds_are_put_together():
    values = drawn(3)
    whole = run("whole", values)
    parts = [run("net", {k: v for k, v in values.items() if int(k[0]) % 2 == fold}, fold=fold) for fold in (0, 1)]
    first, second = only(board(parts, whole))
    for aggregate in AGGREGATES:
        for metric in ("dsc", "hd95"):
            assert first.number(metric, aggregate).value == second.number(metric, aggregate).value
            assert first.number(metric, aggregate).low == second.number(metric, aggregate).low
    assert first.rank == second.rank == 1
    means = [np.mean([v[0] for k, v in values.items() if int(k[0]) % 2 == fold]) for fold in (0, 1)]
    assert first.number("dsc", "common").fold_sd == pytest.approx(np.std(means, ddof=1))
    assert math.isnan(first.number("dsc", "common").seed_sd)


def test_common_is_what_every_repeat_of_every_run_found():
    good, hasty = drawn(4), {**drawn(5), ("3", "L4"): "missed"}
    table = board([run("a", good, seed=1), run("a", hasty, seed=2)], run("b", drawn(6))).tables[0]
    assert table.common_places == {"dsc": 15, "hd95": 15}
    assert table.all_places == 16
    a, b = sorted(table.rows, key=lambda row: row.label)
    assert (a.number("hd95", "common").used, b.number("hd95", "common").used) == (30, 15)
    assert (a.number("hd95", "common").missed, b.number("hd95", "common").missed) == (1, 0)


def test_over_cases_structures_and_groups():
    values = {("0", "L4"): (0.9, 1.0), ("1", "L4"): (0.8, 2.0), ("1", "L5"): (0.4, 3.0), ("1", "SC"): (0.6, 4.0)}
    result = board(run("a", values), rare=0.75)
    (row,) = only(result)

    def mean(scope):
        return row.number("dsc", "as_published", scope).value

    assert mean("structures") == pytest.approx((0.85 + 0.4 + 0.6) / 3)
    assert mean("cases") == pytest.approx((0.9 + (0.8 + 0.4 + 0.6) / 3) / 2)
    assert mean("vertebrae") == pytest.approx((0.85 + 0.4) / 2)
    assert mean("canal") == pytest.approx(0.6)
    assert math.isnan(mean("discs"))
    assert mean("without_rare") == pytest.approx(0.85)
    assert result.rare == {"L5": (1, 2), "L4/L5": (0, 2), "SC": (1, 2)}
    assert "without_rare" not in board(run("a", values)).scopes
    assert list(board(run("a", values, groups=None)).scopes) == ["structures", "cases"]


def test_a_series_more_of_one_patient_is_no_patient_more():
    values = {("0_t1", "L4"): (0.9, 1.0), ("0_t2", "L4"): (0.7, 1.0), ("1_t1", "L4"): (0.5, 1.0)}
    (row,) = only(board(run("a", values)))
    assert row.number("dsc", "as_published").patients == 2
    assert row.number("dsc", "as_published", "cases").value == pytest.approx(0.7)
    np.testing.assert_allclose(row.by_patient["as_published"]["dsc"], [0.8, 0.5])
    np.testing.assert_allclose(row.by_case["as_published"]["dsc"], [0.9, 0.7, 0.5])


def test_tests_of_the_table_are_those_of_scipy_and_statsmodels():
    names = ("a", "b", "c", "d")
    table = board(*(run(name, drawn(10 + n, cases=30)) for n, name in enumerate(names))).tables[0]
    by_label = {row.label: row.by_patient["penalised"]["hd95"] for row in table.rows}
    result = table.differences["hd95"]
    assert len(result) == 6
    p = [stats.wilcoxon(by_label[d.first], by_label[d.second], zero_method="pratt", method="approx").pvalue
         for d in result]  # fmt: skip
    np.testing.assert_allclose([d.test.p for d in result], p, rtol=1e-9)
    np.testing.assert_allclose([d.adjusted for d in result], multipletests(p, method="holm")[1], rtol=1e-9)
    ranking = table.rankings["hd95"]
    mean, per_patient = ranking.schemes["mean_then_rank"], ranking.schemes["rank_then_mean"]
    assert ranking.tau["mean_then_rank", "rank_then_mean"] == pytest.approx(stats.kendalltau(mean, per_patient)[0])
    values = np.stack(list(by_label.values()))
    np.testing.assert_allclose(per_patient, stats.rankdata(stats.rankdata(values, axis=0).mean(axis=1)))
    np.testing.assert_allclose(ranking.distribution.sum(axis=1), 1)


def test_ranks_are_by_the_penalised_mean_and_the_better_comes_first():
    close = dict.fromkeys(drawn(0), (0.5, 1.0))
    far = dict.fromkeys(drawn(0), (0.5, 2.0))
    kinds = {"metric_pair": ("jaccard", "hd95")}
    rows = only(board(run("far", far, **kinds), run("near", close, **kinds)))
    assert [(row.label, row.rank) for row in rows] == [("far (seed 1)", 1), ("near (seed 1)", 1)]
    scores = [row for row in run("near", close).scores if row.metric == "hd95"]
    both = [Run(Path(name), {"name": name, "structures_in_training": ["L4", "L5"]}, rows) for name, rows in
            (("far", [replace(row, value=9.0) for row in scores]), ("near", scores))]  # fmt: skip
    assert [row.finished.first.name for row in only(board(*both))] == ["near", "far"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("repeated", [False, True])
def test_missing_the_ten_hardest_of_twenty_never_ranks_better_for_it(seed, repeated):
    """Also among others, also with seeds, by every metric and over everything that is averaged."""
    result = drawn(seed, cases=20, structures=("L4", "L5", "SC"))
    hardness = {str(c): sum(result[str(c), s][1] for s in ("L4", "L5", "SC")) for c in
                range(20)}  # fmt: skip
    hardest = sorted(hardness, key=hardness.__getitem__)[10:]
    missing = {key: "missed" if key[0] in hardest else value for key, value in result.items()}
    others = [run("other", drawn(100 + seed, cases=20, structures=("L4", "L5", "SC")))]
    whole, half = run("all", result), run("half", missing)
    if repeated:
        second = drawn(200 + seed, cases=20, structures=("L4", "L5", "SC"))
        rows = only(board([whole, run("all", second, seed=2)], [half, run("half", second, seed=2)], *others))
    else:
        rows = only(board(whole, half, *others))
    by_name = {row.finished.first.name: row for row in rows}
    assert by_name["half"].number("hd95", "as_published").value < by_name["all"].number("hd95", "as_published").value
    for metric, sign in (("dsc", -1), ("hd95", 1)):
        for aggregate in ("common", "penalised"):
            assert by_name["all"].ranks[aggregate][metric] <= by_name["half"].ranks[aggregate][metric]
            for scope in ("structures", "cases", "vertebrae", "canal"):
                values = [sign * by_name[name].number(metric, aggregate, scope).value for name in ("all", "half")]
                assert values[0] <= values[1]
    assert by_name["all"].rank <= by_name["half"].rank


def test_scores_that_contradict_themselves():
    single = run("a", drawn(0))
    with pytest.raises(RunError, match="run '.*/a/.*' hold 1 value more than once, the first: dsc of 'L4' in case '0'"):
        board(replace(single, scores=[*single.scores, single.scores[0]]))
    with pytest.raises(RunError, match="mix hd95 in mm native and in pixel native space"):
        board(replace(single, scores=[*single.scores[:-1], replace(single.scores[-1], unit="pixel")]))
    with pytest.raises(RunError, match="case '0' is of 'q', and another time of 'p0'"):
        board(single, replace(single, scores=[replace(single.scores[0], patient="q"), *single.scores[1:]]))
    with pytest.raises(RunError, match="share no metric"):
        board(single, run("b", drawn(0), metric_pair=("jaccard", "asd")))


def test_names_and_costs_over_repeats():
    def facts(cases, shifted, matched, misnamed):
        return {"enumeration": {"cases": cases, "level_shift_rate": shifted, "matched": matched, "misnamed": misnamed,
                                "order_violations": 1, "duplicates": 3, "dsc": 0.5, "dsc_without_names": None},
                "parameters": 10, "milliseconds_per_slice": cases, "peak_memory_bytes": cases}  # fmt: skip

    parts = [run("a", {(str(f), "L4"): (0.5, 1.0)}, fold=f, **facts(2 + 2 * f, f / 2, 10, f)) for f in (0, 1)]
    (row,) = only(board(parts))
    assert row.level_naming == pytest.approx(
        {"cases": 6, "level_shift_rate": 2 / 6, "misnamed_rate": 1 / 20, "order_violations_per_case": 2 / 6,
         "duplicates_per_case": 1.0, "dsc": 0.5, "dsc_without_names": math.nan}, nan_ok=True)  # fmt: skip
    assert row.cost == {"parameters": 10, "multiply_accumulates": None, "milliseconds_per_slice": 3,
                        "peak_memory_bytes": 4}  # fmt: skip
    parts[0].facts.pop("enumeration")
    assert only(board(parts))[0].level_naming is None


WINDOW = WindowScore("0", "p0", 0.5, "upper", "no", "", "template", "L4", "dsc", 0.25)


def in_windows(finished_run, **values):
    """Return a run with a window of each patient; `values` are its DSC by the author of the text."""
    cases = [str(case) for case in range(4)]
    base = [replace(WINDOW, case=case, patient=f"p{case}") for case in cases]
    rows = [replace(row, stated_by=author, value=value) for author, value in values.items() for row in base]
    return replace(finished_run, windows=[*rows, *(replace(row, share=1.0, value=0.9) for row in rows)])


def test_windows_are_means_of_their_own_and_change_no_rank():
    plain = [run("a", drawn(0)), run("b", drawn(1))]
    reader = in_windows(plain[0], template=0.25, simulated=0.75)
    visual = in_windows(plain[1], none=0.5)
    result = board(reader, visual)
    before, after = only(board(*plain)), only(result)
    assert [str((row.rank, row.means)) for row in after] == [str((row.rank, row.means)) for row in before]
    assert result.has_windows
    assert not board(*plain).has_windows
    template, right = next(row for row in after if row.finished.first.name == "a").window_dsc
    assert (template.value, right.value, right.patients) == (0.25, 0.75, 4)
    unaided, right = next(row for row in after if row.finished.first.name == "b").window_dsc
    assert (unaided.value, right) == (0.5, None)
    assert {mean.share for mean in after[0].windows} == {1.0, 0.5}


def probed(finished_run, **by_patient):
    return replace(finished_run, facts={**finished_run.facts, "obedience": {"by_patient": by_patient}})


def test_obedience_is_a_column_of_methods_that_were_probed():
    plain = [run("a", drawn(0)), run("b", drawn(1))]
    result = board(probed(plain[0], p0=1.0, p1=0.5), plain[1])
    values = {row.finished.first.name: row.obedience for row in only(result)}
    assert (values["a"].value, values["a"].patients, values["b"]) == (0.75, 2, None)
    assert values["a"].low < 0.75 < values["a"].high
    assert result.has_obedience
    assert not board(*plain).has_obedience
    # Repeats of a patient count once; a method with a run that was not probed has no obedience.
    seeds = [run("a", drawn(seed), seed=seed) for seed in (1, 2)]
    (row,) = only(board([probed(seeds[0], p0=1.0, p1=0.0), probed(seeds[1], p0=0.0)]))
    assert (row.obedience.value, row.obedience.patients) == (0.25, 2)
    (row,) = only(board([probed(seeds[0], p0=1.0), seeds[1]]))
    assert row.obedience is None
    # The probe of an earlier checkpoint doesn't count, and neither does one in which no text could be moved.
    assert not board(replace(plain[0], facts={**probed(plain[0], p0=1.0).facts, "scored_step": 7})).has_obedience
    assert not board(probed(plain[0])).has_obedience


def test_every_format_shows_the_obedience():
    result = board(probed(run("a", drawn(0)), p0=1.0, p1=0.5), run("b", drawn(1)))
    rows = list(csv.DictReader(StringIO(as_csv(result))))
    assert sorted(row["obedience"] for row in rows) == ["", "0.75"]
    written = json.loads(as_json(result))["tables"][0]["rows"]
    assert sorted((row["name"], row["obedience"] and row["obedience"]["value"]) for row in written) == [
        ("a", 0.75),
        ("b", None),
    ]
    for section in (next(sections(result)), short_section(result, 200)):
        column = section.header.index("obedience")
        assert sorted(cells[column][:4] for cells in section.rows) in (["0.75", "–"],)
    page = as_html(result)
    assert '<button type="button">obedience</button>' in page
    assert '<td class="mean" data-value="0.75"><span>0.7500</span>' in page
    assert "& obedience $\\uparrow$ &" in as_latex(result)
    assert "obedience" not in as_latex(board(run("a", drawn(0))))


def test_folds_with_other_windows_give_no_mean():
    folds = [run("a", drawn(0), fold=0), run("a", {("9", "L4"): (0.5, 1.0)}, fold=1)]
    first, second = (in_windows(fold, template=0.25) for fold in folds)
    (row,) = only(board([first, second]))
    assert row.window_dsc[0].value == 0.25
    (row,) = only(board([first, folds[1]]))
    assert row.window_dsc == (None, None)
    other_shares = replace(second, windows=[row for row in second.windows if row.share == 1])
    (row,) = only(board([first, other_shares]))
    assert not row.windows


def test_the_short_table_shows_the_metrics_that_a_recipe_asked_for():
    asked = run("a", drawn(0))
    further = [replace(row, metric=name) for name in ("jaccard", "assd") for row in asked.scores if row.metric == "dsc"]
    result = board(replace(asked, scores=[*asked.scores, *further]))
    assert len(short_section(result, 200).header) == len(short_section(board(asked), 200).header) + 1
    assert short_section(result, 200).header[4].startswith("ASSD")  # Jaccard is among the usual metrics
    assert short_section(result, 10).header == short_section(board(asked), 10).header
