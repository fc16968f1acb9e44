from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import random
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import Batch, BatchGeometry, Features, SegmenterOutput, Task, TextFeatures
from textseg.testing import (
    ConformanceError,
    Subject,
    check_auxiliary_loss,
    check_fusion,
    check_network,
    check_vision_encoder,
    checks,
)

HERE = Path(__file__)


class Mixer(nn.Module):
    """Adds what the text says to every position: keeps every promise."""

    def __init__(self, task: Task, features: Features, *, gain: float = 1.0) -> None:
        super().__init__()
        assert task.text_size is not None
        self.features = features
        self.layers = nn.ModuleList(nn.Linear(task.text_size, channels) for channels in features.channels)
        self.gain = gain

    def embedded(self, text: TextFeatures) -> Tensor:
        tokens = text.tokens.masked_fill(~text.mask[..., None], 0)
        return self.gain * tokens.sum(1) / text.mask.sum(1, keepdim=True)  # [B, D]

    def forward(self, image_features: tuple[Tensor, ...], text: TextFeatures) -> tuple[Tensor, ...]:
        prompt = self.embedded(text)
        pairs = zip(image_features, self.layers, strict=True)
        return tuple(feature + layer(prompt)[..., None, None] for feature, layer in pairs)


class Pyramid(nn.Module):
    """Two convolutions: keeps every promise."""

    def __init__(self, task: Task, *, channels: tuple[int, int] = (4, 6)) -> None:
        super().__init__()
        self.features = Features(channels, (1, 2))
        self.size_multiple = 2
        self.fine = nn.Conv2d(task.image_channels, channels[0], 3, padding=1)
        self.coarse = nn.Conv2d(channels[0], channels[1], 3, stride=2, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        fine = self.fine(image)
        return fine, self.coarse(fine)


class Plain(nn.Module):
    """One convolution, half the size: keeps every promise."""

    uses_text = False
    size_multiple = 2

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.layer = nn.Conv2d(task.image_channels, task.class_count, 2, stride=2)

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        return SegmenterOutput(self.layer(image))


class Agreement(nn.Module):
    """Cross-entropy over the pixels of structures: keeps every promise."""

    def __init__(self, task: Task, features: Features) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output: SegmenterOutput, batch: Batch) -> Tensor:
        shown = batch.mask > 0
        loss = F.cross_entropy(self.scale * output.logits.float(), batch.mask, reduction="none")
        return (loss * shown).sum() / shown.sum().clamp(min=1)


def test_what_keeps_every_promise_passes() -> None:
    check_fusion(Mixer)
    check_fusion(Mixer, settings={"gain": 0.5}, features=Features((4, 8), (2, 4)))
    check_vision_encoder(Pyramid, image_size=(31, 50))
    check_network(Plain, atlas="lumbar_spider")
    check_auxiliary_loss(Agreement)


def test_the_kit_leaves_random_state_and_threads_alone() -> None:
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    check_network(Plain)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


# ---- signature and construction --------------------------------------------------------------------------------------


class Swapped(Mixer):
    """Takes features first."""

    def __init__(self, features: Features, task: Task) -> None:
        super().__init__(task, features)


class Unhinted(Mixer):
    """A setting of unknown type."""

    def __init__(self, task: Task, features: Features, *, gain=1.0) -> None:  # type: ignore[no-untyped-def]
        super().__init__(task, features)


class Mistyped(Mixer):
    """A default that its hint forbids."""

    def __init__(self, task: Task, features: Features, *, gain: int = 0.5) -> None:  # type: ignore[assignment]
        super().__init__(task, features)


class Undescribed(Mixer):
    __doc__ = None


class Needy(Mixer):
    """A setting without a default."""

    def __init__(self, task: Task, features: Features, *, gain: float) -> None:
        super().__init__(task, features, gain=gain)


class Failing(Mixer):
    """Fails for these features."""

    def __init__(self, task: Task, features: Features) -> None:
        raise ZeroDivisionError("heads")


class Silent(Mixer):
    """Says nothing of its levels."""

    def __init__(self, task: Task, features: Features) -> None:
        super().__init__(task, features)
        del self.features


class Upwards(Mixer):
    """Coarsest level first."""

    def __init__(self, task: Task, features: Features) -> None:
        super().__init__(task, features)
        self.features = Features(features.channels[::-1], features.strides[::-1])


class Light:
    """No module."""

    def __init__(self, task: Task, features: Features) -> None:
        self.features = features


# ---- surroundings ----------------------------------------------------------------------------------------------------


class Touching(Mixer):
    """Does something else on the way."""

    def __init__(self, task: Task, features: Features) -> None:
        super().__init__(task, features)
        self.touch()

    def touch(self) -> None: ...


def touching(what: Any) -> type[Touching]:
    return type("Touching", (Touching,), {"touch": lambda self: what() and None, "__doc__": "Touches."})


def seeded() -> None:
    torch.manual_seed(0)


def double_precision() -> None:
    torch.set_default_dtype(torch.float64)


def connected() -> None:
    with socket.socket() as connection:
        connection.connect(("127.0.0.1", 9))


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TEXTSEG_TOUCHED", "no")
    folder = Path.cwd()
    yield
    os.chdir(folder)


@pytest.mark.parametrize(
    ("touch", "came"),
    [
        (seeded, "a seed of its own"),
        (double_precision, "another default dtype: torch.float32 -> torch.float64"),
        (connected, "a connection to the network \\(socket.connect \\('127.0.0.1', 9\\)\\)"),
        (lambda: HERE.with_suffix(".txt").write_bytes(b""), "writing '.*test_modules.txt'"),
        ((HERE.parent.parent.parent / "LICENSE").read_text, "reading '.*LICENSE'"),
        (lambda: list(HERE.parent.iterdir()), "reading '.*testing'"),
        (lambda: subprocess.run([sys.executable, "-c", ""], check=True), "another process \\('.*python.*'\\)"),
        (lambda: os.environ.update(TEXTSEG_TOUCHED="yes"), "a change of an environment variable \\(b'TEXTSEG_TOUCHED'"),
        (lambda: os.chdir("/"), "a change of the folder \\('/'\\)"),
        (lambda: random.seed(1), "another state of the module random"),
        (lambda: np.random.rand(), "another state of numpy.random"),
    ],
)
def test_what_touches_its_surroundings_is_caught(touch: Any, came: str) -> None:
    try:
        (check,) = [check for check in checks("fusion") if check.name == "surroundings"]
        with pytest.raises(ConformanceError, match=f"fusion 'Touching' breaks 'surroundings'.*came {came}"):
            check(Subject.of("fusion", touching(touch)))
        assert torch.get_default_dtype() == torch.float32
    finally:
        HERE.with_suffix(".txt").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "look",
    [
        lambda: (importlib.invalidate_caches(), importlib.util.find_spec("no_such_module")),
        lambda: importlib.metadata.version("textseg"),
    ],
    ids=["module", "package"],
)
def test_looking_for_what_is_installed_touches_nothing(look: Any) -> None:
    """A finder reads whole folders."""
    (check,) = [check for check in checks("fusion") if check.name == "surroundings"]
    check(Subject.of("fusion", touching(look)))


class Weighted(Mixer):
    """Reads weights from where a setting says, which it may."""

    def __init__(self, task: Task, features: Features, *, weights: str) -> None:
        super().__init__(task, features)
        assert Path(weights).read_bytes() == b"weights"


def test_weights_of_a_path_in_the_settings_may_be_read(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    check_fusion(Weighted, settings={"weights": str(tmp_path / "weights")})


# ---- what goes in and comes out --------------------------------------------------------------------------------------


class Listed(Mixer):
    """A list, which is no tuple."""

    def forward(self, image_features: tuple[Tensor, ...], text: TextFeatures) -> Any:
        return list(super().forward(image_features, text))


class Halved(Mixer):
    """Half the size it declares."""

    def forward(self, image_features: tuple[Tensor, ...], text: TextFeatures) -> tuple[Tensor, ...]:
        return tuple(F.avg_pool2d(feature, 2) for feature in super().forward(image_features, text))


class Unbiased(Mixer):
    """A standard deviation over the tokens, of which one has none."""

    def embedded(self, text: TextFeatures) -> Tensor:
        mean = super().embedded(text)
        squares = ((text.tokens - mean[:, None]) ** 2 * text.mask[..., None]).sum(1)
        return mean + squares / (text.mask.sum(1, keepdim=True) - 1)


class Idle(Mixer):
    """A layer that nothing uses."""

    def __init__(self, task: Task, features: Features) -> None:
        super().__init__(task, features)
        self.idle = nn.Linear(2, 2)


class Rooted(Mixer):
    """A square root at zero, whose gradient is infinite."""

    def embedded(self, text: TextFeatures) -> Tensor:
        weight = self.layers[0].weight  # type: ignore[union-attr]
        return super().embedded(text) + (weight - weight.detach()).abs().sqrt().sum()  # type: ignore[operator]


class Detached(Mixer):
    """Lets no gradient back to the vision encoder."""

    def forward(self, image_features: tuple[Tensor, ...], text: TextFeatures) -> tuple[Tensor, ...]:
        return super().forward(tuple(feature.detach() for feature in image_features), text)


class Summing(Mixer):
    """Adds what autocast made bfloat16 into float32, which torch refuses."""

    def forward(self, image_features: tuple[Tensor, ...], text: TextFeatures) -> tuple[Tensor, ...]:
        fine, *rest = super().forward(image_features, text)
        weight = torch.eye(fine.shape[1], device=fine.device)
        mixed = torch.einsum("bchw,cd->bdhw", fine, weight)
        return torch.zeros_like(fine).index_add(0, torch.arange(len(fine)), mixed), *rest


class Drawn(Mixer):
    """Initial values of a generator that nobody seeds."""

    def __init__(self, task: Task, features: Features) -> None:
        super().__init__(task, features)
        drawn = np.random.default_rng().normal(size=features.channels[0]).astype(np.float32)
        self.layers[0].bias.data = torch.from_numpy(drawn)  # type: ignore[union-attr]


class Dropping(Mixer):
    """Drops out in evaluation, too."""

    def embedded(self, text: TextFeatures) -> Tensor:
        return F.dropout(super().embedded(text), 0.5, training=True)


class Remembering(Mixer):
    """A running mean in a plain attribute."""

    mean: Tensor | None = None

    def embedded(self, text: TextFeatures) -> Tensor:
        prompt = super().embedded(text)
        if self.training:
            self.mean = prompt.detach().mean(0)
        return prompt if self.mean is None else prompt - self.mean


class Unpicklable(Mixer):
    """A lambda as an attribute."""

    def __init__(self, task: Task, features: Features) -> None:
        super().__init__(task, features)
        self.activation = lambda tensor: tensor


class Comparing(Mixer):
    """Looks at the other slices of the batch."""

    def embedded(self, text: TextFeatures) -> Tensor:
        prompt = super().embedded(text)
        return prompt - prompt.mean(0)


class Unmasked(Mixer):
    """Reads what is masked."""

    def embedded(self, text: TextFeatures) -> Tensor:
        return text.tokens.sum(1)


class Deaf(Mixer):
    """Does not listen."""

    def embedded(self, text: TextFeatures) -> Tensor:
        return torch.ones_like(text.tokens[:, 0])


class Gated(Mixer):
    """A gate that starts closed, which is no mistake."""

    def __init__(self, task: Task, features: Features) -> None:
        super().__init__(task, features)
        self.gate = nn.Parameter(torch.zeros(()))

    def embedded(self, text: TextFeatures) -> Tensor:
        return self.gate * super().embedded(text)


def test_a_gate_that_starts_closed_is_no_mistake() -> None:
    check_fusion(Gated)


WRONG_FUSIONS = [
    (Swapped, "signature", "its builder takes the positional parameters (features, task)"),
    (Unhinted, "signature", "a type hint for the setting 'gain', by which recipes are checked, came none"),
    (Mistyped, "signature", "a default of 'gain' that its type hint allows, came 0.5"),
    (Undescribed, "signature", "a docstring, whose first line lists it, came none"),
    (Needy, "signature", "settings to check it with (gain has no default), came none: give them as `settings`"),
    (Failing, "construction", "can't be built with its defaults: ZeroDivisionError: heads"),
    (Silent, "construction", "an attribute `features`, a textseg.contracts.Features, came None"),
    (Upwards, "construction", "strides from the finest level to the coarsest, came (4, 2, 1)"),
    (Light, "construction", "an nn.Module, came Light"),
    (Listed, "shapes", "a tuple of tensors, finest level first, came list"),
    (Halved, "shapes", "maps [(2, 8, 64, 96), (2, 16, 32, 48), (2, 24, 16, 24)] for 64 x 96 pixels, two slices"),
    (Unbiased, "shapes", "finite numbers for 64 x 96 pixels, two slices, the text of the second one token, came NaN"),
    (Idle, "gradients", "a gradient for every trainable parameter, came none for idle.weight, idle.bias"),
    (Rooted, "gradients", "finite gradients, came NaN or infinity in layers.0.weight"),
    (Detached, "gradients", "gradients back to the model, came none: its input is detached"),
    (Summing, "precision", "expected no error, came RuntimeError: "),
    (Drawn, "determinism", "the same weights from the same seed, came others in layers.0.bias"),
    (Dropping, "determinism", "the same results in evaluation, whatever the seed, came others"),
    (Remembering, "state", "what it knows beyond its settings must live in parameters and buffers"),
    (Unpicklable, "state", "expected no error, came"),
    (Comparing, "batch", "in evaluation the same for a slice alone and in a batch, came a difference of"),
    (Unmasked, "text", "the same result whatever stands where the text is masked, came a change of"),
    (Deaf, "text", "another result for another text, came the same: the text is not read"),
]


class Coarse(Pyramid):
    """Takes images whose coarsest level would be broken in two."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.size_multiple = 3


class Numberless(Pyramid):
    """A size_multiple of None."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.size_multiple = None  # type: ignore[assignment]


class Square(Pyramid):
    """Takes height for width."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        height = image.shape[-2]
        return super().forward(image[..., :height])


WRONG_ENCODERS = [
    (Coarse, "construction", "a size_multiple that the coarsest stride (2) divides, came 3"),
    (Numberless, "construction", "an attribute `size_multiple`, a whole number, came None"),
    (Square, "shapes", "maps [(2, 4, 64, 96), (2, 6, 32, 48)] for 64 x 96 pixels"),
]


class Undecided(Plain):
    """Says not whether it reads text."""

    uses_text = None  # type: ignore[assignment]


class Whole(Plain):
    """An unknown batching."""

    batching = "case"


class Extra(Plain):
    """One class too many."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.layer = nn.Conv2d(task.image_channels, task.class_count + 1, 2, stride=2)


class Deep(Plain):
    """Deep logits of another number of classes."""

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        logits = self.layer(image)
        return SegmenterOutput(logits, (logits[:, :1],))


class Paired(Plain):
    """Made for more than one structure."""

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        logits = self.layer(image)
        return SegmenterOutput(logits / (logits.shape[1] - 2))


class Padded(Plain):
    """Compares the padded deep logits with the mask as it is."""

    size_multiple = 16

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        logits = F.interpolate(self.layer(image), scale_factor=2.0)
        return SegmenterOutput(logits, (logits,))

    def losses(self, output: SegmenterOutput, batch: Batch, segmentation_loss: Any) -> dict[str, Tensor]:
        return {"deep": F.cross_entropy(output.deep_logits[0], batch.mask)}


class Misjudging(Plain):
    """Losses without names."""

    def losses(self, output: SegmenterOutput, batch: Batch, segmentation_loss: Any) -> Any:
        return output.logits.mean()


class Staged(Plain):
    """A second stage in which something is trained that is not used."""

    stages: Mapping[str, float] = {"first": 1.0, "second": 1.0}

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.second = nn.Linear(2, 2).requires_grad_(False)

    def start_stage(self, name: str) -> None:
        self.second.requires_grad_(name == "second")


class Blind(Plain):
    """Asks for the geometry and reads none of it."""

    reads_geometry = True

    def forward(self, image: Tensor, text: TextFeatures | None, geometry: BatchGeometry) -> SegmenterOutput:
        return super().forward(image, text)


class Even(Plain):
    """A slice that is in no middle."""

    context_slices = 2


class Lone(Plain):
    """Asks for neighbours and reads the slice alone."""

    context_slices = 3

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        return super().forward(image[:, 1:2], text)


WRONG_NETWORKS = [
    (Even, "construction", "an attribute `context_slices` that is an odd number, or none, came 2"),
    (Blind, "geometry", "another result for another `geometry`, came the same: it is not read"),
    (Lone, "geometry", "another result for another first neighbour, came the same: not read"),
    (Undecided, "construction", "an attribute `uses_text`, true or false, came None"),
    (Whole, "construction", 'batching = "slice" or "volume", came \'case\''),
    (Extra, "shapes", "logits (2, 5, 64, 96) for 64 x 96 pixels, two slices"),
    (Deep, "shapes", "deep logits [2, 5, H_l, W_l] for 64 x 96 pixels"),
    (Paired, "shapes", "one slice and one structure, came NaN or infinity"),
    (Padded, "gradients", "expected no error, came RuntimeError: "),
    (Misjudging, "gradients", "losses() that gives a scalar by name"),
    (Staged, "gradients", "a gradient for every trainable parameter in stage 'second', came none for second.weight"),
]


class Halfway(Agreement):
    """A loss in bfloat16 under autocast."""

    def forward(self, output: SegmenterOutput, batch: Batch) -> Tensor:
        loss = super().forward(output, batch)
        return loss.bfloat16() if torch.is_autocast_enabled("cpu") else loss


class PerSlice(Agreement):
    """A number for each slice."""

    def forward(self, output: SegmenterOutput, batch: Batch) -> Tensor:
        return super().forward(output, batch).expand(len(batch.mask))


class Dividing(Agreement):
    """The mean over no pixel."""

    def forward(self, output: SegmenterOutput, batch: Batch) -> Tensor:
        loss = F.cross_entropy(self.scale * output.logits.float(), batch.mask, reduction="none")
        return loss[batch.mask > 0].mean()


class Giving(Agreement):
    """Gives up where there is nothing to say."""

    def forward(self, output: SegmenterOutput, batch: Batch) -> Tensor:
        return super().forward(output, batch) if (batch.mask > 0).any() else torch.zeros(())


class Constant(Agreement):
    """Asks for nothing."""

    def forward(self, output: SegmenterOutput, batch: Batch) -> Tensor:
        return 1 + 0 * super().forward(output, batch)


WRONG_LOSSES = [
    (PerSlice, "shapes", "a scalar in float32 for 64 x 96 pixels, two slices, the text of the second one token, came"),
    (Halfway, "precision", "a loss in float32 under autocast, came torch.bfloat16"),
    (Dividing, "absent", "a finite loss for no structure, came nan"),
    (Giving, "absent", "a loss with gradients for no structure, be they zero, came one without"),
    (Constant, "falls", "a loss that falls as the model follows its gradient, came 1 at first and 1 after 30 steps"),
]


@pytest.mark.parametrize(
    ("kind", "wrong", "broken", "message"),
    [
        *(("fusion", *row) for row in WRONG_FUSIONS),
        *(("vision_encoder", *row) for row in WRONG_ENCODERS),
        *(("network", *row) for row in WRONG_NETWORKS),
        *(("auxiliary_loss", *row) for row in WRONG_LOSSES),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_wrong_is_caught(kind: str, wrong: Any, broken: str, message: str) -> None:
    (check,) = [check for check in checks(kind) if check.name == broken]
    with pytest.raises(ConformanceError) as caught:
        check(Subject.of(kind, wrong))
    raised = str(caught.value)
    assert raised.startswith(f"{kind} '{wrong.__name__}' breaks '{broken}': expected ")
    assert message in raised
    assert raised.endswith(f"See docs/reference/conformance.md#{broken}.")


def test_every_broken_promise_has_a_line_of_its_own() -> None:
    class Two(Comparing):
        """Two mistakes."""

        def embedded(self, text: TextFeatures) -> Tensor:
            return super().embedded(text) + text.tokens.sum(1)

    with pytest.raises(ConformanceError) as caught:
        check_fusion(Two)
    broken = [line.split("'")[3] for line in str(caught.value).splitlines()]
    assert {"batch", "text"} <= set(broken)
    assert len(broken) == len(set(broken))
