"""Tests that all networks without text share; each network's own file has the rest."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import textseg_atmnet
from textseg.contracts import Atlas, SegmenterOutput, Structure, Task
from textseg.models.segmenter import Segmenter
from textseg.registry.discovery import installed_registry

PUBLISHED = Path(textseg_atmnet.__file__).parent / "published" / "complexity.csv"
SMALL: Mapping[str, Mapping[str, Any]] = {
    "attention_unet": {"channels": [4, 6, 8]},
    "modified_bisenet": {"channels": 4},
    "nnunet_v2": {"features": 4, "max_features": 16},
    "segresnet": {},
    "swin_unetr": {"feature_size": 12},
    "u_bisenet": {"channels": 8},
    "unet": {"channels": [4, 6, 8]},
    "unetr": {"feature_size": 4, "hidden_size": 24, "feed_forward_size": 32, "heads": 3},
}
each = pytest.mark.parametrize("name", SMALL)


def task_of(sides: tuple[int, int], channels: int = 1, structures: int = 3) -> Task:
    atlas = Atlas("row", tuple(Structure(f"s{index}", "part", index) for index in range(1, structures + 1)))
    return Task(channels, sides, atlas.class_count, atlas)


def built(name: str, task: Task, **settings: Any) -> Any:
    torch.manual_seed(0)
    return installed_registry().build("network", name, task, settings=settings or SMALL[name])


def loss_of(output: SegmenterOutput) -> Tensor:
    """Return different weights for each position, so that no normalisation cancels a gradient."""
    maps = (output.logits, *output.deep_logits)
    torch.manual_seed(3)
    return torch.stack([(logits.float() * torch.randn(logits.shape)).mean() for logits in maps]).sum()


@each
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("structures", [1, 3])
def test_logits_have_the_size_of_a_slice_that_is_no_square(name: str, channels: int, structures: int) -> None:
    multiple = built(name, task_of((64, 96))).size_multiple
    sides = (2 * multiple, 3 * multiple)
    task = task_of(sides, channels, structures)
    network = built(name, task)
    assert sides[0] % network.size_multiple == sides[1] % network.size_multiple == 0
    assert not network.uses_text
    with torch.no_grad():
        logits = Segmenter(network).eval()(torch.randn(1, channels, *sides)).logits
    assert logits.shape == (1, structures + 1, *sides)
    assert logits.isfinite().all()


@each
def test_a_slice_of_any_size_is_padded(name: str) -> None:
    task = task_of((50, 70))
    with torch.no_grad():
        logits = Segmenter(built(name, task)).eval()(torch.randn(2, 1, 50, 70)).logits
    assert logits.shape == (2, task.class_count, 50, 70)


@each
def test_every_parameter_gets_a_finite_gradient_from_a_batch_of_one(name: str) -> None:
    network = built(name, task_of((64, 96)))
    loss_of(network(torch.randn(1, 1, 64, 96), None)).backward()
    without = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []
    gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    matrices = {key: gradient for key, gradient in gradients.items() if gradient.ndim > 1}
    assert [key for key, gradient in matrices.items() if not gradient.any()] == []


@each
def test_it_computes_in_bfloat16_near_full_precision(name: str) -> None:
    network = built(name, task_of((64, 96))).eval()
    image = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        full = network(image, None).logits
        with torch.autocast("cpu", torch.bfloat16):
            half = network(image, None).logits
    assert half.isfinite().all()
    assert (half.float() - full).abs().max() < 0.1 * full.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(network.train()(image, None)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@each
def test_weights_go_into_a_new_network_and_nothing_draws(name: str) -> None:
    task = task_of((64, 96))
    network, image = built(name, task), torch.randn(2, 1, 64, 96)
    network(image, None)  # running means, where it has them
    torch.manual_seed(9)
    reloaded = installed_registry().build("network", name, task, settings=SMALL[name])
    reloaded.load_state_dict(network.state_dict())
    for mode in (False, True):
        torch.manual_seed(int(mode))
        first = network.train(mode)(image, None).logits
        torch.manual_seed(int(mode) + 7)
        assert torch.equal(reloaded.train(mode)(image, None).logits, first)


@each
def test_it_fits_two_slices(name: str) -> None:
    """A network that can't learn two slices by heart learns nothing."""
    task = task_of((64, 96), structures=2)
    network = built(name, task).train()
    mask = torch.zeros(2, 64, 96, dtype=torch.long)
    mask[0, 10:30, 20:60], mask[1, 30:60, 40:80] = 1, 2
    torch.manual_seed(4)
    image = (mask.float() + 0.1 * torch.randn(mask.shape))[:, None]
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    segmenter = Segmenter(network)
    for _ in range(40):
        loss = nn.functional.cross_entropy(segmenter(image).logits, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * math.log(task.class_count)


@pytest.mark.parametrize("name", ["unet", "unetr", "segresnet", "attention_unet", "swin_unetr"])
def test_it_has_the_published_size(name: str) -> None:
    """Position embeddings and tables are bare parameters, which the published count leaves out."""
    rows = csv.DictReader(PUBLISHED.read_text(encoding="utf-8").splitlines())
    published = {row["method"]: float(row["parameters_m"]) for row in rows}
    task = replace(task_of((384, 384)), class_count=20)
    network = installed_registry().build("network", name, task, settings={})
    counted = sum(tensor.numel() for key, tensor in network.named_parameters() if "position" not in key)
    assert counted / 1e6 == pytest.approx(published[name], abs=0.01)


@pytest.mark.parametrize(("name", "published"), [("modified_bisenet", 41.91), ("u_bisenet", 12.59)])
def test_what_is_restored_from_a_description_comes_near_the_published_size(name: str, published: float) -> None:
    task = replace(task_of((384, 384)), class_count=20)
    network = installed_registry().build("network", name, task, settings={})
    count = sum(tensor.numel() for tensor in network.parameters()) / 1e6
    assert count == pytest.approx(published, rel=0.2)
    assert f"{count:.1f} M parameters" in " ".join((type(network).__doc__ or "").split())
