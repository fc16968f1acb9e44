from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from textseg.testing import ConformanceError, Subject, check_text_encoder, checks


class Words:
    """A vector for each word: keeps every promise."""

    feature_size = 6
    max_tokens = 30
    fingerprint = "words 1"

    def __init__(self) -> None: ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def vector(self, word: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
        return torch.randn(self.feature_size, generator=torch.Generator().manual_seed(seed))

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = [torch.stack([self.vector(word) for word in text.split()]) for text in texts]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(tokens.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
        return tokens, mask


class Sizeless(Words):
    """Says no size."""

    feature_size = None  # type: ignore[assignment]


class Unknown(Words):
    """Has no fingerprint."""

    fingerprint = ""


class Uncounted(Words):
    """Counts nothing."""

    count_tokens = None  # type: ignore[assignment]


class Eager(Words):
    """Reads weights when it is built."""

    def __init__(self) -> None:
        (Path(__file__).parents[2] / "LICENSE").read_bytes()


class Noisy(Words):
    """Draws from torch's own state."""

    def vector(self, word: str) -> Tensor:
        torch.rand(1)
        return super().vector(word)


class Padded(Words):
    """Padding of one."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = super().__call__(texts)
        return tokens.masked_fill(~mask[..., None], 1), mask


class Fixed(Words):
    """Always thirty tokens."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = super().__call__(texts)
        rest = self.max_tokens - tokens.shape[1]
        return nn.functional.pad(tokens, (0, 0, 0, rest)), nn.functional.pad(mask, (0, rest))


class Numbered(Words):
    """A mask of numbers."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = super().__call__(texts)
        return tokens, mask.long()


class Leftward(Words):
    """Padding first."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = super().__call__(texts)
        return tokens.flip(1), mask.flip(1)


class Miscounting(Words):
    """Forgets the special tokens, where a text is short."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [max(2, count) for count in super().count_tokens(texts)]


class Tensors(Words):
    """Counts in a tensor."""

    def count_tokens(self, texts: Sequence[str]) -> Any:
        return torch.tensor(super().count_tokens(texts))


class Trained(Words):
    """Features with gradients."""

    def vector(self, word: str) -> Tensor:
        return super().vector(word).requires_grad_()


class Cutting(Words):
    """Counts after it has cut."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [min(self.max_tokens, count) for count in super().count_tokens(texts)]


class Short(Cutting):
    """Cuts, too."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = super().__call__(texts)
        return tokens[:, : self.max_tokens], mask[:, : self.max_tokens]


class OneVector(Words):
    """The mean of all words of a text, however long: one token, and nothing is cut."""

    max_tokens = 1

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [1] * len(texts)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = super().__call__(texts)
        return tokens.sum(1, keepdim=True) / mask.sum(1)[:, None, None], mask[:, :1]


class Normed(Words):
    """Takes the mean of the batch away."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = super().__call__(texts)
        return (tokens - tokens[mask].mean(0)) * mask[..., None], mask


class Dropping(Words):
    """Drops out."""

    calls = itertools.count(1)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens, mask = super().__call__(texts)
        return tokens * next(self.calls), mask


class Same(Words):
    """One vector for all."""

    def vector(self, word: str) -> Tensor:
        return torch.ones(self.feature_size)


class Aging(Words):
    """Another fingerprint once its weights are read."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.fingerprint = "words 2"
        return super().__call__(texts)


class Individual(Words):
    """Another fingerprint for each."""

    numbers = itertools.count()

    def __init__(self) -> None:
        self.fingerprint = f"words {next(self.numbers)}"


class Random(Words):
    """Weights that its fingerprint doesn't know."""

    numbers = itertools.count(1)

    def __init__(self) -> None:
        self.scale = next(self.numbers)

    def vector(self, word: str) -> Tensor:
        return super().vector(word) * self.scale


def test_what_keeps_every_promise_passes() -> None:
    check_text_encoder(Words)
    check_text_encoder(OneVector)
    check_text_encoder("hashed", settings={"feature_size": 4, "seed": 3})


@pytest.mark.parametrize(
    ("wrong", "broken", "message"),
    [
        (Sizeless, "construction", "an attribute `feature_size`, a whole number, came None"),
        (Unknown, "construction", "an attribute `fingerprint`, a text, came "),
        (Uncounted, "construction", "a method `count_tokens(texts)`, came none"),
        (Eager, "surroundings", "construction that touches no file, process and network, came reading '"),
        (Noisy, "surroundings", "no random numbers, came a change of torch's random state"),
        (Padded, "tokens", "zero where the mask is False, came other numbers"),
        (Fixed, "tokens", "tokens (4, 16, 6), T the longest text as counted, came (4, 30, 6)"),
        (Numbered, "tokens", "a mask of torch.bool, came torch.int64"),
        (Leftward, "tokens", "tokens first, padding after them, came another order in the mask"),
        (Miscounting, "tokens", "as many tokens in the mask as count_tokens says, [16, 6, 2, 7], came [16, 6, 1, 7]"),
        (Tensors, "tokens", "from count_tokens a list of 4 whole numbers for as many texts, came tensor"),
        (Trained, "tokens", "frozen features, came features with gradients"),
        (
            Cutting,
            "limit",
            "more than max_tokens (30) for a text of more words, or features that its last word changes, came 30",
        ),
        (Short, "limit", "more than max_tokens (30) for a text of more words, or features that its last word changes"),
        (Normed, "independence", "the same features for a text alone and among others, came a difference of"),
        (Dropping, "independence", "the same features at a second call, came others"),
        (Same, "independence", "other features for another text, came the same"),
        (Aging, "fingerprint", "the same fingerprint after a call, came words 1 and words 2"),
        (Individual, "fingerprint", "the same fingerprint of equal settings, came words"),
        (Random, "fingerprint", "the same features where the fingerprint is the same, came others"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_wrong_is_caught(wrong: Any, broken: str, message: str) -> None:
    (check,) = [check for check in checks("text_encoder") if check.name == broken]
    with pytest.raises(ConformanceError) as caught:
        check(Subject.of("text_encoder", wrong))
    assert str(caught.value).startswith(f"text_encoder '{wrong.__name__}' breaks '{broken}': expected ")
    assert message in str(caught.value)
