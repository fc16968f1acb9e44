"""A common interface for whole networks and for networks made of a vision encoder and a fusion."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textseg.contracts import (
    BatchGeometry,
    Batching,
    Features,
    Fusion,
    HasBatching,
    HasStages,
    Network,
    ReadsFrozen,
    ReadsGeometry,
    ReadsNeighbours,
    SegmenterOutput,
    Task,
    TextFeatures,
    VisionEncoder,
)
from textseg.errors import PluginError, RunError

Member = TypeVar("Member")
FROZEN = "frozen"  # key of a state for the fingerprint of the parameters that it leaves out


class TextGuidedNetwork(nn.Module):
    """A vision encoder, a fusion, and one convolution from the finest fused level to K classes.

    It reads no text if the task has none, and if its fusion has an attribute `uses_text` that is False. Where the task
    has none, the fusion gets None in place of the text.
    """

    def __init__(self, task: Task, vision_encoder: VisionEncoder, fusion: Fusion) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.fusion = fusion
        self.head = nn.Conv2d(fusion.features.channels[0], task.class_count, kernel_size=1)
        self.size_multiple = vision_encoder.size_multiple
        self.has_text = task.text_length is not None  # for an auxiliary loss, even if the fusion reads none
        self.uses_text = self.has_text and bool(getattr(fusion, "uses_text", True))
        self.reads_geometry = _reads_geometry(vision_encoder)
        self.context_slices = _context_slices(vision_encoder)

    def forward(
        self, image: Tensor, text: TextFeatures | None, geometry: BatchGeometry | None = None
    ) -> SegmenterOutput:
        """Return logits [B, K, H_0, W_0] of the finest fused level. Raises ValueError if a text is missing."""
        if text is None and self.uses_text:
            raise ValueError("A text-guided network needs text features.")
        further = {"geometry": geometry} if self.reads_geometry else {}
        image_features = self.vision_encoder(image, **further)
        fused_features = self.fusion(image_features, cast(TextFeatures, text))
        return SegmenterOutput(
            self.head(fused_features[0]), image_features=image_features, fused_features=fused_features, text=text
        )


class Segmenter(nn.Module):
    """Any network, for images of any size: it pads below and to the right to `size_multiple`, and resizes the logits.

    Deep logits and feature maps of the output keep the padded size. A network without text never sees text.

    In evaluation mode, the logits are the mean over the slice and its `mirrors`: the axes of each mirror image.

    Its state is what a checkpoint holds: all parameters but those that a part reads from elsewhere and never trains
    (`ReadsFrozen`), with the fingerprint of these. The state of `network` holds all parameters. Loading raises RunError
    if the frozen parameters of the checkpoint differ from the present ones.
    """

    def __init__(self, network: Network, mirrors: Sequence[tuple[int, ...]] = ()) -> None:
        super().__init__()
        self.network, self.mirrors = network, mirrors
        self.read_elsewhere = self._read_elsewhere()
        self.frozen_fingerprint = _fingerprint([self.get_parameter(name) for name in self.read_elsewhere])
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_put_back)  # type: ignore[no-untyped-call]

    @property
    def uses_text(self) -> bool:
        """True if the network reads text."""
        return self.network.uses_text

    @property
    def _takes_text(self) -> bool:
        return self.network.has_text if isinstance(self.network, TextGuidedNetwork) else self.uses_text

    @property
    def reads_geometry(self) -> bool:
        """True if the network reads the spacing and the position of each slice."""
        return _reads_geometry(self.network)

    @property
    def context_slices(self) -> int:
        """The number N of slices that the network reads for each one: itself, and its neighbours on both sides."""
        return _context_slices(self.network)

    @property
    def fused_features(self) -> Features | None:
        """The pyramid that auxiliary losses may use; None for a whole network."""
        return self.network.fusion.features if isinstance(self.network, TextGuidedNetwork) else None

    @property
    def batching(self) -> Batching:
        """The content of a batch: any slices, or all slices of one case in order."""
        part = self.part_with(HasBatching)
        return part.batching if part is not None else "slice"

    @property
    def stages(self) -> Mapping[str, float]:
        """The parts that are trained one after the other, with their shares of the epochs; empty without stages."""
        part = self.part_with(HasStages)
        return part.stages if part is not None else {}

    def part_with(self, protocol: type[Member]) -> Member | None:
        """Return the network, or else its fusion, if it has the members of an optional Protocol of `contracts`."""
        fusion = [self.network.fusion] if isinstance(self.network, TextGuidedNetwork) else []
        return next((part for part in (self.network, *fusion) if isinstance(part, protocol)), None)

    def _read_elsewhere(self) -> tuple[str, ...]:
        """Return the names of the parameters that are read from elsewhere at each build."""
        parts: dict[str, Any] = {"network": self.network}
        if isinstance(self.network, TextGuidedNetwork):
            parts["network.vision_encoder"] = self.network.vision_encoder
            parts["network.fusion"] = self.network.fusion
        names = (
            f"{path}.{name}"
            for path, part in parts.items()
            if isinstance(part, ReadsFrozen) and part.reads_frozen is True
            for name, parameter in cast(nn.Module, part).named_parameters()
            if not parameter.requires_grad
        )
        return tuple(dict.fromkeys(names))

    def forward(
        self, image: Tensor, text: TextFeatures | None = None, geometry: BatchGeometry | None = None
    ) -> SegmenterOutput:
        """Return the output for an image [B, N * C, H, W], text and geometry, with logits [B, K, H, W].

        Raises ValueError if a geometry is missing.
        """
        if geometry is None and self.reads_geometry:
            raise ValueError("This network needs the geometry of its slices.")
        output = self._output(image, text, geometry)
        if self.training or not self.mirrors:
            return output
        mirrored = [self._output(image.flip(axes), text, geometry).logits.flip(axes) for axes in self.mirrors]
        return replace(output, logits=torch.stack([output.logits, *mirrored]).mean(0))

    def _output(self, image: Tensor, text: TextFeatures | None, geometry: BatchGeometry | None) -> SegmenterOutput:
        height, width = image.shape[-2:]
        multiple = self.network.size_multiple
        padded = F.pad(image, (0, -width % multiple, 0, -height % multiple))
        further = {"geometry": geometry} if self.reads_geometry else {}
        output = self.network(padded, text if self._takes_text else None, **further)
        logits = output.logits
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = F.interpolate(logits, padded.shape[-2:], mode="bilinear", align_corners=False)
        return replace(output, logits=logits[..., :height, :width])


def _reads_geometry(part: object) -> bool:
    return isinstance(part, ReadsGeometry) and part.reads_geometry is True


def _context_slices(part: object) -> int:
    return part.context_slices if isinstance(part, ReadsNeighbours) else 1


def _leave_out(segmenter: Segmenter, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Remove the parameters that are read from elsewhere from a state before it is saved, and add their fingerprint."""
    for name in segmenter.read_elsewhere:
        if segmenter.get_parameter(name).requires_grad:
            raise PluginError(
                f"The model reads '{name}' from elsewhere (reads_frozen) and trains it, so no checkpoint would hold "
                "what it learned. It must stay frozen, or be trained from the beginning."
            )
        del state[prefix + name]
    if segmenter.read_elsewhere:
        state[prefix + FROZEN] = segmenter.frozen_fingerprint


def _put_back(segmenter: Segmenter, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Add the parameters that are read from elsewhere to a state before it is loaded, and check their fingerprint."""
    if not segmenter.read_elsewhere:
        return
    fingerprint = state.pop(prefix + FROZEN, None)
    if fingerprint != segmenter.frozen_fingerprint:
        composed = isinstance(segmenter.network, TextGuidedNetwork)
        parts = {name.split(".")[1] for name in segmenter.read_elsewhere} if composed else {"network"}
        raise RunError(
            f"These weights belong to a model whose frozen part ({', '.join(sorted(parts))}) has the fingerprint "
            f"{fingerprint}, and that of the one at hand is {segmenter.frozen_fingerprint}: what the recipe reads it "
            "from has changed. Bring back the weights that were there, or train again with --fresh."
        )
    for name in segmenter.read_elsewhere:
        state[prefix + name] = segmenter.get_parameter(name).detach()


def _fingerprint(parameters: list[nn.Parameter]) -> str | None:
    """Return a hash of values and shapes; None without parameters, and on a device that holds no values."""
    if not parameters or any(parameter.is_meta for parameter in parameters):
        return None
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(repr(tuple(parameter.shape)).encode())
        digest.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
