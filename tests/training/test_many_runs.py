from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from textseg.training.many_runs import PlannedRun, plan_runs, run_all

# What the processes of the tests do instead of a run: their folder is the first argument.
SUCCEED = "print('fine')"
MISTAKE = "import sys; print('The data is missing.', file=sys.stderr); sys.exit(2)"
DEFECT = "raise ZeroDivisionError('by nothing')"
OUT_OF_MEMORY = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
MEET = """
import sys, time, pathlib
here = pathlib.Path(sys.argv[1])
here.mkdir(parents=True)
for _ in range(1200):  # until the other one has begun, too
    if len(list(here.parent.parent.glob('*/seed1'))) == 2:
        break
    time.sleep(0.05)
else:
    sys.exit('alone')
"""
ALONE = """
import sys, pathlib
mark = pathlib.Path(sys.argv[1]).parent.parent / 'at work'
mark.touch(exist_ok=False)
mark.unlink()
"""
THREADS = "import os; print(os.environ['OMP_NUM_THREADS'])"


def planned(folder: Path, name: str) -> PlannedRun:
    return PlannedRun(Path(f"{name}.yaml"), (), 1, folder / name / "seed1", folder)


def with_programs(monkeypatch: pytest.MonkeyPatch, programs: dict[str, str]) -> None:
    def command(self: PlannedRun, **_: bool) -> list[str]:
        return [sys.executable, "-c", programs[self.recipe.stem], str(self.folder)]

    monkeypatch.setattr(PlannedRun, "command", command)


def test_the_command_does_this_run_alone(tmp_path: Path) -> None:
    run = PlannedRun(Path("r/x.yaml"), ("a=[1, 2]", "split.fold=0"), 7, tmp_path / "x" / "seed7_fold0", tmp_path)
    expected = f"-P -m textseg run r/x.yaml --set|a=[1, 2]|--set split.fold=0 --seeds 7 --output {tmp_path} --fresh"
    given = " ".join(run.command(fresh=True, dry_run=False)[1:])
    assert given == expected.replace("|", " ")
    assert "a=[1, 2]" in run.command(fresh=True, dry_run=False)
    alone = PlannedRun(Path("x.yaml"), (), None, tmp_path, tmp_path).command(fresh=False, dry_run=True, trust_code=True)
    assert alone == [
        sys.executable,
        "-P",
        "-m",
        "textseg",
        "run",
        "x.yaml",
        "--output",
        str(tmp_path),
        "--dry-run",
        "--trust-code",
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_rest_goes_on_after_one_that_failed(
    jobs: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    programs = {"good": SUCCEED, "wrong": MISTAKE, "broken": DEFECT, "big": OUT_OF_MEMORY, "last": SUCCEED}
    with_programs(monkeypatch, programs)
    runs = [planned(tmp_path, name) for name in programs]
    assert run_all(runs, jobs=jobs, dry_run=True) == 1
    out, err = capfd.readouterr()
    assert "2 of 5 runs finished" in out
    for line in (
        f"{tmp_path}/wrong/seed1 failed (exit code 2): The data is missing.",
        f"{tmp_path}/broken/seed1 failed (exit code 1): ZeroDivisionError: by nothing",
        f"{tmp_path}/big/seed1 failed (ended by SIGKILL, out of memory?): it said nothing",
    ):
        assert line in out
    if jobs == 1:
        assert err.startswith("The data is missing.\nTraceback")
        assert out.count("fine") == 2
    else:
        assert err == ""
        assert (tmp_path / "last" / "seed1.out").read_text() == "fine\n"
        assert "by nothing" in (tmp_path / "broken" / "seed1.out").read_text()
        assert f"{tmp_path}/last/seed1 finished: {tmp_path}/last/seed1.out" in out


@pytest.mark.parametrize(("programs", "code"), [((SUCCEED, SUCCEED), 0), ((SUCCEED, MISTAKE, MISTAKE), 2)])
def test_the_exit_code_says_whether_mistakes_or_defects_failed(
    programs: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_programs(monkeypatch, {str(index): program for index, program in enumerate(programs)})
    assert run_all([planned(tmp_path, str(index)) for index in range(len(programs))], jobs=2, dry_run=True) == code


@pytest.mark.parametrize(("jobs", "program"), [(1, ALONE), (2, MEET)])
def test_as_many_at_once_as_asked_for(jobs: int, program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_programs(monkeypatch, {"a": program, "b": program})
    assert run_all([planned(tmp_path, name) for name in "ab"], jobs=jobs, dry_run=True) == 0


@pytest.mark.parametrize(("granted", "share"), [("5", "2"), ("1", "1")])
def test_each_gets_its_share_of_the_threads(
    granted: str, share: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", granted)
    with_programs(monkeypatch, {"a": THREADS})
    run_all([planned(tmp_path, "a")], jobs=2, dry_run=True)
    assert (tmp_path / "a" / "seed1.out").read_text().strip() == share


INTERRUPTED = """
import sys
from pathlib import Path
from textseg.training.many_runs import PlannedRun, plan_runs, run_all
child = '''
import sys, time, pathlib
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
try:
    (folder / 'begun').touch()
    time.sleep(600)
except KeyboardInterrupt:
    (folder / 'heard').touch()
    sys.exit(130)
'''
PlannedRun.command = lambda self, **flags: [sys.executable, '-c', child, str(self.folder)]
folder = Path(sys.argv[1])
try:
    run_all([PlannedRun(Path(n), (), 1, folder / n / 'seed1', folder) for n in 'abc'], jobs=2)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_stops_all(number: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while len(list(tmp_path.glob("*/seed1/begun"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, number)  # as a terminal does, to all in the foreground
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert sorted(path.parent.parent.name for path in tmp_path.glob("*/seed1/heard")) == ["a", "b"]
    assert not (tmp_path / "c").exists()
    assert "interrupted" in out


@pytest.mark.slow
@pytest.mark.usefixtures("stranger")
def test_from_recipes_to_one_leaderboard(
    finished_run: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two runs that may be compared, one on other data, and one whose data there is not; two are real."""
    output = tmp_path / "runs"
    for name in ("tiny", "again", "strange"):
        shutil.copytree(finished_run, output / name / finished_run.name)
    record = output / "strange" / finished_run.name / "run.json"
    facts = json.loads(record.read_text())
    record.write_text(json.dumps({**facts, "hashes": {**facts["hashes"], "data": "another"}}))
    lost = tmp_path / "lost.yaml"
    (data,) = (line for line in tiny_recipe.read_text().splitlines() if line.startswith("dataset:"))
    nowhere = "dataset: {use: spider, folder: nowhere}"
    lost.write_text(tiny_recipe.read_text().replace(data, nowhere).replace("name: tiny", "name: lost"))

    runs = plan_runs([tiny_recipe, lost], [], [None], None, output)
    real, command = {run.folder for run in runs}, PlannedRun.command
    monkeypatch.setattr(
        PlannedRun,
        "command",
        lambda self, **flags: command(self, **flags) if self.folder in real else [sys.executable, "-c", SUCCEED],
    )
    others = [
        PlannedRun(Path("x"), (), None, output / name / finished_run.name, output) for name in ("again", "strange")
    ]
    assert run_all([*runs, *others], jobs=2) == 2
    out, _ = capfd.readouterr()
    summary = out[out.index("3 of 4 runs finished") :]
    assert re.search(r"lost/seed2025 failed \(exit code 2\): .*nowhere", summary)
    assert summary.count("Leaderboard") == 1
    assert "test: dsc" in (output / "tiny" / f"{finished_run.name}.out").read_text()
    board = summary[summary.index("Leaderboard") :]
    assert board.count("tiny") >= 2
    assert "strange" not in board


@pytest.mark.usefixtures("stranger")
def test_all_folds_of_a_file_are_those_that_it_has(tiny_recipe: Path, tmp_path: Path) -> None:
    folds = tmp_path / "splits_final.json"
    folds.write_text(json.dumps([{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]))
    runs = plan_runs([tiny_recipe], [f"split={{file: {folds}, fold: 0}}"], [None], "all", tmp_path)
    assert [run.folder.name for run in runs] == ["seed2025_fold0", "seed2025_fold1"]
