from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from textseg.cli.runs import runs as list_command
from textseg.errors import RunError
from textseg.runs.folder import RunFolder
from textseg.runs.listing import list_runs


def make(path: Path, *, epochs: int = 3, history: tuple[float, ...] = (), **record: object) -> RunFolder:
    run = RunFolder(path)
    path.mkdir(parents=True)
    run.recipe.write_text(f"name: {path.parent.name}\nseed: 4\nsplit: {{fold: 1}}\ntraining: {{epochs: {epochs}}}\n")
    if history:
        run.write_history([{"epoch": n, "validation_dsc": dsc} for n, dsc in enumerate(history, start=1)])
    if record:
        run.update(**record)
    return run


def test_a_finished_run(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = list_runs(finished_run.parent.parent)
    assert (run.folder, run.name, run.seed, run.fold) == ("tiny/seed2025", "tiny", 2025, None)
    assert (run.state, run.epoch, run.epochs, run.prompts, run.failure) == ("finished", 3, 3, "template", None)
    record = RunFolder(finished_run).read()
    assert run.best == record["best"]["validation_dsc"]
    assert run.test == record["test"]
    assert run.test.keys() == {"dsc", "jaccard", "hd95", "asd"}
    for folder in (finished_run.parent, finished_run):  # named more closely
        assert [listed.test for listed in list_runs(folder)] == [run.test]
    list_command(finished_run, as_json=True)
    assert json.loads(capsys.readouterr().out)[0]["state"] == "finished"
    list_command(finished_run)
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["name", "seed", "fold", "state"]
    assert f"dsc {run.test['dsc']:.4f}" in row
    assert "3 of 3" in row


def test_states_and_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "b" / "seed10", history=(0.2, 0.4, 0.3), epochs=9, name="b", seed=10, fold=None)
    make(tmp_path / "b" / "seed2_fold1", name="b", seed=2, fold=1, failure="Out of memory.")
    make(tmp_path / "b" / "seed2_fold0", name="b", seed=2, fold=0)
    make(tmp_path / "a" / "seed4")  # has written nothing but its recipe
    make(tmp_path / "a" / "seed4_until_20260101_000000_000000")
    (tmp_path / "stray.txt").write_text("")
    with RunFolder(tmp_path / "b" / "seed2_fold0").lock():
        runs = list_runs(tmp_path)
    assert [(run.folder, run.state) for run in runs] == [
        ("a/seed4", "interrupted"),
        ("b/seed2_fold0", "running"),
        ("b/seed2_fold1", "failed"),
        ("b/seed10", "interrupted"),
    ]
    assert (runs[0].name, runs[0].seed, runs[0].fold, runs[0].epoch, runs[0].best) == ("a", 4, 1, 0, None)
    assert (runs[3].epoch, runs[3].epochs, runs[3].best) == (3, 9, 0.4)
    list_command(tmp_path)
    *table, blank, reason = capsys.readouterr().out.splitlines()
    assert (len(table), blank, reason) == (6, "", "b/seed2_fold1: Out of memory.")
    assert list_runs(tmp_path)[1].state == "interrupted"


def test_a_damaged_record_does_not_hide_the_others(tmp_path: Path) -> None:
    make(tmp_path / "a" / "seed4").record.write_text("{")
    make(tmp_path / "b" / "seed4")
    damaged, sound = list_runs(tmp_path)
    assert (damaged.state, sound.state) == ("failed", "interrupted")
    assert "is damaged" in str(damaged.failure)


def test_no_folder_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no folder .* textseg runs FOLDER"):
        list_runs(tmp_path / "gone")


def test_the_command_imports_nothing_heavy(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "tiny" / finished_run.name, ignore=shutil.ignore_patterns("*.ckpt"))
    program = (
        "import sys; from textseg import cli; sys.argv = ['textseg', 'runs', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "finally: print(sorted({'torch', 'monai', 'lightning', 'numpy', 'scipy'} & set(sys.modules)), "
        "file=sys.stderr)"
    )
    for options, expected in (([], "tiny"), (["--json"], '"state": "finished"')):
        command = [sys.executable, "-c", program, str(tmp_path), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert expected in done.stdout
        assert done.stderr == "[]\n"


def test_one_folder_that_cannot_be_read_does_not_end_the_list(tmp_path: Path) -> None:
    make(tmp_path / "a" / "seed1", name="a", seed=1)
    for seed, damage in enumerate(("run.json", "log/metrics.csv", "recipe.yaml", "report.html"), start=2):
        folder = make(tmp_path / "a" / f"seed{seed}", history=(0.5,), name="a", seed=seed).path
        (folder / damage).unlink(missing_ok=True)
        (folder / damage).mkdir()
    (make(tmp_path / "a" / "seed6").log).mkdir()
    (tmp_path / "a" / "seed6" / "log" / "metrics.csv").write_bytes(b"epoch\nmany\xff")
    (make(tmp_path / "a" / "seed7").record).write_text("[[1, 2, 3]]")
    make(tmp_path / "a" / "seed9", name="a", fold="first")
    (make(tmp_path / "a" / "seed8", name="a", seed=8).path / ".lock").symlink_to("/etc/passwd")
    runs = {run.folder: run for run in list_runs(tmp_path)}
    assert len(runs) == 9
    assert {name[-1] for name, run in runs.items() if run.state == "failed"} == {"2", "3", "6", "7", "9"}
    assert "run.json' is damaged (can't be read: Is a directory)" in str(runs["a/seed2"].failure)
    assert runs["a/seed8"].state == "interrupted"
