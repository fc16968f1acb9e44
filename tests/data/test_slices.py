from __future__ import annotations

import json
import os
import random
import shutil
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from textseg.contracts import Atlas, Batch, Source, TextFeatures
from textseg.data import slices as data_slices
from textseg.data.augmentation import FixedOrder, Transform, TransformList
from textseg.data.preparation import PreparedCase
from textseg.data.slices import (
    Foreground,
    PackedBatch,
    ShuffledBatches,
    Slices,
    SliceStack,
    Volumes,
    check_shared_memory,
    training_loader,
)
from textseg.errors import PluginError, RecipeError, RunError
from textseg.randomness import forked
from textseg.recipe.schema import AugmentationSettings, FieldOfViewSettings
from textseg.registry.component import Component
from textseg.text.drawn_text import DrawnText, Draws
from textseg.text.reports import Report
from textseg.text.slice_text import AVAILABLE, SliceText

SIZE = (12, 10)  # of the slices of `cases`
SOURCES: tuple[Source, ...] = ("ground_truth", "interactive", "template")
TextOf = Callable[[Sequence[PreparedCase], Atlas], SliceText]
DrawnTextOf = Callable[..., DrawnText]
DISTORTED = AugmentationSettings(
    distortion=0.8, rotation_degrees=20, scale=0.2, translation=0.1, elastic_pixels=1, noise=0.1, gamma=0.2
)


def tensors(batch: Batch | PackedBatch) -> dict[str, Tensor]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    for name in ("text", "draws"):
        if (part := getattr(batch, name, None)) is not None:
            values |= {f"{name}.{field.name}": getattr(part, field.name) for field in fields(part)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def require_equal(first: Sequence[Batch | PackedBatch], second: Sequence[Batch | PackedBatch]) -> None:
    assert len(first) == len(second)
    for batch, expected in zip(first, second, strict=True):
        assert batch.case == expected.case
        assert tensors(batch).keys() == tensors(expected).keys()
        for name, tensor in tensors(batch).items():
            assert tensor.dtype == tensors(expected)[name].dtype
            assert torch.equal(tensor, tensors(expected)[name]), name


def prepared(*present: tuple[int, ...]) -> Any:
    return SimpleNamespace(present=present, slice_count=len(present))


def test_a_share_of_each_batch_shows_a_structure() -> None:
    # Of 30 slices, 3 show something; the second case has a structure of its own.
    cases = [prepared(*[()] * 10), prepared((1,), (1, 2), *[()] * 8), prepared(*[()] * 9, (1,))]
    foreground = Foreground.of(cases, 0.33)
    assert foreground.shown == (((10, 11), (11,)), ((29,),))
    assert [foreground.count(size) for size in (2, 3, 4, 8, 12)] == [
        1,
        1,
        1,
        3,
        4,
    ]  # nnU-Net: those from round(B * 0.67)
    plain = [list(ShuffledBatches(30, 4, seed=1, epoch=e)) for e in range(40)]
    batches = [list(ShuffledBatches(30, 4, seed=1, epoch=e, foreground=foreground)) for e in range(40)]
    drawn = [batch[-1][1] for epoch in batches for batch in epoch]
    assert [[batch[:3] for batch in epoch] for epoch in batches] == [[batch[:3] for batch in epoch] for epoch in plain]
    counts = Counter(drawn)
    assert counts.keys() == {10, 11, 29}
    assert 0.4 < counts[29] / len(drawn) < 0.6  # first a case, then a structure, then a slice
    assert 0.08 < counts[10] / len(drawn) < 0.17
    rest = ShuffledBatches(30, 4, seed=1, epoch=7, start=3, foreground=foreground)
    assert list(rest) == batches[7][3:]
    parts = [list(ShuffledBatches(30, 4, seed=1, epoch=7, share=(r, 2), foreground=foreground)) for r in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == batches[7]
    with pytest.raises(RecipeError, match="no training slice shows a structure"):
        Foreground.of(cases[:1], 0.33)


def test_a_batch_holds_its_slices_with_the_types_of_the_contract(
    cases: list[PreparedCase], small_atlas: Atlas, drawn_text_of: DrawnTextOf
) -> None:
    slices = Slices(cases, drawn_text_of(cases, small_atlas), {"template": 1.0})
    packed = slices.pack([slices[0, number] for number in range(4, 8)])
    assert packed.mask.dtype == torch.uint8
    assert isinstance(packed.draws, Draws)
    batch = slices.unpack(packed)
    assert batch.case == ("a", "bb", "bb", "ccc")
    assert batch.slice_index.tolist() == [4, 0, 1, 0]
    assert batch.slice_count.tolist() == [5, 2, 2, 6]
    assert (batch.image.shape, batch.image.dtype) == ((4, 1, *SIZE), torch.float32)
    assert (batch.mask.shape, batch.mask.dtype) == ((4, *SIZE), torch.int64)
    images, masks = (np.concatenate([getattr(case, name) for case in cases])[4:8] for name in ("image", "mask"))
    assert np.array_equal(batch.image.numpy(), images)
    assert np.array_equal(batch.mask.numpy(), masks)
    assert isinstance(batch.text, TextFeatures)
    torch.testing.assert_close(batch.spacing_mm, torch.tensor([[4, 6, 1.5], [4, 3, 1.5], [4, 3, 1.5], [4, 7, 1.5]]))


def test_a_stack_gives_every_slice_once_with_its_text(
    cases: list[PreparedCase], small_atlas: Atlas, text_of: TextOf
) -> None:
    text = text_of(cases[:1], small_atlas)
    template = SliceText(text.table, small_atlas, {})
    template.rows = {"template": text.rows["template"]}
    batches = list(SliceStack(cases[0].image, template).batches(2))
    assert [len(image) for image, _ in batches] == [2, 2, 1]
    images = torch.cat([image for image, _ in batches])
    assert (images.shape, images.dtype) == ((5, 1, *SIZE), torch.float32)
    assert np.array_equal(images.numpy(), cases[0].image)
    features = torch.cat([features.tokens for _, features in batches if features is not None])
    assert torch.equal(features, text.features(range(5), ["template"] * 5).tokens)


def test_a_model_without_text_gets_none(cases: list[PreparedCase]) -> None:
    slices = Slices(cases[1:2], None, {})
    assert slices.unpack(slices.pack([slices[0, 0]])).text is None
    assert [text for _, text in SliceStack(cases[1].image).batches(8)] == [None]


def source_of(slices: Slices, epoch: int, number: int) -> Source:
    """Return the prompt source that is drawn for a slice."""
    draws = slices[epoch, number].draws
    assert draws is not None
    return AVAILABLE[int(draws.source[0])]


def order(slice_count: int, batch_size: int, **position: int) -> list[list[tuple[int, int]]]:
    return list(ShuffledBatches(slice_count, batch_size, **{"seed": 3, "epoch": 2, **position}))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first = order(50, 8)
    np.random.seed(0)
    torch.manual_seed(0)
    assert order(50, 8) == first
    assert order(50, 8, seed=4) != first
    second = order(50, 8, epoch=3)
    assert [[number for _, number in batch] for batch in second] != [[number for _, number in batch] for batch in first]
    assert {epoch for batch in second for epoch, _ in batch} == {3}


def test_an_epoch_shows_no_slice_twice_and_leaves_out_less_than_a_batch() -> None:
    for slice_count, batch_size in ((50, 8), (48, 8), (8, 8), (9, 1)):
        batches = order(slice_count, batch_size)
        assert len(batches) == ShuffledBatches.per_epoch(slice_count, batch_size) == slice_count // batch_size
        assert {len(batch) for batch in batches} == {batch_size}
        numbers = [number for batch in batches for _, number in batch]
        assert len(set(numbers)) == len(numbers) > slice_count - batch_size
        assert set(numbers) <= set(range(slice_count))
    assert sorted(number for batch in order(5, 8) for _, number in batch) == [0, 1, 2, 3, 4]  # the only batch stays


def test_over_epochs_no_slice_is_left_out() -> None:
    seen = {number for epoch in range(20) for batch in order(15, 8, epoch=epoch) for _, number in batch}
    assert seen == set(range(15))


def test_the_rest_of_an_epoch_is_its_tail() -> None:
    whole = order(50, 8)
    for start in range(7):
        rest = ShuffledBatches(50, 8, seed=3, epoch=2, start=start)
        assert list(rest) == whole[start:]
        assert len(rest) == len(whole) - start


def loader_of(
    cases: Sequence[PreparedCase],
    text: DrawnText,
    *,
    start: int = 0,
    epoch: int = 1,
    workers: int = 0,
    sources: Mapping[Source, float] | None = None,
) -> list[Batch]:
    chances: Any = sources or {"ground_truth": 0.4, "interactive": 0.3, "template": 0.3}
    slices = Slices(cases, text, chances, FixedOrder(DISTORTED, 5), 5)
    batches = ShuffledBatches(len(slices), 3, seed=5, epoch=epoch, start=start)
    return [slices.unpack(packed) for packed in training_loader(slices, batches, workers=workers, pin_memory=False)]


def test_batches_do_not_depend_on_the_number_of_workers(
    cases: list[PreparedCase], small_atlas: Atlas, drawn_text_of: DrawnTextOf
) -> None:
    text = drawn_text_of(cases, small_atlas)
    alone = loader_of(cases, text)
    assert len(alone) == 4
    require_equal(alone, loader_of(cases, text, workers=2))


@pytest.mark.parametrize("kind", [Slices, Volumes])
def test_too_little_shared_memory_is_a_message_before_workers_start(
    kind: Any, cases: list[PreparedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = Slices(cases, None, {}, None, 5)
    monkeypatch.setattr(data_slices, "SHARED_MEMORY", Path("/"))
    free = SimpleNamespace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    check_shared_memory(kind(slices) if kind is Volumes else slices, 10, 2)
    free.free = 100
    with pytest.raises(RunError, match=r"2 workers need .* 0 MB free. Lower .*workers, down to 0, or .*--shm-size=1g"):
        check_shared_memory(kind(slices) if kind is Volumes else slices, 10, 2)


@pytest.mark.parametrize("fault", ["hand over", "killed"])
def test_a_worker_that_is_lost_ends_the_epoch_with_a_message(
    fault: str, cases: list[PreparedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unsendable:
        def __reduce__(self) -> Any:
            raise RuntimeError("unable to allocate shared memory(shm)")

    def pack(self: Slices, slices: Sequence[Any]) -> Any:
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return Unsendable()

    monkeypatch.setattr(Slices, "pack", pack)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    slices = Slices(cases, None, {}, None, 5)
    loader = training_loader(slices, ShuffledBatches(len(slices), 3, seed=5, epoch=0), workers=1, pin_memory=False)
    with pytest.raises(RunError, match=r"A worker process .* was lost .*--shm-size=1g. The same command goes on"):
        next(iter(loader))


def test_a_mistake_in_the_work_of_a_worker_stays_what_it_is(
    cases: list[PreparedCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pack(self: Slices, slices: Sequence[Any]) -> Any:
        raise FileNotFoundError("image.npy")

    monkeypatch.setattr(Slices, "pack", pack)
    slices = Slices(cases, None, {}, None, 5)
    loader = training_loader(slices, ShuffledBatches(len(slices), 3, seed=5, epoch=0), workers=1, pin_memory=False)
    with pytest.raises(FileNotFoundError, match=r"image\.npy"):
        next(iter(loader))


def test_a_resumed_epoch_gives_the_batches_that_were_left(
    cases: list[PreparedCase], small_atlas: Atlas, drawn_text_of: DrawnTextOf
) -> None:
    text = drawn_text_of(cases, small_atlas)
    whole = loader_of(cases, text)
    torch.manual_seed(99)
    require_equal(loader_of(cases, text, start=2), whole[2:])


def test_distortions_differ_between_epochs_and_slices(cases: list[PreparedCase]) -> None:
    slices = Slices(cases, None, {}, FixedOrder(DISTORTED, 5), 5)
    images = {(epoch, number): slices[epoch, number].image for epoch in range(3) for number in (5, 6)}
    assert len({image.numpy().tobytes() for image in images.values()}) == 6
    assert torch.equal(images[2, 6], slices[2, 6].image)


def test_a_slice_draws_the_same_whatever_cases_are_beside_it(
    cases: list[PreparedCase], small_atlas: Atlas, drawn_text_of: DrawnTextOf
) -> None:
    chances: Any = {"template": 0.5, "ground_truth": 0.5}
    settings = DISTORTED.model_copy(update={"field_of_view": FieldOfViewSettings(probability=0.5)})
    both = Slices(cases, drawn_text_of(cases, small_atlas), chances, FixedOrder(settings, 5), 5)
    last = Slices(cases[2:], drawn_text_of(cases[2:], small_atlas), chances, FixedOrder(settings, 5), 5)
    for epoch in range(6):
        first, second = both[epoch, 9], last[epoch, 2]
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.mask, second.mask)
        assert first.view == second.view
        assert both.named((epoch, 9)) == last.named((epoch, 2))


def test_a_sentence_of_a_report_on_structures_is_given_to_no_window(
    cases: list[PreparedCase], small_atlas: Atlas, drawn_text_of: DrawnTextOf
) -> None:
    reports = {"a": Report(sentence="L1 is narrow."), "bb": Report(sentence="Pain."), "ccc": Report(("L1",))}
    text = drawn_text_of(cases, small_atlas, sources=(*SOURCES, "report"), reports=reports)
    chances: Any = {"template": 0.5, "report": 0.5}
    settings = DISTORTED.model_copy(update={"field_of_view": FieldOfViewSettings(probability=1.0)})
    slices = Slices(cases, text, chances, FixedOrder(settings, 5), 5)
    windowed = {"a": set(), "bb": set(), "ccc": set()}
    for epoch, number in [(epoch, number) for epoch in range(20) for number in (0, 5, 8)]:
        drawn = slices[epoch, number]
        windowed[slices.positions[number][0].case.id].add((source_of(slices, epoch, number), drawn.view is not None))
    assert windowed["a"] == {("report", False), ("template", True)}
    assert windowed["bb"] == windowed["ccc"] == {("report", True), ("template", True)}


def test_prompt_sources_are_drawn_as_often_as_the_recipe_says(
    cases: list[PreparedCase], small_atlas: Atlas, drawn_text_of: DrawnTextOf
) -> None:
    chances: dict[Source, float] = {"template": 0.5, "interactive": 0.2, "ground_truth": 0.3}
    slices = Slices(cases, drawn_text_of(cases, small_atlas), chances, seed=1)
    drawn = [[source_of(slices, epoch, number) for number in range(13)] for epoch in range(100)]
    flat = [source for epoch in drawn for source in epoch]
    for source, chance in chances.items():
        assert flat.count(source) / len(flat) == pytest.approx(chance, abs=0.05)
    assert len({tuple(epoch) for epoch in drawn}) == 100
    again = Slices(cases, slices.text, dict(reversed(chances.items())), seed=1)
    assert [source_of(again, 3, number) for number in range(13)] == drawn[3]
    second = Slices(cases, slices.text, chances, seed=2)
    assert [source_of(second, 3, number) for number in range(13)] != drawn[3]


def test_probabilities_may_be_rounded_as_a_recipe_allows_and_zero_is_never_drawn(
    cases: list[PreparedCase], small_atlas: Atlas, drawn_text_of: DrawnTextOf
) -> None:
    text = drawn_text_of(cases, small_atlas)
    thirds: Any = {"template": 0.3333333, "interactive": 0.3333333, "ground_truth": 0.3333333}
    assert {source_of(Slices(cases, text, thirds), epoch, 0) for epoch in range(30)} == set(SOURCES)
    never: Any = {"template": 0.0, "ground_truth": 1.0}
    assert {source_of(Slices(cases, text, never), epoch, 0) for epoch in range(30)} == {"ground_truth"}


def test_the_features_of_a_batch_are_those_of_the_drawn_sources(
    cases: list[PreparedCase], small_atlas: Atlas, drawn_text_of: DrawnTextOf
) -> None:
    chances: Any = {"template": 0.5, "ground_truth": 0.5}
    text = drawn_text_of(cases, small_atlas)
    slices = Slices(cases, text, chances, seed=1)
    batch = slices.unpack(slices.pack([slices[4, number] for number in (3, 1, 11)]))
    assert batch.text is not None
    for row, number in enumerate((3, 1, 11)):
        prompt = slices.named((4, number))[1]
        assert prompt is not None
        assert json.loads(prompt)[-5] == source_of(slices, 4, number)
        assert torch.equal(batch.text.tokens[row], text.table.tokens[text.table.index(prompt)].float())


def volumes_of(
    cases: Sequence[PreparedCase], text: DrawnText | None = None, augmentation: FixedOrder | None = None
) -> Volumes:
    chances: Any = {"template": 0.5, "ground_truth": 0.5} if text else {}
    return Volumes(Slices(cases, text, chances, augmentation, 5))


def test_a_volume_is_all_slices_of_a_case_in_order(cases: list[PreparedCase]) -> None:
    volumes = volumes_of(cases)
    assert len(volumes) == 3
    for number, case in enumerate(cases):
        batch = volumes[1, number]
        slices = Slices([case], None, {})
        require_equal([batch], [slices.pack([slices[0, index] for index in range(case.slice_count)])])
    assert volumes[1, 1].slice_index.tolist() == [0, 1]


def test_a_volume_is_drawn_for_as_one(
    cases: list[PreparedCase], small_atlas: Atlas, drawn_text_of: DrawnTextOf
) -> None:
    still = DISTORTED.model_copy(update={"noise": 0.0, "distortion": 1.0, "flip": "both"})
    text = drawn_text_of(cases, small_atlas)
    volumes = volumes_of(cases, text, FixedOrder(still, 5))
    sources = []
    for epoch in range(12):
        batch, plain = volumes.unpack(volumes[epoch, 2]), volumes_of(cases)[epoch, 2]
        again = volumes.unpack(volumes[epoch, 2])
        require_equal([batch], [again])
        assert not torch.equal(batch.mask, plain.mask)
        key = zlib.crc32(b"ccc")
        for index in range(6):  # each slice through the same grid as the volume
            _, mask = FixedOrder(still, 5)(plain.image[index], plain.mask[index], epoch=epoch, slice_id=key)
            assert torch.equal(batch.mask[index], mask)
        assert batch.text is not None
        packed = volumes[epoch, 2]
        assert packed.draws is not None
        sources.append(tuple(packed.draws.source.tolist()))
    assert len(set(sources)) == 2  # sometimes one source, sometimes the other
    assert all(len(set(of_slices)) == 1 for of_slices in sources)


def test_volumes_come_from_workers_and_resume_alike(cases: list[PreparedCase]) -> None:
    def loaded(start: int, workers: int) -> list[PackedBatch]:
        volumes = volumes_of(cases, None, FixedOrder(DISTORTED, 5))
        batches = ShuffledBatches(len(volumes), 1, seed=5, epoch=3, start=start)
        return list(training_loader(volumes, batches, workers=workers, pin_memory=False))

    whole = loaded(0, 0)
    assert sorted(batch.case[0] for batch in whole) == ["a", "bb", "ccc"]
    require_equal(whole, loaded(0, 2))
    require_equal(whole[1:], loaded(1, 0))


COMPONENT = Component("augmentation", "it", "of:none", "own", "textseg-own", "0.1")


class FromGlobals:
    """A change by a library that draws from the global generators; it mirrors some slices."""

    geometric = True

    def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        with forked(generator):
            image = image + torch.rand(image.shape) + float(np.random.random()) + random.random()
            return (image.flip(-1), mask.flip(-1)) if np.random.random() < 0.5 else (image, mask)

    def enlargement(self, size: tuple[int, int], generator: np.random.Generator) -> float:
        return 1.0

    def window(self, size: tuple[int, int], generator: np.random.Generator) -> tuple[int, int, int, int]:
        height = int(generator.integers(size[0] // 2, size[0]))
        return 0, 0, height, size[1]


@pytest.mark.parametrize("kind", [Slices, Volumes])
def test_a_list_gives_the_same_on_workers_on_the_device_and_resumed(
    kind: Any, cases: list[PreparedCase], small_atlas: Atlas, drawn_text_of: DrawnTextOf
) -> None:
    text = drawn_text_of(cases, small_atlas)

    def loaded(*places: Any, start: int = 0, workers: int = 0) -> list[Batch]:
        transforms = [Transform(COMPONENT, FromGlobals(), 0.7, places[0])]
        transforms += [Transform(COMPONENT, Brighter(), 1.0, on) for on in places[1:]]
        slices = Slices(cases, text, {"ground_truth": 0.4, "interactive": 0.6}, TransformList(transforms, 5), 5)
        data = kind(slices) if kind is Volumes else slices
        order = ShuffledBatches(len(data), 1 if kind is Volumes else 3, seed=5, epoch=1, start=start)
        return [data.unpack(packed) for packed in training_loader(data, order, workers=workers, pin_memory=False)]

    whole = loaded("workers", "workers", "workers")
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state(legacy=False))
    require_equal(whole, loaded("workers", "workers", "device"))
    require_equal(whole, loaded("device", "device", "device"))
    assert str((torch.get_rng_state(), random.getstate(), str(np.random.get_state(legacy=False)))) == str(states)
    require_equal(whole[1:], loaded("workers", "device", "device", start=1, workers=2))
    assert len({batch.spacing_mm[0, 1].item() for batch in whole}) > 1  # windows are enlarged


class Brighter:
    """A factor that is drawn once for all slices."""

    geometric = False

    def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        return image * float(generator.uniform(0.5, 2)), mask


@pytest.mark.parametrize("on", ["workers", "device"])
def test_neighbours_are_moved_alike_and_the_slice_is_in_their_middle(
    on: Literal["workers", "device"], cases: list[PreparedCase], drawn_text_of: DrawnTextOf, small_atlas: Atlas
) -> None:
    settings = DISTORTED.model_copy(update={"on": on, "noise": 0.0, "gamma": 0.0})
    text = drawn_text_of(cases, small_atlas, moves=True)
    alone, joined = (
        Slices(cases, text, {"ground_truth": 1.0}, FixedOrder(settings, 1), 1, context=context) for context in (1, 3)
    )
    draws = [(0, number) for number in (0, 2, 5, 12)]
    single, joint = (slices.unpack(slices.pack([slices[draw] for draw in draws])) for slices in (alone, joined))
    assert single.image.shape == (4, 1, *SIZE)
    assert joint.image.shape == (4, 3, *SIZE)
    assert torch.equal(joint.image[:, 1:2], single.image)
    everything = {name: tensor for name, tensor in tensors(joint).items() if name != "image"}
    assert all(torch.equal(tensor, tensors(single)[name]) for name, tensor in everything.items())
    assert [alone.named(draw) for draw in draws] == [joined.named(draw) for draw in draws]
    # The neighbours of slice 2 of case "a" are its slices 1 and 3, with the draws of slice 2; slice 0 is repeated.
    augmentation, (case, *_) = FixedOrder(settings, 1), cases
    for row, number, shown in ((0, 0, (0, 0, 1)), (1, 2, (1, 2, 3))):
        planes = torch.from_numpy(case.image[list(shown)]).float()
        moved, _ = augmentation.of_batch(planes, torch.zeros(3, *SIZE), [alone.key(number)], epoch=0, on=on)
        assert torch.equal(joint.image[row], moved[:, 0])


def test_a_stack_gives_neighbours_and_geometry_whatever_the_batch(cases: list[PreparedCase]) -> None:
    case = cases[2]
    stack = SliceStack(case.image, spacing_mm=case.spacing_mm)
    images = [torch.cat([image for image, _ in stack.batches(size, context=5)]) for size in (1, 4, 9)]
    assert all(torch.equal(image, images[0]) for image in images)
    expected = [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [2, 3, 4, 5, 5], [3, 4, 5, 5, 5]]
    assert torch.equal(images[0], torch.from_numpy(case.image[:, 0][expected]).float())
    geometry = stack.geometry(4, 2, torch.device("cpu"))
    assert geometry.slice_index.tolist() == [4, 5]
    assert geometry.slice_count.tolist() == [6, 6]
    assert geometry.position.tolist() == pytest.approx([0.8, 1.0])
    assert geometry.spacing_mm.tolist() == [pytest.approx(case.spacing_mm)] * 2
    with pytest.raises(ValueError, match="no spacing"):
        SliceStack(case.image).geometry(0, 1, torch.device("cpu"))


def test_neighbours_count_as_shared_memory(cases: list[PreparedCase], monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_of_a_slice = int(np.prod(SIZE)) * (data_slices.IMAGE_BYTES + data_slices.MASK_BYTES)
    free = SimpleNamespace(free=(data_slices.PREFETCHED + 1) * 2 * bytes_of_a_slice)
    monkeypatch.setattr(data_slices.shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(data_slices, "SHARED_MEMORY", Path("/"))
    check_shared_memory(Slices(cases, None, {}), 2, 1)
    with pytest.raises(RunError, match="shared memory"):
        check_shared_memory(Slices(cases, None, {}, context=3), 2, 1)


class Failing(FromGlobals):
    def __call__(self, image: Tensor, mask: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        raise ValueError("no\nway")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_that_fails_in_a_worker_is_one_message(workers: int, cases: list[PreparedCase]) -> None:
    component = replace(COMPONENT, target=Failing)
    slices = Slices(cases, None, {}, TransformList([Transform(component, Failing())], 5), 5)
    order = ShuffledBatches(len(slices), 3, seed=5, epoch=1)
    with pytest.raises(PluginError) as caught:
        list(training_loader(slices, order, workers=workers, pin_memory=False))
    message = str(caught.value)
    assert message.startswith(
        "augmentation 'it' of plug-in 'own' (textseg-own 0.1) failed in a draw of epoch 2: ValueError"
    )
    assert "no way (" in message
    assert "Traceback" not in message
    assert "\n" not in message
