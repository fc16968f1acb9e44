import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import (
    Atlas,
    BatchGeometry,
    Features,
    HasEpochStart,
    HasLosses,
    SegmenterOutput,
    Task,
    TextFeatures,
)
from textseg.errors import PluginError, RunError
from textseg.models.segmenter import Segmenter, TextGuidedNetwork
from textseg.runs.folder import RunFolder

SIZES = [(16, 24), (13, 21), (8, 30), (1, 9), (17, 8)]


class Convolutions(nn.Module):
    """A whole network whose logits have a stride, and that notes the text that it is given."""

    def __init__(self, *, uses_text: bool = False, stride: int = 1) -> None:
        super().__init__()
        self.uses_text, self.size_multiple = uses_text, 8
        self.layer = nn.Conv2d(1, 3, 3, stride=stride, padding=1)
        self.seen: list[TextFeatures | None] = []

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        assert all(side % self.size_multiple == 0 for side in image.shape[-2:])
        self.seen.append(text)
        return SegmenterOutput(self.layer(image), deep_logits=(self.layer(image),))


class Encoder(nn.Module):
    size_multiple = 4

    def __init__(self) -> None:
        super().__init__()
        self.features = Features((4, 6), (2, 4))
        self.levels = nn.ModuleList([nn.Conv2d(1, 4, 2, stride=2), nn.Conv2d(4, 6, 2, stride=2)])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        fine = self.levels[0](image)
        return fine, self.levels[1](fine)


class Addition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = Features((4, 6), (2, 4))

    def forward(self, image_features: tuple[Tensor, ...], text: TextFeatures) -> tuple[Tensor, ...]:
        shift = text.tokens.mean((1, 2))[:, None, None, None]
        return tuple(feature + shift for feature in image_features)


def some_text(batch: int, value: float = 1.0) -> TextFeatures:
    return TextFeatures(
        torch.full((batch, 5, 7), value),
        torch.ones(batch, 5, dtype=torch.bool),
        None,
        torch.ones(batch, 4, dtype=torch.bool),
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
def test_any_size_equals_padding_by_hand(size: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    network = Convolutions(stride=stride)
    image = torch.randn(2, 1, *size)
    height, width = ((side + 7) // 8 * 8 for side in size)
    padded = torch.zeros(2, 1, height, width)
    padded[..., : size[0], : size[1]] = image
    expected = F.interpolate(network.layer(padded), (height, width), mode="bilinear")
    output = Segmenter(network)(image)
    assert output.logits.shape == (2, 3, *size)
    torch.testing.assert_close(output.logits, expected[..., : size[0], : size[1]])
    assert output.deep_logits[0].shape == (2, 3, height // stride, width // stride)


def test_an_image_that_fits_is_not_touched() -> None:
    network = Convolutions()
    image = torch.randn(1, 1, 16, 8)
    assert torch.equal(Segmenter(network)(image).logits, network.layer(image))


@pytest.mark.parametrize("size", [(16, 24), (13, 21)])
def test_mirror_images_are_averaged_in_evaluation_alone(size: tuple[int, int]) -> None:
    network, image = Convolutions(), torch.randn(2, 1, *size)
    mirrored, plain = Segmenter(network, ((-1,), (-2, -1))), Segmenter(network)
    assert torch.equal(mirrored(image).logits, plain(image).logits)
    views = [plain(image).logits, plain(image.flip(-1)).logits.flip(-1), plain(image.flip(-2, -1)).logits.flip(-2, -1)]
    mean = mirrored.eval()(image).logits
    torch.testing.assert_close(mean, sum(views) / 3)
    assert not torch.allclose(mean, views[0])


def test_a_network_without_text_never_sees_text() -> None:
    network = Convolutions()
    segmenter = Segmenter(network)
    assert not segmenter.uses_text
    assert segmenter.fused_features is None
    segmenter(torch.zeros(1, 1, 8, 8), some_text(1))
    assert network.seen == [None]


def test_a_network_with_text_sees_it() -> None:
    network, text = Convolutions(uses_text=True), some_text(1)
    Segmenter(network)(torch.zeros(1, 1, 8, 8), text)
    assert network.seen[0] is text


def test_text_guides_the_composition_from_image_to_logits(small_atlas: Atlas) -> None:
    torch.manual_seed(0)
    task = Task(1, (12, 20), small_atlas.class_count, small_atlas, text_size=7, text_length=5)
    encoder, fusion = Encoder(), Addition()
    segmenter = Segmenter(TextGuidedNetwork(task, encoder, fusion))
    assert segmenter.uses_text
    assert segmenter.fused_features == fusion.features
    image, text = torch.randn(2, 1, 10, 19), some_text(2, 0.5)
    output = segmenter(image, text)
    assert output.logits.shape == (2, task.class_count, 10, 19)
    assert output.text is text
    padded = F.pad(image, (0, 1, 0, 2))
    for features, expected in zip(output.image_features, encoder(padded), strict=True):
        torch.testing.assert_close(features, expected)
    for fused, plain in zip(output.fused_features, output.image_features, strict=True):
        torch.testing.assert_close(fused, plain + 0.5)
    assert not torch.equal(output.logits, segmenter(image, some_text(2, 5.0)).logits)


class PlacedEncoder(Encoder):
    reads_geometry, context_slices = True, 3

    def __init__(self) -> None:
        super().__init__()
        self.levels[0] = nn.Conv2d(3, 4, 2, stride=2)

    def forward(self, image: Tensor, *, geometry: BatchGeometry) -> tuple[Tensor, ...]:
        return super().forward(image * geometry.position[:, None, None, None])


def test_a_vision_encoder_may_read_neighbours_and_geometry(small_atlas: Atlas) -> None:
    task = Task(1, (8, 8), small_atlas.class_count, small_atlas, text_size=7, text_length=5)
    segmenter = Segmenter(TextGuidedNetwork(task, PlacedEncoder(), Addition()))
    assert segmenter.reads_geometry
    assert segmenter.context_slices == 3
    image, index = torch.rand(2, 3, 8, 8), torch.tensor([0, 4])
    geometry = BatchGeometry(torch.ones(2, 3), index, torch.tensor([5, 5]))
    first, second = segmenter(image, some_text(2), geometry).image_features[0]
    assert torch.equal(first, segmenter(0 * image, some_text(2), geometry).image_features[0][0])
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="needs the geometry"):
        segmenter(image, some_text(2))
    alone = Segmenter(TextGuidedNetwork(task, Encoder(), Addition()))
    assert not alone.reads_geometry
    assert alone.context_slices == 1
    assert torch.equal(alone(image[:, :1], some_text(2), geometry).logits, alone(image[:, :1], some_text(2)).logits)


def test_a_composition_without_text_is_refused(small_atlas: Atlas) -> None:
    task = Task(1, (8, 8), small_atlas.class_count, small_atlas, text_size=7, text_length=5)
    with pytest.raises(ValueError, match="needs text"):
        Segmenter(TextGuidedNetwork(task, Encoder(), Addition()))(torch.zeros(1, 1, 8, 8))


class Decoder(Addition):
    """A fusion that reads no text."""

    def forward(self, image_features: tuple[Tensor, ...], text: TextFeatures | None) -> tuple[Tensor, ...]:
        assert text is None
        return image_features


def test_a_composition_for_a_task_without_text_reads_none(small_atlas: Atlas) -> None:
    task = Task(1, (8, 8), small_atlas.class_count, small_atlas)
    segmenter = Segmenter(TextGuidedNetwork(task, Encoder(), Decoder()))
    assert not segmenter.uses_text
    output = segmenter(torch.zeros(1, 1, 8, 8), some_text(1))
    assert output.text is None
    assert output.logits.shape == (1, task.class_count, 8, 8)


class Planned(nn.Module):
    """A fusion with a schedule of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Features((2,), (1,))
        self.epochs: list[tuple[int, int]] = []

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.epochs.append((epoch, epochs))


def test_a_fusion_may_have_the_optional_members_of_a_network(small_atlas: Atlas) -> None:
    task = Task(1, (8, 8), small_atlas.class_count, small_atlas, text_size=7, text_length=5)
    fusion = Planned()
    segmenter = Segmenter(TextGuidedNetwork(task, Encoder(), fusion))
    part = segmenter.part_with(HasEpochStart)
    assert part is not None
    part.start_epoch(1, 5)
    assert fusion.epochs == [(1, 5)]
    assert segmenter.part_with(HasLosses) is None
    assert Segmenter(Convolutions()).part_with(HasEpochStart) is None


class TwoStages(Convolutions):
    """A network with parts that are called stages, as many are."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([self.layer])


class Sequential(TwoStages):
    def start_stage(self, name: str) -> None:
        pass


def test_stages_are_those_of_training_only_where_a_method_starts_them() -> None:
    assert Segmenter(TwoStages()).stages == {}
    network = Sequential()
    assert Segmenter(network).stages is network.stages


def test_batches_are_slices_unless_the_network_reads_volumes() -> None:
    network = Convolutions()
    assert Segmenter(network).batching == "slice"
    network.batching = "volume"
    assert Segmenter(network).batching == "volume"


class Adapted(nn.Module):
    """A large layer that is read from elsewhere and stays as it is, and a small one that is trained."""

    uses_text, size_multiple, reads_frozen = False, 1, True

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.large = nn.Conv2d(1, 500, 1).requires_grad_(False)
        nn.init.constant_(self.large.weight, value)
        self.small = nn.Conv2d(500, 3, 1)

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        return SegmenterOutput(self.small(self.large(image)))


def trained(value: float = 1.0) -> Segmenter:
    torch.manual_seed(3)
    segmenter = Segmenter(Adapted(value))
    segmenter.network.large.bias.data.fill_(2.0)
    return Segmenter(segmenter.network)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_leaves_out_what_is_read_elsewhere_and_is_completed_from_there(wrapped: bool, tmp_path: Path) -> None:
    """Also below another module, and of a copy, as an average of weights is one."""
    segmenter = trained()
    module = nn.ModuleDict({"segmenter": copy.deepcopy(segmenter)}) if wrapped else segmenter
    prefix = "segmenter.network." if wrapped else "network."
    state = module.state_dict()
    assert {key for key in state if key.startswith(prefix)} == {f"{prefix}small.weight", f"{prefix}small.bias"}
    assert set(segmenter.network.state_dict()) == {"large.weight", "large.bias", "small.weight", "small.bias"}
    RunFolder(tmp_path).save_checkpoint("best", {"model": state})
    state = RunFolder(tmp_path).load_checkpoint("best")["model"]
    restored = trained()
    nn.init.zeros_(restored.network.small.weight)
    (nn.ModuleDict({"segmenter": restored}) if wrapped else restored).load_state_dict(state)
    image = torch.randn(1, 1, 4, 4)
    assert torch.equal(restored(image).logits, segmenter(image).logits)
    assert state.keys() == module.state_dict().keys()  # loading took nothing out of it


def test_weights_do_not_go_onto_another_frozen_part() -> None:
    state = trained().state_dict()
    with pytest.raises(RunError, match="the recipe reads it from has changed"):
        trained(value=1.5).load_state_dict(state)
    everything = {f"network.{key}": value for key, value in trained().network.state_dict().items()}
    with pytest.raises(RunError, match="fingerprint None"):
        trained().load_state_dict(everything)


def test_what_is_read_elsewhere_must_stay_frozen() -> None:
    segmenter = trained()
    segmenter.network.requires_grad_(True)
    with pytest.raises(PluginError, match=r"'network\.large\.weight'.*trains it"):
        segmenter.state_dict()


def test_all_of_another_network_is_in_its_state() -> None:
    network = Convolutions()
    network.layer.weight.requires_grad_(False)
    assert set(Segmenter(network).state_dict()) == {"network.layer.weight", "network.layer.bias"}


def test_a_vision_encoder_may_be_read_elsewhere(small_atlas: Atlas) -> None:
    task = Task(1, (8, 8), small_atlas.class_count, small_atlas, text_size=7, text_length=5)
    encoder = Encoder()
    encoder.reads_frozen = True
    encoder.levels[0].requires_grad_(False)
    state = Segmenter(TextGuidedNetwork(task, encoder, Addition())).state_dict()
    assert "network.vision_encoder.levels.0.weight" not in state
    assert {"network.vision_encoder.levels.1.weight", "network.head.weight", "frozen"} <= state.keys()
