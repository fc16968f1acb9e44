from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from textseg.errors import RecipeError, RunError
from textseg.evaluation.evaluate import load_segmenter, rebuild, validate
from textseg.metrics.scores import read_scores
from textseg.recipe.loading import load_recipe
from textseg.runs.folder import RunFolder
from textseg.training.launching import check_shares, launched_rank, one_of_several, run_together
from textseg.training.run import run

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
    for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "TEXTSEG_LAUNCHED"):
        monkeypatch.delenv(key, raising=False)
    assert launched_rank() == 0
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert launched_rank() == 3
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "5")  # torchrun
    assert launched_rank() == 5
    monkeypatch.setenv("TEXTSEG_LAUNCHED", "1")  # textseg's own, inside a SLURM job
    assert launched_rank() == 1


def test_only_the_first_one_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 1):
        with one_of_several(rank):
            print(f"process {rank}")
    assert capsys.readouterr().out == "process 0\n"


STEP = """
import sys
from pathlib import Path

import torch

from textseg.recipe.loading import load_recipe
from textseg.runs.folder import RunFolder
from textseg.system import distributed
from textseg.training.run import _connected, prepared
from textseg.training.loop import Training


def step(recipe, folder, *overrides):
    resolved = load_recipe(Path(recipe), overrides)
    torch.set_num_threads(1)
    training = Training(prepared(resolved), RunFolder(Path(folder)), _connected(resolved.training, "32-true"))
    gradients = {}
    training.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: p.grad.clone() for name, p in training.model.named_parameters()})
    )
    training._start_epoch(0)
    batch = next(training._batches(0))
    terms = {name: value.item() for name, value in training.training_step(batch).items()}
    shares = distributed.gathered((len(batch.case), terms))
    if distributed.rank() == 0:
        torch.save({"gradients": gradients, "shares": shares}, Path(folder) / "step.pt")


step(*sys.argv[1:])
distributed.gathered("saved")
distributed.disconnect()
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]  # none where it is not Linux
assert not [name for name in threads if "gloo" in name], threads  # one that outlives Python may abort the process
"""


def first_step(recipe: Path, folder: Path, count: int) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """The gradients by which the first step moves the weights; size of the batch and terms of the loss by process."""
    folder.mkdir()
    command = [sys.executable, "-c", STEP, str(recipe), str(folder)]
    if count > 1:
        run_together([*command, f"training.devices={count}"], count)
    else:
        subprocess.run(command, check=True)
    step = torch.load(folder / "step.pt")
    return step["gradients"], step["shares"]


def test_a_step_of_two_processes_has_the_gradients_of_one(tiny_recipe: Path, tmp_path: Path) -> None:
    alone, [(size, loss)] = first_step(tiny_recipe, tmp_path / "one", 1)
    together, shares = first_step(tiny_recipe, tmp_path / "two", 2)
    assert (size, [count for count, _ in shares]) == (4, [2, 2])
    for name, value in loss.items():
        assert sum(terms[name] for _, terms in shares) / 2 == pytest.approx(value, rel=1e-6)
    assert alone.keys() == together.keys()
    largest = max(float(gradient.abs().max()) for gradient in alone.values())
    for name, gradient in alone.items():  # what is left is the order of additions
        torch.testing.assert_close(together[name], gradient, rtol=0, atol=1e-6 * largest, msg=name)


@pytest.mark.slow
def test_two_processes_train_and_score_as_one(tiny_recipe: Path, finished_run: Path, tmp_path: Path) -> None:
    folder = RunFolder(run(tiny_recipe, output=tmp_path, overrides=["training.devices=2"]))
    alone = RunFolder(finished_run)
    ours, theirs = folder.load_checkpoint("last"), alone.load_checkpoint("last")
    assert ours["progression"]["step"] == theirs["progression"]["step"]
    for name, tensor in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], tensor, rtol=2e-2, atol=2e-3, msg=name)
    shared_scores, scores = read_scores(folder.scores), read_scores(alone.scores)
    keys = [[(row.case, row.structure, row.metric) for row in rows] for rows in (shared_scores, scores)]
    assert keys[0] == keys[1]  # each case once
    for shared_row, row in zip(folder.read_history(), alone.read_history(), strict=True):
        assert float(shared_row["train_loss"]) == pytest.approx(float(row["train_loss"]), rel=1e-2)
        assert float(shared_row["validation_dsc"]) == pytest.approx(float(row["validation_dsc"]), abs=1e-2)
    dsc = [[row.value for row in rows if row.metric == "dsc"] for rows in (shared_scores, scores)]
    torch.testing.assert_close(torch.tensor(dsc[0]), torch.tensor(dsc[1]), rtol=0, atol=2e-2, equal_nan=True)
    assert folder.read()["processes"] == {"devices": 2, "nodes": 1}
    # What both scored together is what one process scores with the same weights.
    best = folder.read_history()[ours["progression"]["best_epoch"] - 1]
    experiment = rebuild(load_recipe(folder.recipe), folder)
    validation = validate(experiment, load_segmenter(experiment, folder), "validation", torch.device("cpu"))
    assert float(best["validation_dsc"]) == pytest.approx(validation.dsc, rel=1e-6)
    for name, mean in validation.groups.items():
        assert float(best[f"validation_dsc_{name}"]) == pytest.approx(mean, rel=1e-6)


LEARNED_LOSS = """
from torch import nn

from textseg import hookimpl
from textseg.contracts import Features, Task


class LearnedLoss(nn.Module):
    def __init__(self, task: Task, features: Features):
        super().__init__()
        self.layer = nn.Conv2d(features.channels[0], 1, 1)

    def forward(self, output, batch):
        return self.layer(output.fused_features[0]).float().square().mean()


@hookimpl
def textseg_register(register):
    register.auxiliary_loss("learned", LearnedLoss)
"""

TWO_STEPS = """
import sys
from pathlib import Path

import torch

from textseg.recipe.loading import load_recipe
from textseg.runs.folder import RunFolder
from textseg.system import distributed
from textseg.training.loop import Training
from textseg.training.run import _connected, prepared

recipe, folder, *overrides = sys.argv[1:]
resolved = load_recipe(Path(recipe), overrides)
torch.set_num_threads(1)
training = Training(prepared(resolved), RunFolder(Path(folder)), _connected(resolved.training, "32-true"))
before = {name: parameter.detach().clone() for name, parameter in training.model.named_parameters()}
training._start_epoch(0)
for _, batch in zip(range(2), training._batches(0)):
    training.training_step(batch)
after = {name: parameter.detach() for name, parameter in training.model.named_parameters()}
torch.save({"before": before, "after": after}, Path(folder) / f"{distributed.rank()}.pt")
distributed.gathered("saved")
training = None
distributed.disconnect()
"""


def test_two_processes_agree_on_the_weights_of_an_auxiliary_loss(
    tiny_recipe: Path, tmp_path: Path, install_into: Any, installed_from: Any
) -> None:
    (tmp_path / "site").mkdir()
    install_into(tmp_path / "site", "learned", "learned_loss", {"plugin": LEARNED_LOSS})
    overrides = ["auxiliary_losses=[{use: learned, weight: 0.5}]", "training.average_decay=null", "training.devices=2"]
    with installed_from(tmp_path / "site"):
        run_together([sys.executable, "-c", TWO_STEPS, str(tiny_recipe), str(tmp_path), *overrides], 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    learned = [name for name in first["after"] if name.startswith("auxiliary.learned.")]
    assert len(learned) == 2
    for name, weights in first["after"].items():
        assert torch.equal(weights, second["after"][name]), name  # though each saw other slices
    for name in learned:
        assert torch.equal(first["before"][name], second["before"][name])
        assert not torch.equal(first["after"][name], first["before"][name])


LEARNS = (
    *(f"training.{value}" for value in ("epochs=50", "validate_every=25", "average_decay=null", "schedule=one_cycle")),
    *(f"training.{value}" for value in ("optimizer=sgd", "momentum=0.9", "learning_rate=0.1", "gradient_clip=1.0")),
    *("model.vision_encoder.channels=[16,32,64]", "augmentation={}"),
)


@pytest.mark.nightly  # its first steps are tested above
@pytest.mark.slow
def test_two_processes_learn_as_one(tiny_recipe: Path, tmp_path: Path) -> None:
    single = RunFolder(run(tiny_recipe, output=tmp_path / "one", overrides=LEARNS))
    double = RunFolder(run(tiny_recipe, output=tmp_path / "two", overrides=[*LEARNS, "training.devices=2"]))
    tests = [folder.read()["test"] for folder in (single, double)]
    assert min(test["dsc"] for test in tests) > 0.2  # they have learned something
    assert tests[1]["dsc"] == pytest.approx(tests[0]["dsc"], abs=0.02)
    assert tests[1]["jaccard"] == pytest.approx(tests[0]["jaccard"], abs=0.02)
    losses = [[float(row["train_loss"]) for row in folder.read_history()] for folder in (single, double)]
    assert losses[1][:2] == pytest.approx(losses[0][:2], rel=1e-5)  # before rounding grows, step by step
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    scores = [read_scores(folder.scores) for folder in (single, double)]
    assert [(row.place, row.metric) for row in scores[0]] == [(row.place, row.metric) for row in scores[1]]


MORTAL = """
import os, signal

from torch import nn

from textseg import hookimpl
from textseg.contracts import Features, Task


class Mortal(nn.Module):
    def __init__(self, task: Task, features: Features):
        super().__init__()
        self.steps = 0

    def forward(self, output, batch):
        self.steps += 1
        if self.steps == 8 and "MORTAL" in os.environ and os.environ["LOCAL_RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return (output.fused_features[0] * 0).sum()


@hookimpl
def textseg_register(register):
    register.auxiliary_loss("mortal", Mortal)
"""


@pytest.mark.slow
@pytest.mark.parametrize("on", ["workers", pytest.param("device", marks=pytest.mark.nightly)])
def test_a_process_lost_inside_an_epoch_ends_the_run_which_goes_on(
    on: str, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install_into: Any, installed_from: Any
) -> None:
    (tmp_path / "site").mkdir()
    install_into(tmp_path / "site", "mortal", "mortal_loss", {"plugin": MORTAL})
    overrides = [
        "auxiliary_losses=[{use: mortal, weight: 1.0}]",
        "training.devices=2",
        "evaluation.metrics=[dsc]",
        "prompts.template=uncounted",
        "prompts.training={template: 0.3, interactive: 0.7}",
        "prompts.renumbering={probability: 0.7, levels: 2, where: anywhere}",
        "augmentation.field_of_view={probability: 0.7}",
        f"augmentation.on={on}",
    ]
    with installed_from(tmp_path / "site"):
        whole = RunFolder(run(tiny_recipe, output=tmp_path / "whole", overrides=overrides))
        with monkeypatch.context() as patch:
            patch.setenv("MORTAL", "yes")
            with pytest.raises(RunError, match="Process 2 of 2 was ended by SIGKILL, and the run with it. What was sa"):
                run(tiny_recipe, output=tmp_path / "lost", overrides=overrides)
        lost = RunFolder.existing(tmp_path / "lost" / "tiny")
        progression = lost.load_checkpoint("last")["progression"]
        assert (progression["step"], len(progression["history"])) == (5, 1)  # the second epoch was lost
        run(tiny_recipe, output=tmp_path / "lost", overrides=overrides)
    ours, theirs = lost.load_checkpoint("last")["model"], whole.load_checkpoint("last")["model"]
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert lost.scores.read_bytes() == whole.scores.read_bytes()


def srun(recipe: Path, output: Path, job: int) -> list[subprocess.Popen[bytes]]:
    """Start a run as SLURM does: two tasks of one node, each told by its environment which it is."""
    overrides = [part for value in ("training.devices=2", "training.epochs=8") for part in ("--set", value)]
    command = [sys.executable, "-m", "textseg", "run", str(recipe), *overrides, "--output", str(output)]
    shared = {"SLURM_JOB_ID": str(job), "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    shared |= {"SLURM_NNODES": "1", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0"}
    return [
        subprocess.Popen(command, env={**os.environ, **shared, "SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in "01"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)],
    ids=["before_the_time_is_up", "on_preemption"],
)
def test_a_job_of_slurm_saves_when_its_time_is_up_and_goes_on_when_it_is_queued_again(
    number: signal.Signals, tiny_recipe: Path, tmp_path: Path
) -> None:
    assert [task.wait() for task in srun(tiny_recipe, tmp_path / "whole", 1001)] == [0, 0]
    whole, cut = (RunFolder(tmp_path / name / "tiny" / "seed2025") for name in ("whole", "cut"))
    tasks = srun(tiny_recipe, tmp_path / "cut", 1002)
    while not cut.checkpoint("last").exists():
        assert [task.poll() for task in tasks] == [None, None]
        time.sleep(0.05)
    for task in tasks:
        task.send_signal(number)
    assert [task.wait() for task in tasks] == [130, 130]  # by which the script knows that the job is to queue again
    steps = [folder.load_checkpoint("last")["progression"]["step"] for folder in (cut, whole)]
    assert 0 < steps[0] < steps[1]
    assert [task.wait() for task in srun(tiny_recipe, tmp_path / "cut", 1002)] == [0, 0]
    ours, theirs = cut.load_checkpoint("last")["model"], whole.load_checkpoint("last")["model"]
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert cut.scores.read_bytes() == whole.scores.read_bytes()


@pytest.mark.parametrize(
    ("code", "requeued"),
    [(0, False), (1, False), (2, False), (130, True), (137, False), (138, True), (139, False), (143, True)],
)
def test_the_script_for_slurm_queues_the_job_again_only_when_its_time_was_up(
    code: int, requeued: bool, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs/how_to/many_devices.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n#SBATCH.*?)^```", page, re.MULTILINE | re.DOTALL)
    for name, last in (("srun", f"exit {code}"), ("scontrol", "")):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> "{tmp_path}/called"\n{last}\n')
        (tmp_path / name).chmod(0o755)
    surroundings = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "1003"}
    assert subprocess.run(["bash", "-c", script], env=surroundings, check=False).returncode == code
    run_of_tasks, *later = (tmp_path / "called").read_text().splitlines()
    assert run_of_tasks.startswith("srun --kill-on-bad-exit=1 textseg run recipes/atmnet_spider.yaml")
    assert later == (["scontrol requeue 1003"] if requeued else [])


@pytest.mark.parametrize("dry_run", [False, True])
def test_more_devices_than_the_machine_has_are_refused_at_once(
    dry_run: bool, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(RecipeError, match=r"training.devices is 100000, and this machine has \d+ .*at most"):
        run(tiny_recipe, output=tmp_path, overrides=["training.devices=100000"], dry_run=dry_run)
    assert not list(tmp_path.iterdir())


def test_what_can_not_be_shared_is_a_message(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a batch of 4 slices can't be divided among 3 .* 1, 2, 4 are possible"):
        check_shares(4, "slice", 3)
    with pytest.raises(RecipeError, match="the network reads a whole volume in a step"):
        check_shares(1, "volume", 3)
    with pytest.raises(RunError, match="no process was started on each node. .* torchrun or srun"):
        run(tiny_recipe, output=tmp_path, overrides=["training.nodes=2"])
