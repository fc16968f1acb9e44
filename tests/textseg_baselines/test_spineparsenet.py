from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from textseg.contracts import IGNORED, Atlas, Batch, Task
from textseg.errors import RecipeError
from textseg.models.losses import segmentation_loss
from textseg.models.segmenter import Segmenter
from textseg.testing.examples import REGION
from textseg_baselines.spineparsenet import CoarseOutput, ResidualUNet, SpineParseNet
from textseg_baselines.spineparsenet_coarse import StructureGraph

TINY: dict[str, Any] = {"coarse_size": (6, 32, 16), "coarse_width": 4, "hidden": 16, "widths": (8, 16)}


def task(atlas: Atlas) -> Task:
    return Task(1, (48, 40), atlas.class_count, atlas)


def network(atlas: Atlas, **settings: Any) -> SpineParseNet:
    torch.manual_seed(3)
    return SpineParseNet(task(atlas), **{**TINY, **settings})


def volume(slices: int, height: int = 48, width: int = 40) -> Batch:
    """Return a batch with a bright bar of each class at its own position, equal in every slice, with some noise."""
    mask = torch.zeros(slices, height, width, dtype=torch.long)
    for index in range(1, 5):
        mask[:, 8 * index : 8 * index + 5, width // 3 : width // 2] = index
    image = mask[:, None] + 0.1 * torch.randn(slices, 1, height, width, generator=torch.Generator().manual_seed(1))
    index = torch.arange(slices)
    return Batch(image, mask, None, ("a",) * slices, index, torch.full_like(index, slices), torch.ones(slices, 3))


def loss_of(network: SpineParseNet, batch: Batch) -> dict[str, Tensor]:
    return network.losses(network(batch.image, None), batch, segmentation_loss({}, task(REGION)))


def test_it_has_about_the_published_size(small_atlas: Atlas) -> None:
    built = SpineParseNet(replace(task(small_atlas), class_count=20, atlas=twenty()))
    coarse, fine = (sum(weight.numel() for weight in part.parameters()) for part in (built.coarse, built.fine))
    assert (coarse, fine) == (4_190_780, 11_784_852)
    assert coarse + fine == pytest.approx(15.95e6, rel=0.01)


def twenty() -> Atlas:
    from textseg.registry.discovery import installed_registry

    built: Atlas = installed_registry().build("atlas", "lumbar_spider", settings={})
    return built


@pytest.mark.parametrize(("slices", "sides"), [(1, (48, 40)), (2, (50, 33)), (5, (24, 64))])
@pytest.mark.parametrize("training", [True, False])
def test_it_segments_volumes_of_any_shape(
    slices: int, sides: tuple[int, int], training: bool, small_atlas: Atlas
) -> None:
    segmenter = Segmenter(network(small_atlas)).train(training)
    assert (segmenter.batching, segmenter.uses_text) == ("volume", False)
    for stage in (None, "coarse", "fine"):
        if stage:
            segmenter.network.start_stage(stage)
        output = segmenter(volume(slices, *sides).image)
        assert isinstance(output, CoarseOutput)  # also where the core has cut the padding off
        assert output.logits.shape == (slices, 5, *sides)
        assert output.coarse_logits.shape == (1, 5, 6, 32, 16)
        assert output.node_logits.shape == (5, 5)
        assert all(part.isfinite().all() for part in (output.logits, output.coarse_logits, output.node_logits))


@pytest.mark.parametrize("stage", ["coarse", "fine"])
@pytest.mark.parametrize("slices", [1, 5])
def test_each_stage_moves_its_own_part(stage: str, slices: int, small_atlas: Atlas) -> None:
    built = network(small_atlas, slices_at_once=2)
    built.start_stage("fine" if stage == "coarse" else "coarse")  # whatever came before
    built.start_stage(stage)
    terms = loss_of(built, volume(slices))
    assert terms.keys() == ({"coarse_cross_entropy", "nodes"} if stage == "coarse" else {"dice", "focal"})
    torch.stack(list(terms.values())).sum().backward()
    for name, weight in built.named_parameters():
        if name.startswith(stage):
            assert weight.grad is not None, name
            assert weight.grad.isfinite().all(), name
        else:
            assert weight.grad is None, name
    moved = [weight.grad.any() for weight in built.parameters() if weight.grad is not None]
    assert torch.stack(moved).float().mean() > 0.9


def test_without_a_stage_both_parts_are_trained(small_atlas: Atlas) -> None:
    built = network(small_atlas)
    terms = loss_of(built, volume(3))
    assert terms.keys() == {"coarse_cross_entropy", "nodes", "dice", "focal"}
    torch.stack(list(terms.values())).sum().backward()
    assert all(weight.grad is not None for weight in built.parameters())


def test_both_stages_learn_in_sequence(small_atlas: Atlas) -> None:
    built, batch = network(small_atlas), volume(3)
    optimizer = torch.optim.AdamW(built.parameters(), 5e-3)
    for stage, steps in (("coarse", 30), ("fine", 60)):
        built.start_stage(stage)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = torch.stack(list(loss_of(built, batch).values())).sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0], stage
    label_map = built.eval()(batch.image, None).logits.argmax(1)
    assert (label_map == batch.mask)[batch.mask > 0].float().mean() > 0.9


def test_the_loss_of_the_first_stage(small_atlas: Atlas) -> None:
    built = network(small_atlas, node_weight=0.3, columns=(0.0, 1.0))
    built.start_stage("coarse")
    batch = volume(6, 32, 16)  # the coarse grid itself, without the classes 3 and 4
    batch = replace(batch, mask=batch.mask * (batch.mask < 3))
    output = built(batch.image, None)
    terms = built.losses(output, batch, segmentation_loss({}, task(small_atlas)))
    expected = F.cross_entropy(output.coarse_logits, batch.mask[None])
    torch.testing.assert_close(terms["coarse_cross_entropy"], expected)
    nodes = F.cross_entropy(output.node_logits[:3], torch.arange(3))  # of what the volume shows
    torch.testing.assert_close(terms["nodes"], 0.3 * nodes)


def test_ignored_pixels_are_left_out_of_the_first_stage(small_atlas: Atlas) -> None:
    built = network(small_atlas, node_weight=0.3, columns=(0.0, 1.0))
    built.start_stage("coarse")
    batch = volume(6, 32, 16)
    output, terms = built(batch.image, None), segmentation_loss({}, task(small_atlas))
    mask = batch.mask * (batch.mask < 3)
    mask[:, 20:] = IGNORED
    values = built.losses(output, replace(batch, mask=mask), terms)
    expected = F.cross_entropy(output.coarse_logits[..., :20, :], mask[None, :, :20])
    torch.testing.assert_close(values["coarse_cross_entropy"], expected)
    nodes = F.cross_entropy(output.node_logits[:3], torch.arange(3))
    torch.testing.assert_close(values["nodes"], 0.3 * nodes)
    nothing = built.losses(output, replace(batch, mask=torch.full_like(mask, IGNORED)), terms)
    assert [value.item() for value in nothing.values()] == [0, 0]


def test_the_coarse_grid_is_the_middle_of_the_columns(small_atlas: Atlas) -> None:
    built = network(small_atlas, coarse_size=(3, 48, 20)).eval()
    batch = volume(3)
    expected = batch.mask[None, :, :, 10:30]
    assert torch.equal(built._coarse_mask(batch.mask), expected)
    seen: list[Tensor] = []
    built.coarse.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    built(batch.image, None)
    torch.testing.assert_close(seen[0][0, 0], batch.image[:, 0, :, 10:30])
    maps = built._maps(20 * F.one_hot(expected, 5).movedim(-1, 1).float(), batch.image)
    torch.testing.assert_close(maps.sum(1), torch.ones(3, 48, 40))
    inside = F.pad(expected[0], (10, 10))  # beyond, background
    assert torch.equal(maps.argmax(1), inside)
    assert (maps[..., :10].argmax(1) == 0).all()


def test_the_fine_network_sees_slice_and_maps(small_atlas: Atlas) -> None:
    built = network(small_atlas).eval()
    batch = volume(5)
    seen: list[Tensor] = []
    built.fine.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    output = built(batch.image, None)
    (stack,) = seen
    assert torch.equal(stack[:, :1], batch.image)
    torch.testing.assert_close(stack[:, 1:], built._maps(output.coarse_logits, batch.image))


@pytest.mark.parametrize("slices_at_once", [1, 2, 4])
def test_slices_at_a_time_change_nothing(slices_at_once: int, small_atlas: Atlas) -> None:
    batch = volume(5)
    gradients, logits = [], []
    for at_once in (8, slices_at_once):
        built = network(small_atlas, slices_at_once=at_once)
        built.start_stage("fine")
        output = built(batch.image, None)
        logits.append(output.logits.detach())
        output.logits.square().mean().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in built.fine.parameters()]))  # type: ignore
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    # By the largest, because what is summed to nearly nothing keeps the rounding of what it was summed from.
    largest = float(gradients[0].abs().max())
    torch.testing.assert_close(*gradients, rtol=0.0, atol=3e-4 * largest)


def test_one_slice_tells_the_others(small_atlas: Atlas) -> None:
    """The first stage looks across slices, the second alone at each."""
    built, batch = network(small_atlas).eval(), volume(6)
    changed = batch.image.clone()
    changed[0] += 3 * torch.rand(changed[0].shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert not torch.equal(built(batch.image, None).logits[5], built(changed, None).logits[5])
        stack = torch.randn(3, 6, 48, 40)
        torch.testing.assert_close(built.fine(stack)[1:], built.fine(stack[1:]), rtol=1e-4, atol=1e-5)


def test_the_graph_joins_what_touches(small_atlas: Atlas) -> None:
    graph = StructureGraph(small_atlas, channels=6, hidden=4)
    touching = {(1, 3), (2, 3)}
    for first in range(5):
        for second in range(5):
            joined = first == second or (first, second) in touching or (second, first) in touching
            assert (graph.adjacency[first, second] > 0) == joined
    torch.testing.assert_close(graph.adjacency, graph.adjacency.T)
    assert torch.linalg.eigvalsh(graph.adjacency).max().item() == pytest.approx(1.0)  # layers neither grow nor shrink
    # What node 3 sees of the classes: itself and its neighbours after one layer, not the others.
    with torch.no_grad():
        graph.layers[0].weight.copy_(torch.eye(4))
        graph.layers[0].bias.zero_()
    nodes = torch.zeros(5, 4)
    nodes[1] = 1.0
    reached = (graph.layers[0](graph.adjacency @ nodes).abs().sum(1) > 0).tolist()
    assert reached == [False, True, False, True, False]


def test_regions_are_pooled_by_their_shares(small_atlas: Atlas) -> None:
    graph = StructureGraph(small_atlas, channels=5, hidden=5, layers=0)
    voxels = torch.randint(0, 5, (1, 2, 6, 4), generator=torch.Generator().manual_seed(2))
    features = F.one_hot(voxels, 5).movedim(-1, 1).float()
    with torch.no_grad():
        graph.regions.weight.copy_(50 * torch.eye(5)[:, :, None, None, None])
        for layer in (graph.enter, graph.classify, graph.leave):
            layer.weight.copy_(torch.eye(5))
            layer.bias.zero_()
        graph.regions.bias.zero_()
        known, nodes = graph(features)
    torch.testing.assert_close(nodes, torch.eye(5))  # each node is the mean of its own voxels
    torch.testing.assert_close(known, 2 * features)  # and goes back to them


def test_the_residual_unet_keeps_the_size() -> None:
    unet = ResidualUNet(3, 4, (4, 8, 16))
    assert unet(torch.randn(2, 3, 24, 40)).shape == (2, 4, 24, 40)
    assert unet(torch.randn(1, 3, 4, 4)).isfinite().all()


def test_autocast_stays_near_full_precision(small_atlas: Atlas) -> None:
    batch = volume(5)
    for stage in ("coarse", "fine"):
        built = network(small_atlas, slices_at_once=2)
        built.start_stage(stage)
        full = loss_of(built, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = loss_of(built, batch)
        for name, term in half.items():
            assert term.dtype == torch.float32
            assert term.item() == pytest.approx(full[name].item(), rel=0.05)
        torch.stack(list(half.values())).sum().backward()
        assert all(weight.grad.isfinite().all() for weight in built.parameters() if weight.grad is not None)


def test_the_same_seed_and_weights_give_the_same(small_atlas: Atlas) -> None:
    first, second = network(small_atlas).eval(), network(small_atlas).eval()
    batch = volume(5)
    with torch.no_grad():
        assert torch.equal(first(batch.image, None).logits, second(batch.image, None).logits)
        third = SpineParseNet(task(small_atlas), **TINY).eval()
        assert not torch.equal(first(batch.image, None).logits, third(batch.image, None).logits)
        third.load_state_dict(first.state_dict())
        assert torch.equal(first(batch.image, None).logits, third(batch.image, None).logits)
        first.start_stage("coarse")  # in evaluation the whole network speaks, whatever stage was trained
        assert torch.equal(first(batch.image, None).logits, third(batch.image, None).logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coarse_size": (0, 32, 16)}, "coarse_size is or holds 0, but must be at least 1"),
        ({"widths": ()}, "widths is or holds 0"),
        ({"slices_at_once": 0}, "slices_at_once is or holds 0"),
        ({"columns": (0.7, 0.2)}, r"columns is \[0.7, 0.2\], but must rise"),
        ({"columns": (0.5, 1.2)}, "columns"),
        ({"coarse_share": 1.0}, "coarse_share is 1.0, but must lie between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str, small_atlas: Atlas) -> None:
    with pytest.raises(RecipeError, match=message):
        network(small_atlas, **settings)
