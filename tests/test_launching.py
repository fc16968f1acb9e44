from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from textseg import processes
from textseg.errors import RecipeError, RunError
from textseg.launching import check_shares, launched_rank, one_of_several, run_together
from textseg.run_folder import RunFolder
from textseg.running import run
from textseg.scores import read_scores

pytestmark = pytest.mark.usefixtures("stranger")

LIFE = """
import os, signal, sys, time
rank = os.environ["LOCAL_RANK"]
signal.signal(signal.SIGINT, lambda *a: sys.exit(130))
open(os.path.join(sys.argv[1], rank), "w").write(str(os.getpid()))
if rank == "1":
    {}
time.sleep(600)
"""


def live(tmp_path: Path, end: str) -> None:
    run_together([sys.executable, "-c", LIFE.format(end), str(tmp_path)], 3)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_killed_process_ends_all_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Process 2 of 3 was ended by SIGKILL, and the run with it. What was saved"):
        live(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert all(gone(int(path.read_text())) for path in tmp_path.iterdir())


def test_a_process_that_fails_ends_all(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Process 2 of 3 ended with exit code 1; see above"):
        live(tmp_path, "sys.exit(1)")
    with pytest.raises(SystemExit) as caught:  # a user's mistake, which the process has told
        live(tmp_path, "sys.exit(2)")
    assert caught.value.code == 2


def test_a_termination_signal_reaches_all(tmp_path: Path) -> None:
    def tell() -> None:
        while len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        live(tmp_path, "pass")


def test_who_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "TEXTSEG_PARENT"):
        monkeypatch.delenv(key, raising=False)
    assert launched_rank() == 0
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert launched_rank() == 3
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "5")  # torchrun
    assert launched_rank() == 5
    monkeypatch.setenv("TEXTSEG_PARENT", "7")  # textseg's own, inside a SLURM job
    assert launched_rank() == 1


def test_only_the_first_one_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEXTSEG_PARENT", raising=False)
    for rank in (0, 1):
        with one_of_several(rank):
            print(f"process {rank}")
    assert capsys.readouterr().out == "process 0\n"


def test_two_processes_train_and_score_as_one(tiny_recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    folder = RunFolder(run(tiny_recipe, output=tmp_path, overrides=["training.devices=2"]))
    alone = RunFolder(finished_run)
    ours, theirs = folder.load_checkpoint("last"), alone.load_checkpoint("last")
    assert ours["progression"]["step"] == theirs["progression"]["step"]
    for name, tensor in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], tensor, rtol=2e-2, atol=2e-3, msg=name)
    one, other = read_scores(folder.scores), read_scores(alone.scores)
    keys = [[(row.case, row.structure, row.metric) for row in rows] for rows in (one, other)]
    assert keys[0] == keys[1]  # each case once
    for mine, single in zip(folder.read_history(), alone.read_history(), strict=True):
        assert float(mine["train_loss"]) == pytest.approx(float(single["train_loss"]), rel=1e-2)
        assert float(mine["validation_dsc"]) == pytest.approx(float(single["validation_dsc"]), abs=1e-2)
    dsc = [[row.value for row in rows if row.metric == "dsc"] for rows in (one, other)]
    torch.testing.assert_close(torch.tensor(dsc[0]), torch.tensor(dsc[1]), rtol=0, atol=2e-2, equal_nan=True)
    assert folder.read()["processes"] == {"devices": 2, "nodes": 1}


def test_what_can_not_be_shared_is_a_message(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "count", lambda: 3)
    with pytest.raises(RecipeError, match="a batch of 4 slices can't be divided among 3 .* 1, 2, 4 are possible"):
        check_shares(4, "slice")
    with pytest.raises(RecipeError, match="the network reads a whole volume in a step"):
        check_shares(1, "volume")
    with pytest.raises(RunError, match="nobody has started a process on each. .* torchrun or srun"):
        run(tiny_recipe, output=tmp_path, overrides=["training.nodes=2"])
