"""Checks of text encoders: frozen, with token counts, and independent of the other texts of a call."""

from __future__ import annotations

from typing import cast

import torch

from textseg.contracts import TextEncoder
from textseg.testing.conformance import Subject, check
from textseg.testing.promises import promise
from textseg.testing.surroundings import undisturbed

KIND = "text_encoder"
TEXTS = (
    "The sagittal MRI of the lumbar spine demonstrates the anatomy, which encompasses the L1 lumbar vertebra.",
    "It contains the L1 lumbar vertebra.",
    "spine",
    "It does not contain the spinal canal.",
)
LONG = 10_000  # words of a text that is longer than prompts are


def _warm_encoder(subject: Subject) -> TextEncoder:
    """Return one encoder for all checks that do not change it, so that its weights are read once."""
    if "encoder" not in subject.shared:
        subject.shared["encoder"] = subject.build()
    return cast(TextEncoder, subject.shared["encoder"])


@check("construction", KIND, fundamental=True)
def _construction(subject: Subject) -> None:
    """Check that the encoder can be built and has a feature size, a token limit and a fingerprint."""
    encoder: TextEncoder = subject.build()
    for name in ("feature_size", "max_tokens"):
        value = getattr(encoder, name, None)
        promise(isinstance(value, int) and value > 0, f"an attribute `{name}`, a whole number", value)
    fingerprint = getattr(encoder, "fingerprint", None)
    promise(isinstance(fingerprint, str) and fingerprint, "an attribute `fingerprint`, a text", fingerprint)
    promise(callable(encoder), "an object that can be called with a list of texts", type(encoder).__name__)
    promise(callable(getattr(encoder, "count_tokens", None)), "a method `count_tokens(texts)`", "none")


@check("surroundings", KIND, tolerant=True)
def _surroundings(subject: Subject) -> None:
    """Construction touches nothing, a call no network and no random numbers."""
    before = torch.get_rng_state()
    with undisturbed("construction", allowed=subject.settings.values()):
        encoder: TextEncoder = subject.build()
    for _ in range(2):  # the first one reads the weights, and imports what it needs
        with undisturbed("a call", files=True):
            encoder(TEXTS[:1])
    promise(torch.equal(before, torch.get_rng_state()), "no random numbers", "a change of torch's random state")


@check("tokens", KIND)
def _tokens(subject: Subject) -> None:
    """Tokens [N, T, D] with padding of zero, mask [N, T], as many as counted."""
    encoder = _warm_encoder(subject)
    counts = encoder.count_tokens(TEXTS)
    whole = isinstance(counts, list) and len(counts) == len(TEXTS) and all(type(count) is int for count in counts)
    promise(whole, f"from count_tokens a list of {len(TEXTS)} whole numbers for as many texts", counts)
    given = encoder(TEXTS)
    promise(isinstance(given, tuple) and len(given) == 2, "tokens and mask", type(given).__name__)
    tokens, mask = given
    shape = (len(TEXTS), max(counts), encoder.feature_size)
    promise(tuple(tokens.shape) == shape, f"tokens {shape}, T the longest text as counted", tuple(tokens.shape))
    promise(tuple(mask.shape) == shape[:2], f"a mask {shape[:2]}", tuple(mask.shape))
    promise(mask.dtype == torch.bool, "a mask of torch.bool", mask.dtype)
    promise(tokens.is_floating_point(), "tokens of floating point", tokens.dtype)
    marked = mask.sum(1).tolist()
    promise(marked == counts, f"as many tokens in the mask as count_tokens says, {counts}", marked)
    left = torch.arange(shape[1])[None] < torch.tensor(counts)[:, None]
    promise(torch.equal(mask.cpu(), left), "tokens first, padding after them", "another order in the mask")
    promise(not tokens[~mask].any(), "zero where the mask is False", "other numbers")
    promise(bool(tokens.isfinite().all()), "finite numbers", "NaN or infinity")
    promise(not tokens.requires_grad, "frozen features", "features with gradients: encode without them")


@check("limit", KIND)
def _limit(subject: Subject) -> None:
    """Check that no text is cut: one over the limit is counted as such, or its last word still changes its features."""
    encoder = _warm_encoder(subject)
    words = "spine " * min(encoder.max_tokens + 1, LONG)
    (count,) = encoder.count_tokens([words])
    if count > encoder.max_tokens:
        return  # a run refuses it
    wanted = (
        f"more than max_tokens ({encoder.max_tokens}) for a text of more words, or features that its last word changes"
    )
    first, second = (encoder([words + last])[0] for last in ("canal", "disc"))
    promise(first.shape[1] <= encoder.max_tokens and not torch.equal(first, second), wanted, f"{count}: it is cut")


@check("independence", KIND)
def _independence(subject: Subject) -> None:
    """A text has the same features alone and among others, today and tomorrow; other texts have others."""
    encoder = _warm_encoder(subject)
    tokens, mask = encoder(TEXTS)
    again, _ = encoder(TEXTS)
    promise(torch.equal(tokens, again), "the same features at a second call", "others: encode in evaluation")
    for row, text in list(enumerate(TEXTS))[:3]:
        alone, _ = encoder([text])
        count = int(mask[row].sum())
        difference = (alone[0, :count] - tokens[row, :count]).abs().max().item()
        close = difference <= 1e-3 * (1 + alone.abs().max().item())
        about = f"a difference of {difference:.1e} for '{text}'"
        promise(close, "the same features for a text alone and among others", about)
    first, third = (tokens[row][mask[row]].mean(0) for row in (0, 2))
    promise(not torch.equal(first, third), "other features for another text", "the same")


@check("fingerprint", KIND)
def _fingerprint(subject: Subject) -> None:
    """Check that equal settings have equal fingerprints, before and after weights are read, and equal features."""
    first, second = _warm_encoder(subject), subject.build()
    before = second.fingerprint
    tokens, _ = first(TEXTS)
    same, _ = second(TEXTS)
    promise(second.fingerprint == before, "the same fingerprint after a call", f"{before} and {second.fingerprint}")
    promise(first.fingerprint == before, "the same fingerprint of equal settings", f"{first.fingerprint} and {before}")
    promise(torch.equal(tokens, same), "the same features where the fingerprint is the same", "others")


CHECKS = (_surroundings, _construction, _tokens, _limit, _independence, _fingerprint)
