from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor

from textseg.contracts import Atlas, Batch, Task, TextFeatures
from textseg.errors import RecipeError
from textseg.models.losses import segmentation_loss
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.training.loop import Training
from textseg_baselines.tevia import TeViA, TeViAOutput

T, D, E = 6, 10, 4
TINY: dict[str, Any] = {"widths": (E, 8, 16), "depths": (1, 1, 1), "text_tokens": (5, 3)}


@pytest.fixture
def task(small_atlas: Atlas) -> Task:
    return Task(1, (32, 48), small_atlas.class_count, small_atlas, text_size=D, text_length=T)


def network(task: Task, **settings: Any) -> TeViA:
    torch.manual_seed(0)
    return TeViA(task, **{**TINY, **settings})


def batch_of(*shown: int, seed: int = 1) -> Batch:
    """Two slices of 30 x 46, which the core pads to 32 x 48; each structure in its own bar, some in one slice only."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(2, 30, 46, dtype=torch.long)
    for index in shown:
        mask[0, 6 * index : 6 * index + 5, 3 * index : 40] = index
        mask[1, 6 * index : 6 * index + 3, 20:45] = index if index % 2 else 0
    text = TextFeatures(
        torch.randn(2, T, D, generator=generator),
        torch.ones(2, T, dtype=torch.bool),
        torch.randn(2, 4, D, generator=generator),
        torch.ones(2, 4, dtype=torch.bool),
    )
    index = torch.arange(2)
    return Batch(torch.randn(2, 1, 30, 46, generator=generator), mask, text, ("a", "b"), index, index, torch.ones(2, 3))


def output_of(batch: Batch, seed: int = 2) -> TeViAOutput:
    generator = torch.Generator().manual_seed(seed)
    return TeViAOutput(
        logits=torch.randn(2, 5, 30, 46, generator=generator),
        decoded=torch.randn(2, E, 8, 12, generator=generator),
        projected_text=tuple(torch.randn(2, 4, E, generator=generator, requires_grad=True) for _ in range(2)),
    )


def mean_of(decoded: Tensor, mask: Tensor, index: int) -> Tensor:
    """The mean of a map at stride 4 over the pixels of one structure in [B, 30, 46]."""
    pixels = decoded.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :30, :46]
    return pixels.movedim(1, -1)[mask == index].mean(0)


def test_the_alignment_is_the_mean_cosine_distance_of_what_is_shown(task: Task) -> None:
    built, batch = network(task, alignment_weight=0.3), batch_of(1, 2)
    output = output_of(batch)
    terms = built.losses(output, batch, segmentation_loss({}, task))
    distances = []
    for image, index in ((0, 1), (0, 2), (1, 1)):  # the second slice doesn't show structure 2
        visual = mean_of(output.decoded[image : image + 1], batch.mask[image : image + 1], index)
        for text in output.projected_text:
            spoken = text[image, index - 1]
            distances.append(1 - (spoken @ visual) / (spoken.norm() * visual.norm()))
    torch.testing.assert_close(terms["alignment"], 0.3 * torch.stack(distances).mean())
    plain = segmentation_loss({}, task)(output.logits, batch.mask)
    assert terms.keys() == {*plain, "alignment"}
    assert all(torch.equal(terms[name], plain[name]) for name in plain)


def test_a_batch_without_structures_has_nothing_to_align(task: Task) -> None:
    built, batch = network(task), batch_of()
    output = output_of(batch)
    terms = built.losses(output, batch, segmentation_loss({}, task))
    assert terms["alignment"].item() == 0
    terms["alignment"].backward()
    assert all(text.grad is not None and not text.grad.any() for text in output.projected_text)
    assert not built.known.any()


def test_the_image_supervises_the_text(task: Task) -> None:
    built, batch = network(task), batch_of(1, 2, 3, 4)
    output = built(F.pad(batch.image, (0, 2, 0, 2)), batch.text)
    output = replace(output, logits=output.logits[..., :30, :46])
    built.losses(output, batch, segmentation_loss({}, task))["alignment"].backward()
    learned = {name for name, weight in built.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert {"prompt", "to_visual.0.weight", "decoders.0.text_projection.weight"} <= learned
    assert not any(name.startswith(("encoder", "head")) or ".up." in name for name in learned)


def test_prototypes_follow_the_means_of_the_batches(task: Task) -> None:
    built, first, second = network(task, momentum=0.9), batch_of(1, 2), batch_of(2, 3)
    first_output, second_output = output_of(first), output_of(second, seed=3)
    built.losses(first_output, first, segmentation_loss({}, task))
    assert built.known.tolist() == [True, True, False, False]
    for index in (1, 2):
        torch.testing.assert_close(built.prototypes[index - 1], mean_of(first_output.decoded, first.mask, index))
    assert not built.prototypes[2:].any()
    before = built.prototypes.clone()
    built.losses(second_output, second, segmentation_loss({}, task))
    assert built.known.tolist() == [True, True, True, False]
    assert torch.equal(built.prototypes[0], before[0])  # not shown
    torch.testing.assert_close(
        built.prototypes[1], 0.9 * before[1] + 0.1 * mean_of(second_output.decoded, second.mask, 2)
    )
    torch.testing.assert_close(built.prototypes[2], mean_of(second_output.decoded, second.mask, 3))
    assert not built.prototypes[3].any()


def test_renumbered_slices_leave_the_prototypes_as_they_are(task: Task) -> None:
    built, batch = network(task), batch_of(1, 2, 3)
    output = output_of(batch)
    renumbered = replace(batch, renumbered=torch.tensor([False, True]))
    aligned = built.losses(output, renumbered, segmentation_loss({}, task))["alignment"]
    assert built.known.tolist() == [True, True, True, False]
    for index in (1, 2, 3):
        torch.testing.assert_close(built.prototypes[index - 1], mean_of(output.decoded[:1], batch.mask[:1], index))
    before, known = built.prototypes.clone(), built.known.clone()
    built.losses(
        output_of(batch, seed=3),
        replace(batch, renumbered=torch.ones(2, dtype=torch.bool)),
        segmentation_loss({}, task),
    )
    assert torch.equal(built.prototypes, before)
    assert torch.equal(built.known, known)
    # The alignment reads the names that the text states, and none renumbered is the same as no renumbering.
    twins = [network(task), network(task)]
    nobody = torch.zeros(2, dtype=torch.bool)
    batches = (batch, replace(batch, renumbered=nobody))
    terms = [
        twin.losses(output, shown, segmentation_loss({}, task)) for twin, shown in zip(twins, batches, strict=True)
    ]
    assert torch.equal(twins[0].prototypes, twins[1].prototypes)
    assert torch.equal(terms[0]["alignment"], aligned)


def test_prototypes_rest_outside_training(task: Task) -> None:
    built, batch = network(task), batch_of(1, 2, 3, 4)
    built.losses(output_of(batch), batch, segmentation_loss({}, task))
    before = built.prototypes.clone()
    built.eval()
    built.losses(output_of(batch, seed=3), batch, segmentation_loss({}, task))
    built(F.pad(batch.image, (0, 2, 0, 2)), batch.text)
    assert torch.equal(built.prototypes, before)


def test_what_is_no_number_is_not_remembered(task: Task) -> None:
    built, batch = network(task), batch_of(1, 2)
    output = output_of(batch)
    built.losses(output, batch, segmentation_loss({}, task))
    before = built.prototypes.clone()
    output.decoded[0, :, 1, 2] = torch.inf
    built.losses(output, batch, segmentation_loss({}, task))
    assert torch.equal(built.prototypes, before)


def test_processes_agree_on_their_prototypes(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = batch_of(1, 2), batch_of(2, 3)
    outputs = [output_of(batch, seed) for seed, batch in enumerate(batches)]
    joined = replace(batches[0], mask=torch.cat([batch.mask for batch in batches]))
    alone = network(task)
    alone.losses(
        TeViAOutput(
            logits=torch.cat([output.logits for output in outputs]),
            decoded=torch.cat([output.decoded for output in outputs]),
            projected_text=tuple(
                torch.cat(level) for level in zip(*(output.projected_text for output in outputs), strict=True)
            ),
        ),
        joined,
        segmentation_loss({}, task),
    )
    sums = [alone._sums(output.decoded, batch.mask) for output, batch in zip(outputs, batches, strict=True)]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (0, 1):
        others = iter([part.sum(0) for part in sums[1 - rank]])
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, others=others: tensor.add_(next(others)))
        built = network(task)
        built.losses(outputs[rank], batches[rank], segmentation_loss({}, task))
        torch.testing.assert_close(built.prototypes, alone.prototypes)
        assert torch.equal(built.known, alone.known)


@pytest.mark.parametrize(("share", "epochs", "first"), [(0.2, 100, 20), (0.2, 60, 12), (0.0, 3, 0), (1.0, 3, None)])
def test_prototypes_weigh_after_a_share_of_the_epochs(task: Task, share: float, epochs: int, first: int | None) -> None:
    built = network(task, prototype_start=share)
    weighing = []
    for epoch in range(epochs):
        built.start_epoch(epoch, epochs)
        weighing.append(bool(built.weighing))
    assert weighing == [first is not None and epoch >= first for epoch in range(epochs)]


def test_tokens_are_weighed_by_their_nearest_known_prototype(task: Task) -> None:
    built = network(task)
    tokens, to_visual = torch.randn(2, 3, 8), built.to_visual[1]
    built.prototypes.copy_(torch.randn(4, E))
    built.prototypes[3] = to_visual(tokens[0, 0]).detach()  # nearest of all, and not known
    built.known.copy_(torch.tensor([True, True, False, False]))
    assert torch.equal(built._reweighted(to_visual, tokens), tokens)
    built.start_epoch(5, 5)
    expected = torch.zeros_like(tokens)
    for b in range(2):
        for n in range(3):
            projected = to_visual(tokens[b, n])
            cosines = [torch.cosine_similarity(projected, built.prototypes[k], dim=0) for k in (0, 1)]
            expected[b, n] = tokens[b, n] * (1 + max(*cosines, torch.tensor(0.0)))
    torch.testing.assert_close(built._reweighted(to_visual, tokens), expected)
    assert not torch.equal(expected, tokens)


def test_a_prompt_of_zero_leaves_the_text_as_it_is(task: Task) -> None:
    built, batch = network(task).eval(), batch_of()
    assert batch.text is not None
    assert batch.text.classwise is not None
    image = F.pad(batch.image, (0, 2, 0, 2))
    with torch.no_grad():
        plain = built(image, batch.text).logits
        built.prompt.fill_(0.5)  # text + 0.5 text
        prompted = built(image, batch.text).logits
        built.prompt.zero_()
        louder = replace(batch.text, tokens=1.5 * batch.text.tokens, classwise=1.5 * batch.text.classwise)
        torch.testing.assert_close(built(image, louder).logits, prompted)
    assert not torch.equal(plain, prompted)


def test_the_prompts_of_the_structures_take_part_in_the_alignment_alone(task: Task) -> None:
    built, batch = network(task).eval(), batch_of()
    assert batch.text is not None
    assert batch.text.classwise is not None
    image = F.pad(batch.image, (0, 2, 0, 2))
    with torch.no_grad():
        plain = built(image, batch.text)
        moved = built(image, replace(batch.text, classwise=batch.text.classwise + 3))
        assert torch.equal(moved.logits, plain.logits)
        assert not torch.equal(moved.projected_text[0], plain.projected_text[0])
        assert not torch.equal(built(image, replace(batch.text, tokens=batch.text.tokens + 3)).logits, plain.logits)
    with pytest.raises(RecipeError, match="tevia needs class-wise text features"):
        built(image, replace(batch.text, classwise=None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alignment_weight": -0.1}, "alignment_weight is -0.1, but must not be below 0"),
        ({"momentum": 1.1}, "momentum is 1.1, but must lie between 0 and 1"),
        ({"prototype_start": -1.0}, "prototype_start is -1.0, but must lie between 0 and 1"),
        ({"heads": 3}, "tevia: heads is 3"),
    ],
)
def test_settings_out_of_range_are_refused(task: Task, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        network(task, **settings)


@pytest.mark.usefixtures("stranger")
def test_a_run_that_goes_on_has_the_same_prototypes(tiny_recipe: Path, tmp_path: Path) -> None:
    model = "{use: tevia, widths: [4, 8], depths: [1, 1], text_tokens: [3], prototype_start: 0.5, momentum: 0.5}"
    changes = [f"model={{network: {model}}}", "auxiliary_losses=[]", "training.epochs=2"]
    experiment = build(load_recipe(tiny_recipe, changes))

    def start(name: str) -> Training:
        fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
        return Training(experiment, RunFolder(tmp_path / name), fabric)

    whole = start("whole")
    whole.fit()
    stopped = start("stopped")
    stopped.request_stop()  # after the first step of all
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    continued = start("stopped")
    continued.resume()
    assert torch.equal(continued.segmenter.network.prototypes, stopped.segmenter.network.prototypes)
    assert continued.segmenter.network.prototypes.any()
    continued.fit()
    expected, resumed = (run.folder.load_checkpoint("last") for run in (whole, continued))
    for part in ("training", "model"):
        assert expected[part].keys() == resumed[part].keys()
        assert all(torch.equal(tensor, resumed[part][key]) for key, tensor in expected[part].items())
    assert whole.segmenter.network.weighing
    assert whole.segmenter.network.known.any()
