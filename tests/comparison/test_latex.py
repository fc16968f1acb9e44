from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from textseg.comparison.comparability import Mismatch
from textseg.comparison.finished_runs import FinishedRuns, Run
from textseg.comparison.latex import as_latex, escape
from textseg.comparison.leaderboard import make_leaderboard
from textseg.comparison.published import published_rows
from textseg.metrics.scores import Score

HOSTILE = r"a_b & 50% $x$ #1 {c} \input{~/f} ^2 <|>"


def run(name, values, source="template"):
    """Values are (dsc, hd95) by case."""
    rows = []
    for case, pair in enumerate(values):
        for metric, unit, value in zip(("dsc", "hd95"), ("", "mm"), pair, strict=True):
            status = "missed" if math.isnan(pair[1]) else "ok"
            rows.append(Score(f"c{case}", f"p{case}", None, "L5", metric, unit, "native", value, 9.0, status, source))
    facts = {"name": name, "seed": 1, "structures_in_training": ["L5"], "parameters": 1_234_567, "dataset": "spider",
             "evaluation": {"per": "volume", "space": "native", "unit": "mm"}}  # fmt: skip
    return FinishedRuns((Run(Path(name), facts, rows),))


RUNS = (
    run("best_net", [(0.9, 2.0), (0.8, 4.0)]),
    run(HOSTILE, [(0.7, 5.0), (0.6, 6.0)]),
    run("third", [(0.5, 1.0), (0.0, math.nan)]),
    run("oracle", [(1.0, 0.5), (1.0, 0.5)], source="ground_truth"),
)


def lines(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def check_structure(text):
    """Environments and braces close, and every row has the columns that were declared."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        opened.append(name) if kind == "begin" else opened.remove(name)
    assert opened == []
    plain = re.sub(r"\\[{}\\]", "", body)
    assert plain.count("{") == plain.count("}")
    columns = len(re.search(r"begin\{tabular\}\{(\w+)\}", body).group(1))
    inside = body.partition("\\toprule")[2].partition("\\bottomrule")[0]
    rows = [line for line in inside.splitlines() if line.endswith(r"\\") and not line.startswith("\\multicolumn")]
    assert all(len(re.split(r"(?<!\\)&", row)) == columns for row in rows)
    return rows


def test_the_best_is_bold_the_second_underlined_and_oracles_are_neither():
    text = as_latex(make_leaderboard(RUNS, rare_share=0))
    assert len(check_structure(text)) == 5
    best, hostile, third, oracle = (lines(text, start) for start in (r"best\_net", r"a\_b", "third", "oracle"))
    assert r"\textbf{0.8500}" in best
    assert r"\underline{0.6500}" in hostile
    assert r"\textbf{1.00}" in third  # as published; over what all found it is the second's
    assert r"\underline{3.00}" in best
    assert "textbf" not in oracle
    assert "underline" not in oracle
    assert text.index("Oracle: prompts from the annotation, not ranked") < text.index("oracle (seed 1)")
    assert "1.23" in best
    assert r"% Warning: ranks by HD95 (mm) depend" in text


def test_published_rows_keep_their_unit_and_stand_apart():
    text = as_latex(make_leaderboard(RUNS[:1], rare_share=0, published=published_rows("spider")))
    assert len(check_structure(text)) == 15
    row = lines(text, r"\emph{atmnet}")
    assert "0.7939" in row
    assert "9.91 pixel" in row
    assert "10.49 pixel" in row  # over what every method found
    assert "textbf" not in row
    assert "another protocol, not ranked" in text


def test_a_forced_table_says_so_and_picks_nobody():
    different = [Mismatch("evaluation.per", "'volume'", "'slice'", "evaluation.per: a has 'volume', b has 'slice'")]
    text = as_latex(make_leaderboard(RUNS, rare_share=0, mismatches=different))
    check_structure(text)
    assert r"\caption{\textbf{NOT COMPARABLE: these runs differ in evaluation.per.}" in text
    rows = text.partition(r"\midrule")[2]
    assert "textbf" not in rows
    assert "underline" not in rows


def test_oracles_alone():
    text = as_latex(make_leaderboard(RUNS[3:], rare_share=0))
    check_structure(text)
    assert r"\midrule" + "\n" + r"\midrule" not in text


def test_text_is_set_as_it_stands():
    assert escape(HOSTILE) == (
        r"a\_b \& 50\% \$x\$ \#1 \{c\} \textbackslash{}input\{\textasciitilde{}/f\} \textasciicircum{}2 "
        r"\textless{}\textbar{}\textgreater{}"
    )
    assert escape("– a\nb") == "-- a b"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_sets_it(tmp_path):
    board = make_leaderboard(RUNS, rare_share=0, published=published_rows("spider"))
    (tmp_path / "board.tex").write_text(as_latex(board))
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{board.tex}\end{document}"
    (tmp_path / "paper.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1500:]
    assert (tmp_path / "paper.pdf").stat().st_size > 0
