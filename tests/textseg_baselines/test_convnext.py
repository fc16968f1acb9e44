from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, ConvNextConfig, ConvNextForImageClassification, ConvNextModel

from textseg.errors import RecipeError
from textseg.models import standardise
from textseg_baselines.convnext import ConvNeXt, fetch_weights, find_weights

WIDTHS, DEPTHS = (4, 8, 12), (1, 2, 1)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with a ConvNeXt for classification of colour images, like a published model."""
    torch.manual_seed(3)
    sizes = {"hidden_sizes": list(WIDTHS), "depths": list(DEPTHS), "num_stages": 3}
    model = ConvNextForImageClassification(ConvNextConfig(num_channels=3, layer_scale_init_value=0.5, **sizes))
    model.save_pretrained(tmp_path)
    return tmp_path


def encoder_of(folder: Path, channels: int = 1, widths: tuple[int, ...] = WIDTHS) -> ConvNeXt:
    return ConvNeXt(channels, widths, DEPTHS, find_weights(str(folder), None, pickled=False))


@pytest.mark.parametrize("channels", [1, 2])
def test_levels_begin_at_stride_four(channels: int) -> None:
    encoder = ConvNeXt(channels, WIDTHS, DEPTHS, None)
    assert encoder.size_multiple == 16
    shapes = [feature.shape for feature in encoder(torch.randn(2, channels, 32, 48))]
    assert shapes == [(2, 4, 8, 12), (2, 8, 4, 6), (2, 12, 2, 3)]


def test_a_grey_image_is_read_thrice_and_its_maps_are_those_of_transformers(published: Path) -> None:
    theirs = ConvNextModel.from_pretrained(published).eval()
    image = torch.randn(2, 1, 32, 48)
    with torch.no_grad():
        features = encoder_of(published).eval()(image)
        read = standardise(image).expand(-1, 3, -1, -1)
        expected = theirs(read, output_hidden_states=True).hidden_states[1:]
        colour = encoder_of(published, channels=3).eval()(image.expand(-1, 3, -1, -1))
    for ours, same, rgb in zip(features, expected, colour, strict=True):
        assert torch.equal(ours, same)
        assert torch.equal(rgb, same)


def test_pretrained_weights_read_any_unit_of_the_intensities(published: Path) -> None:
    image = torch.rand(2, 1, 32, 48)
    mean, deviation = (statistic.view(2, 1, 1, 1) for statistic in (image.mean((1, 2, 3)), image.flatten(1).std(1)))
    torch.testing.assert_close(standardise(image), (image - mean) / deviation, rtol=1e-3, atol=1e-3)
    assert not standardise(torch.ones(1, 1, 4, 4)).any()
    encoder, random = encoder_of(published).eval(), ConvNeXt(1, WIDTHS, DEPTHS, None).eval()
    for ours, same in zip(encoder(image), encoder(4 * image + 7), strict=True):
        torch.testing.assert_close(ours, same, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(random(image)[0], random(4 * image + 7)[0], rtol=1e-3, atol=1e-4)


def test_weights_of_colour_images_are_repeated_for_two_channels(published: Path) -> None:
    colour, pair = (encoder_of(published, channels=channels).eval() for channels in (3, 2))
    image = torch.randn(1, 2, 32, 48)
    # As if the weights of the third colour had seen nothing, and the others half as much again
    colour.pretrained = False  # this image is as weights from ImageNet expect it
    as_colours = torch.cat([1.5 * standardise(image), torch.zeros(1, 1, 32, 48)], dim=1)
    bias = colour.stem.patch_embeddings.bias
    assert torch.equal(pair.stem.patch_embeddings.bias, bias)
    for ours, expected in zip(pair(image), colour(as_colours), strict=True):
        torch.testing.assert_close(ours, expected)
    assert pair.first_layer == "pretrained weights for 3 channels are repeated over 2 channels, times 3/2"


def test_nothing_is_built_that_never_learns() -> None:
    encoder = ConvNeXt(1, WIDTHS, DEPTHS, None)
    torch.stack([(feature**2).mean() for feature in encoder(torch.randn(1, 1, 32, 32))]).sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_weights_that_do_not_fit_are_refused(published: Path) -> None:
    with pytest.raises(RecipeError, match=r"Write widths: \[4, 8, 12\], depths: \[1, 2, 1\]"):
        encoder_of(published, widths=(4, 8, 16))
    (published / "model.safetensors").write_bytes(b"short")
    with pytest.raises(RecipeError, match="The weights of image encoder .* can't be read"):
        encoder_of(published)
    (published / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="holds no weights"):
        encoder_of(published)
    BertConfig().save_pretrained(published)
    with pytest.raises(RecipeError, match="is of the kind 'bert', and this network needs a ConvNeXt"):
        encoder_of(published)


def test_a_name_is_looked_for_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RecipeError, match="'somebody/convnext' is neither a folder nor on this machine. Run `textseg"):
        ConvNeXt(1, WIDTHS, DEPTHS, find_weights("somebody/convnext", None, pickled=False))


def test_what_there_is_to_fetch(published: Path) -> None:
    def fetched(name: str | None) -> str:
        return fetch_weights(name, None, pickled=False, progress=lambda name, done, total: None)

    assert fetched(None) == "ConvNeXt with random weights: nothing to fetch"
    assert fetched(str(published)).endswith("is a folder: nothing to fetch")
