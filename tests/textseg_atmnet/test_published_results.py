from __future__ import annotations

import csv
import io
import math
import re
from collections import defaultdict

import pytest

from textseg.comparison.published import PublishedMean, published_means, published_tables, ranks
from textseg.comparison.text import print_published
from textseg.errors import RunError
from textseg_atmnet.published_results import FOLDER

ALL = [mean for table in published_tables() for means in published_means(table) for mean in means]


def mean_of(dataset: str, metric: str, method: str) -> PublishedMean:
    (mean,) = [m for m in ALL if (m.dataset, m.metric, m.method) == (dataset, metric, method)]
    return mean


def report_of(dataset: str) -> str:
    text = io.StringIO()
    print_published(dataset, text)
    return text.getvalue()


def table(dataset: str, metric: str) -> list[PublishedMean]:
    return [mean for mean in ALL if (mean.dataset, mean.metric) == (dataset, metric)]


def test_104_means_of_thirteen_methods() -> None:
    assert [table.dataset for table in published_tables()] == ["mrspineseg", "spider"]
    assert len(ALL) == 104
    assert len({mean.method for mean in ALL}) == 13
    assert {(mean.metric, mean.unit) for mean in ALL} == {
        ("dsc", "percent"), ("jaccard", "percent"), ("hd95", "pixel"), ("asd", "pixel"),
    }  # fmt: skip


def test_means_are_those_of_the_csv_file() -> None:
    values = defaultdict(list)
    with (FOLDER / "per_class.csv").open() as file:
        for row in csv.DictReader(file):
            values[row["dataset"], row["metric"], row["method"]].append((row["structure"], row["value"]))
    for mean in ALL:
        cells = values[mean.dataset, mean.metric, mean.method]
        assert len(cells) == 19
        given = [float(value) for _, value in cells if value]
        assert mean.structures == len(given)
        assert mean.as_published == pytest.approx(sum(given) / len(given))
        often = [float(value) for name, value in cells if value and name not in ("T9", "T10", "T9/T10")]
        assert mean.without_rare == pytest.approx(sum(often) / len(often))


def test_the_wrong_means_are_named() -> None:
    wrong = {(m.dataset, m.method, m.metric): (m.printed, round(m.as_published, 2)) for m in ALL if m.wrong}
    expected = {
        ("mrspineseg", "tevia", "dsc"): (72.44, 72.07),
        ("mrspineseg", "ariadnes_thread", "dsc"): (70.56, 71.19),
        ("mrspineseg", "h_sam", "dsc"): (70.51, 69.03),
        ("spider", "h_sam", "dsc"): (64.01, 62.15),
        ("spider", "h_sam", "hd95"): (10.43, 13.31),
    }
    assert {key: wrong[key] for key in expected} == expected
    assert len(wrong) == 16
    assert all(m.printed == pytest.approx(m.as_published, abs=0.0101) for m in ALL if not m.wrong)


@pytest.mark.parametrize(
    ("dataset", "metric", "method", "printed", "common", "before", "after"),
    [
        ("spider", "hd95", "atmnet", 9.91, 10.49, 1, 6),
        ("spider", "hd95", "spineparsenet", 14.05, 9.22, 9, 1),
        ("spider", "asd", "atmnet", 2.77, 3.11, 1, 5),
        ("spider", "asd", "nnunet_v2", 4.52, 2.47, 12, 1),
        ("mrspineseg", "hd95", "attention_unet", 40.84, 16.16, 13, 9),
        ("mrspineseg", "hd95", "atmnet", 9.60, 9.49, 1, 1),
    ],
)
def test_ranks_change_where_every_method_counts_the_same(
    dataset: str, metric: str, method: str, printed: float, common: float, before: int, after: int
) -> None:
    mean = mean_of(dataset, metric, method)
    assert mean.printed == printed
    assert mean.common == pytest.approx(common, abs=0.005)
    assert ranks(table(dataset, metric), "printed")[method] == before
    assert ranks(table(dataset, metric), "common")[method] == after


def test_without_three_rare_structures() -> None:
    means = {method: mean_of("mrspineseg", "dsc", method).without_rare for method in ("atmnet", "ariadnes_thread")}
    assert means == {"atmnet": pytest.approx(84.03, abs=0.005), "ariadnes_thread": pytest.approx(84.54, abs=0.005)}
    assert mean_of("spider", "dsc", "swin_unetr").without_rare == pytest.approx(79.17, abs=0.005)


def test_the_report_says_it() -> None:
    report = report_of("spider")
    assert "52 means computed again: 4 (*) are not the mean" in report
    assert re.search(r"^h_sam +hd95 +10.43 +13.31$", report, re.MULTILINE)
    assert re.search(r"^atmnet +hd95 +1 +6$", report, re.MULTILINE)
    assert "Source: ATM-Net, arXiv 2504.03476. Protocol: 2-D slices" in report
    assert "nan" not in report
    assert not any(math.isnan(mean.common) for mean in ALL)


def test_results_that_there_are_not() -> None:
    with pytest.raises(RunError, match="no published results of 'spyder'. Did you mean 'spider'"):
        report_of("spyder")
