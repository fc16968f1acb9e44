"""Checks of modules: vision encoders, fusions, losses, networks."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Features, HasBatching, HasLosses, HasStages, Task
from textseg.testing.calls import (
    built,
    check_finite_gradients,
    check_finite_gradients_back,
    example_for,
    few,
    network_output,
    results,
    sum_of_squares,
    task_of,
)
from textseg.testing.conformance import Subject, check
from textseg.testing.examples import ONE_STRUCTURE, TEXT_LENGTH, Example
from textseg.testing.promises import promise
from textseg.testing.surroundings import undisturbed

LOSSES = ("auxiliary_loss", "segmentation_loss")
KINDS = ("vision_encoder", "fusion", "network", *LOSSES)


def _stages(module: nn.Module) -> Iterator[str]:
    """Put the module into each of its stages and yield its name; one without a name where it has none."""
    if not isinstance(module, HasStages):
        yield ""
        return
    for name in module.stages:
        module.train()
        module.start_stage(name)
        yield name


@check("construction", *KINDS, fundamental=True)
def _construction(subject: Subject) -> None:
    """Check that the component can be built and has the attributes that the core reads."""
    module = built(subject)
    kind = subject.component.kind
    if kind in ("vision_encoder", "fusion"):
        features = getattr(module, "features", None)
        promise(isinstance(features, Features), "an attribute `features`, a textseg.contracts.Features", features)
        channels, strides = cast(Features, features).channels, cast(Features, features).strides
        whole = all(isinstance(number, int) and number > 0 for number in (*channels, *strides))
        complete = channels and len(channels) == len(strides) and whole
        promise(complete, "a channel count and a stride per level", features)
        promise(list(strides) == sorted(strides), "strides from the finest level to the coarsest", strides)
    if kind in ("vision_encoder", "network"):
        multiple = getattr(module, "size_multiple", None)
        promise(isinstance(multiple, int) and multiple > 0, "an attribute `size_multiple`, a whole number", multiple)
    if kind == "vision_encoder":
        coarsest = cast(Features, module.features).strides[-1]
        divided = cast(int, multiple) % coarsest == 0
        promise(divided, f"a size_multiple that the coarsest stride ({coarsest}) divides", multiple)
    if kind == "network":
        uses_text = getattr(module, "uses_text", None)
        promise(isinstance(uses_text, bool), "an attribute `uses_text`, true or false", uses_text)
    if kind in ("vision_encoder", "network"):
        context, reads = getattr(module, "context_slices", 1), getattr(module, "reads_geometry", False)
        odd = isinstance(context, int) and context > 0 and context % 2 == 1
        promise(odd, "an attribute `context_slices` that is an odd number, or none", context)
        promise(isinstance(reads, bool), "an attribute `reads_geometry`, true or false, or none", reads)
    batching = module.batching if isinstance(module, HasBatching) else "slice"
    promise(batching in ("slice", "volume"), 'batching = "slice" or "volume"', repr(batching))


@check("surroundings", *KINDS, tolerant=True)
def _surroundings(subject: Subject) -> None:
    """Construction and call touch no file and no network, and leave alone what all share."""
    states = []
    for seed in (1, 2):  # what is imported on the way may do as it likes, the first time
        with undisturbed("construction", allowed=subject.settings.values()):
            module = built(subject, seed=seed)
        states.append(torch.get_rng_state())
        example = example_for(subject, module, batch=1)
        with undisturbed("a call", allowed=subject.settings.values()):
            results(subject, module, example, seed=seed)
        states.append(torch.get_rng_state())
    drawn = not torch.equal(states[0], states[2]) and not torch.equal(states[1], states[3])
    own_seed = "a seed of its own: after two seeds torch's random state is the same. Take a torch.Generator"
    promise(drawn, "random numbers drawn from where the core has set the seed", own_seed)


@check("shapes", *KINDS)
def _shapes(subject: Subject) -> None:
    """Outputs have the declared size: any multiple, not square, batch of 1, one structure, one token."""
    size = subject.image_size
    odd = (size[0] - 1, size[1] + size[1] // 2 + 1)  # no multiple, and another one than all else is checked at
    for where, batch, counts, about in (
        (task_of(subject), 2, (TEXT_LENGTH, 1), "two slices, the text of the second one token"),
        (task_of(subject, ONE_STRUCTURE, odd), 1, (TEXT_LENGTH - 1,), "one slice and one structure"),
    ):
        module = built(subject, where)
        example = example_for(subject, module, where, batch, counts=counts)
        about = f"for {example.image.shape[-2]} x {example.image.shape[-1]} pixels, {about}"
        _check_shapes(subject, module, example, results(subject, module, example), where, about)


def _check_shapes(
    subject: Subject, module: nn.Module, example: Example, given: list[Tensor], where: Task, about: str
) -> None:
    kind, (batch, _, height, width) = subject.component.kind, example.image.shape
    shapes = [tuple(tensor.shape) for tensor in given]
    if kind in ("vision_encoder", "fusion"):
        features = cast(Features, module.features)
        expected = [
            (batch, channels, height // stride, width // stride)
            for channels, stride in zip(features.channels, features.strides, strict=True)
        ]
        promise(shapes == expected, f"maps {expected} {about}", shapes)
    elif kind in LOSSES:
        scalar = shapes == [()] and given[0].dtype == torch.float32
        promise(scalar, f"a scalar in float32 {about}", f"{given[0].dtype} {shapes[0]}")
    else:
        sizes = [(batch, where.class_count, height, width)]
        promise(shapes[:1] == sizes, f"logits {sizes[0]} {about}", shapes[0])
        wrong = [shape for shape in shapes if shape[:2] != (batch, where.class_count) or len(shape) != 4]
        promise(not wrong, f"deep logits [{batch}, {where.class_count}, H_l, W_l] {about}", wrong)
    promise(all(bool(tensor.isfinite().all()) for tensor in given), f"finite numbers {about}", "NaN or infinity")


@check("gradients", *KINDS)
def _gradients(subject: Subject) -> None:
    """Check that every trainable parameter gets a finite gradient in each stage."""
    height, width = subject.image_size
    where = task_of(subject, image_size=(height - 1, width - 3))  # which has to be padded, and the mask has not
    module = built(subject, where)
    example = example_for(subject, module, where)
    for stage in _stages(module):
        module.zero_grad()
        _loss(subject, module, example).backward()  # type: ignore[no-untyped-call]
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        without = [name for name, parameter in named if parameter.grad is None]
        about = f" in stage '{stage}'" if stage else ""
        promise(not without, f"a gradient for every trainable parameter{about}", few("none for", without))
        check_finite_gradients(module, about)
    if subject.component.kind in ("fusion", *LOSSES):
        promise(example.gradients(), "gradients back to the model", "none: its input is detached")
        check_finite_gradients_back(example, "")


def _loss(subject: Subject, module: nn.Module, example: Example) -> Tensor:
    if subject.component.kind == "network" and isinstance(module, HasLosses):
        output = network_output(module, example)
        terms = module.losses(output, example.batch, _cross_entropy)
        scalars = isinstance(terms, dict) and all(isinstance(t, Tensor) and t.shape == () for t in terms.values())
        promise(scalars, "losses() that gives a scalar by name", terms)
        return torch.stack([term.float() for term in terms.values()]).sum()
    return sum_of_squares(results(subject, module, example))


def _cross_entropy(logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return a term in place of the segmentation loss of a recipe."""
    return {"cross_entropy": F.cross_entropy(logits.float(), mask)}


@check("precision", *KINDS)
def _precision(subject: Subject) -> None:
    """Under autocast to bfloat16 it gives finite numbers and gradients; a loss stays in float32."""
    module = built(subject)
    example = example_for(subject, module, batch=1)
    with torch.autocast("cpu", torch.bfloat16):
        given = results(subject, module, example)
    if subject.component.kind in LOSSES:
        promise(given[0].dtype == torch.float32, "a loss in float32 under autocast", given[0].dtype)
    promise(all(bool(tensor.isfinite().all()) for tensor in given), "finite numbers under autocast", "NaN or infinity")
    sum_of_squares(given).backward()  # type: ignore[no-untyped-call]
    check_finite_gradients(module, " under autocast")


@check("determinism", *KINDS)
def _determinism(subject: Subject) -> None:
    """Check that equal seeds give equal weights and results, and that evaluation does not depend on a seed."""
    first, second = built(subject), built(subject)
    weights = second.state_dict()
    unlike = [name for name, value in first.state_dict().items() if not _same(value, weights[name])]
    promise(not unlike, "the same weights from the same seed", few("others in", unlike))
    example = example_for(subject, first, batch=1)
    same = _equal(results(subject, first, example), results(subject, second, example))
    promise(same, "the same results in training from the same seed", "others")
    first.eval()
    same = _equal(results(subject, first, example, seed=3), results(subject, first, example, seed=4))
    promise(same, "the same results in evaluation, whatever the seed", "others")


def _same(first: object, second: object) -> bool:
    return torch.equal(first, second) if isinstance(first, Tensor) and isinstance(second, Tensor) else first == second


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@check("state", *KINDS)
def _state(subject: Subject) -> None:
    """A checkpoint brings everything back, and copies for other processes do the same."""
    module = built(subject)
    example = example_for(subject, module, batch=1)
    results(subject, module, example)  # moves statistics that live in buffers
    module.eval()
    with torch.no_grad():
        expected = results(subject, module, example)
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        twin = built(subject, seed=5)
        for parameter in twin.parameters():
            parameter.zero_()
        twin.load_state_dict(torch.load(file, weights_only=True))
        lost = "others: what it knows beyond its settings must live in parameters and buffers"
        same = _equal(results(subject, twin.eval(), example), expected)
        promise(same, "the same results after state_dict and load_state_dict", lost)
        copies = (("copy.deepcopy", copy.deepcopy(module)), ("pickle", pickle.loads(pickle.dumps(module))))
        for name, copied in copies:
            same = _equal(results(subject, copied, example), expected)
            promise(same, f"the same results from what {name} makes of it", "others")


@check("batch", "vision_encoder", "fusion", "network")
def _batch(subject: Subject) -> None:
    """Check that in evaluation the slices of a batch do not influence each other."""
    module = built(subject).eval()
    if isinstance(module, HasBatching) and module.batching == "volume":
        return  # its slices are to see each other
    example = example_for(subject, module)
    with torch.no_grad():
        both = results(subject, module, example)
        alone = results(subject, module, example.first())
    for in_batch, by_itself in zip(both, alone, strict=True):
        difference = (in_batch[:1] - by_itself).abs().max().item()
        close = difference <= 1e-4 * (1 + by_itself.abs().max().item())
        promise(close, "in evaluation the same for a slice alone and in a batch", f"a difference of {difference:.1e}")


@check("text", "fusion", "network")
def _text(subject: Subject) -> None:
    """Masked tokens change nothing; another text changes the result."""
    module = built(subject).eval()
    if subject.component.kind == "network" and not cast(bool, module.uses_text):
        return
    example = example_for(subject, module)
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in module.parameters():  # a gate that starts closed is opened
            parameter.add_(0.1 * torch.randn_like(parameter))
        expected = results(subject, module, example)
        text, another = example.text, example_for(subject, module, seed=7).text
        noise = torch.randn_like(text.tokens).masked_fill(text.mask[..., None], 0)
        noisy = replace(example, text=replace(text, tokens=text.tokens + noise))
        padded = results(subject, module, noisy)
        change = max((a - b).abs().max().item() for a, b in zip(padded, expected, strict=True))
        close = change <= 1e-5 * (1 + max(tensor.abs().max().item() for tensor in expected))
        about = f"a change of {change:.1e}: use text.mask"
        promise(close, "the same result whatever stands where the text is masked", about)
        changed = replace(example, text=replace(text, tokens=another.tokens, classwise=another.classwise))
        same = _equal(results(subject, module, changed), expected)
        promise(not same, "another result for another text", "the same: the text is not read")


@check("geometry", "vision_encoder", "network")
def _geometry(subject: Subject) -> None:
    """Check that the spacing or the position changes the result, and the neighbours, if they are read at all."""
    module = built(subject)
    reads, context = getattr(module, "reads_geometry", False), getattr(module, "context_slices", 1)
    if not reads and context == 1:
        return
    module.eval()
    example = example_for(subject, module)
    with torch.no_grad():
        for parameter in module.parameters():  # as in `text`: a gate that starts closed is opened
            parameter.add_(0.1 * torch.randn_like(parameter))
        expected = results(subject, module, example)
        if reads:
            moved = results(subject, module, replace(example, spacing_mm=(5.0, 0.7, 0.8), first_slice=3))
            promise(not _equal(moved, expected), "another result for another `geometry`", "the same: it is not read")
        if context > 1:
            image, channels = example.image.clone(), example.image.shape[1] // context
            image[:, :channels] += 1
            near = results(subject, module, replace(example, image=image))
            promise(not _equal(near, expected), "another result for another first neighbour", "the same: not read")


CHECKS = (_surroundings, _construction, _shapes, _gradients, _precision, _determinism, _state, _batch, _text, _geometry)
