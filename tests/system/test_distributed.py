from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from textseg.system import distributed
from textseg.training.launching import run_together
from textseg_standard.segmentation_losses.dice import Dice

SEVERAL = """
import os, sys
from pathlib import Path

import torch
import torch.distributed as dist
from textseg.system import distributed
from textseg_standard.segmentation_losses.dice import Dice

dist.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]))
distributed.connect()
rank, count = distributed.rank(), distributed.count()
done = []
items = list("abcde")
results = list(distributed.in_turns(items, lambda item: done.append(item) or (item, rank)))

logits = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
mask = torch.randint(3, (4, 6, 5), generator=torch.Generator().manual_seed(1))
mine = slice(2 * rank, 2 * rank + 2)
loss = Dice(None)(logits[mine], mask[mine])
loss.backward()
dist.all_reduce(logits.grad)

buffer = torch.nn.BatchNorm2d(1)
buffer.running_mean.fill_(rank + 1.0)
distributed.same_buffers(buffer)
stopping = distributed.any_says(rank == 1), distributed.any_says(False)
torch.save(
    {"done": done, "results": results, "gathered": distributed.gathered(rank), "stopping": stopping,
     "mean": buffer.running_mean, "loss": loss.detach(), "gradient": logits.grad / count,
     "logits": logits.detach(), "mask": mask},
    Path(sys.argv[1]) / f"{rank}.pt",
)
distributed.disconnect()
"""


def test_alone_nothing_is_asked_of_others() -> None:
    assert (distributed.rank(), distributed.count()) == (0, 1)
    assert distributed.gathered("x") == ["x"]
    assert list(distributed.in_turns([1, 2, 3], lambda item: item * item)) == [1, 4, 9]
    assert not distributed.any_says(False)
    tensor = torch.ones(2)
    assert distributed.summed(tensor) is tensor


def test_two_processes_share_work_and_a_loss(tmp_path: Path) -> None:
    run_together([sys.executable, "-c", SEVERAL, str(tmp_path)], 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (first["done"], second["done"]) == (["a", "c", "e"], ["b", "d"])  # each once, none twice
    assert first["results"] == second["results"] == [("a", 0), ("b", 1), ("c", 0), ("d", 1), ("e", 0)]
    for process in (first, second):
        assert process["gathered"] == [0, 1]
        assert process["stopping"] == (True, False)
        assert process["mean"] == 1.0
        whole = process["logits"].requires_grad_()
        loss = Dice(None)(whole, process["mask"])  # of the whole batch, in one process
        (gradient,) = torch.autograd.grad(loss, whole)
        torch.testing.assert_close(process["loss"], loss.detach())
        torch.testing.assert_close(process["gradient"], gradient)


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
