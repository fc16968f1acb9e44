"""Tests that all networks with guide decoders share; each network's own file has the rest."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import textseg_atmnet
from textseg.contracts import Atlas, Batch, Structure, Task, TextFeatures
from textseg.errors import RecipeError
from textseg.models.cost import empty_text
from textseg.models.losses import segmentation_loss
from textseg.models.segmenter import Segmenter
from textseg.registry.discovery import installed_registry
from textseg_baselines.ariadnes_thread import AriadnesThread
from textseg_baselines.tevia import TeViA

PUBLISHED = Path(textseg_atmnet.__file__).parent / "published" / "complexity.csv"
TINY: dict[str, Any] = {"widths": (4, 8, 16), "depths": (1, 1, 1), "text_tokens": (5, 3)}
T, D = 6, 10
BERT = 85.054  # million parameters in the layers of BERT-base; its tables of embeddings have 23.837 more

each = pytest.mark.parametrize("network_class", [AriadnesThread, TeViA])
NetworkClass = type[AriadnesThread] | type[TeViA]


def task_of(sides: tuple[int, int] = (32, 48), channels: int = 1, structures: int = 3) -> Task:
    atlas = Atlas("row", tuple(Structure(f"s{index}", "part", index) for index in range(1, structures + 1)))
    return Task(channels, sides, atlas.class_count, atlas, text_size=D, text_length=T)


def built(network_class: NetworkClass, task: Task, **settings: Any) -> Any:
    torch.manual_seed(0)
    return network_class(task, **{**TINY, **settings})


def some_text(batch: int, structures: int = 3) -> TextFeatures:
    generator = torch.Generator().manual_seed(5)
    mask = torch.arange(T) < torch.tensor([[4], [5]])[:batch]
    tokens = torch.randn(batch, T, D, generator=generator) * mask[..., None]
    classwise = torch.randn(batch, structures, D, generator=generator)
    return TextFeatures(tokens, mask, classwise, torch.ones(batch, structures, dtype=torch.bool))


def batch_of(image: Tensor, mask: Tensor, text: TextFeatures) -> Batch:
    index = torch.arange(len(image))
    return Batch(image, mask, text, ("case",) * len(image), index, index, torch.ones(len(image), 3))


def terms_of(network: Any, batch: Batch) -> dict[str, Tensor]:
    """Return the losses as the training loop computes them."""
    output, loss = Segmenter(network)(batch.image, batch.text), segmentation_loss({}, task_of())
    terms: dict[str, Tensor] = (
        network.losses(output, batch, loss) if hasattr(network, "losses") else loss(output.logits, batch.mask)
    )
    return terms


@each
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("structures", [1, 3])
@pytest.mark.parametrize(("batch", "sides"), [(1, (32, 48)), (2, (50, 70))])
def test_logits_have_the_size_of_a_slice_that_is_no_square(
    network_class: NetworkClass, channels: int, structures: int, batch: int, sides: tuple[int, int]
) -> None:
    network = built(network_class, task_of(sides, channels, structures))
    assert network.uses_text
    assert network.size_multiple == 16
    with torch.no_grad():
        output = Segmenter(network).eval()(torch.randn(batch, channels, *sides), some_text(batch, structures))
    assert output.logits.shape == (batch, structures + 1, *sides)
    assert output.logits.isfinite().all()


@each
def test_text_changes_the_result_and_padding_does_not(network_class: NetworkClass) -> None:
    network, image, text = built(network_class, task_of()).eval(), torch.randn(2, 1, 32, 48), some_text(2)
    if network_class is TeViA:
        network.known.fill_(True)
        network.prototypes.normal_()
        network.start_epoch(1, 2)
    with torch.no_grad():
        logits = network(image, text).logits
        for rubbish in (1e3, math.nan, math.inf):
            padded = replace(text, tokens=text.tokens.masked_fill(~text.mask[..., None], rubbish))
            assert torch.equal(network(image, padded).logits, logits)
        changed = network(image, replace(text, tokens=-text.tokens)).logits
    assert (changed - logits).abs().max() > 1e-2 * logits.abs().max()


@each
@pytest.mark.parametrize("batch", [1, 2])
def test_every_parameter_gets_a_finite_gradient(network_class: NetworkClass, batch: int) -> None:
    network = built(network_class, task_of())
    mask = torch.randint(0, 4, (batch, 32, 48), generator=torch.Generator().manual_seed(1))
    terms = terms_of(network, batch_of(torch.randn(batch, 1, 32, 48), mask, some_text(batch)))
    torch.stack(list(terms.values())).sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    still = [name for name, gradient in gradients.items() if gradient.ndim > 1 and not gradient.any()]
    assert still == []


@each
def test_it_computes_in_bfloat16_near_full_precision(network_class: NetworkClass) -> None:
    network, image, text = built(network_class, task_of()).eval(), torch.randn(1, 1, 32, 48), some_text(1)
    with torch.no_grad():
        full = network(image, text).logits
        with torch.autocast("cpu", torch.bfloat16):
            half = network(image, text).logits
    assert half.isfinite().all()
    assert (half.float() - full).abs().max() < 0.1 * full.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        terms = terms_of(network.train(), batch_of(image, torch.ones(1, 32, 48, dtype=torch.long), text))
    assert all(term.dtype == torch.float32 for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@each
def test_it_fits_two_slices(network_class: NetworkClass) -> None:
    network = built(network_class, task_of(structures=2), widths=(8, 16, 24))
    mask = torch.zeros(2, 32, 48, dtype=torch.long)
    mask[0, 5:15, 10:30], mask[1, 15:30, 20:40] = 1, 2
    torch.manual_seed(4)
    batch = batch_of((mask.float() + 0.1 * torch.randn(mask.shape))[:, None], mask, some_text(2, structures=2))
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    for step in range(60):
        if network_class is TeViA:
            network.start_epoch(step // 20, 3)
        loss = torch.stack(list(terms_of(network, batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    label_map = Segmenter(network).eval()(batch.image, batch.text).logits.argmax(1)
    assert (label_map == mask)[mask > 0].float().mean() > 0.9


@each
def test_text_must_be_there(network_class: NetworkClass) -> None:
    with pytest.raises(RecipeError, match="reads text, and the recipe has no prompts"):
        built(network_class, replace(task_of(), text_size=None, text_length=None))
    with pytest.raises(ValueError, match="needs text features"):
        built(network_class, task_of())(torch.randn(1, 1, 32, 48), None)


@each
def test_its_weights_may_be_fetched(network_class: NetworkClass) -> None:
    component = installed_registry().component("network", "tevia" if network_class is TeViA else "ariadnes_thread")
    assert component.load() is network_class
    message = component.fetch({"widths": [4, 8], "depths": [1, 1]}, lambda name, done, total: None)
    assert message == "ConvNeXt with random weights: nothing to fetch"


@pytest.mark.parametrize(
    ("network_class", "name", "ours"), [(AriadnesThread, "ariadnes_thread", 42.57), (TeViA, "tevia", 42.88)]
)
def test_the_published_size_is_its_own_with_a_text_encoder(network_class: NetworkClass, name: str, ours: float) -> None:
    """Frozen, and run before training here. No choice of what the papers leave open gives the rows exactly."""
    rows = csv.DictReader(PUBLISHED.read_text(encoding="utf-8").splitlines())
    published = {row["method"]: float(row["parameters_m"]) for row in rows}
    task = replace(task_of((384, 384), structures=19), text_size=768, text_length=217)
    with torch.device("meta"):
        network = network_class(task)
        logits = network(torch.zeros(1, 1, 384, 384), empty_text(task, torch.device("meta"))).logits
    assert logits.shape == (1, 20, 384, 384)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(ours, abs=0.005)
    encoder = sum(parameter.numel() for parameter in network.encoder.parameters()) / 1e6
    assert BERT + encoder < published[name] < BERT + ours
    assert BERT + ours == pytest.approx(published[name], rel=0.12)
