"""Text without meaning: each word is a fixed random vector."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from textseg.errors import PromptError

TOKEN = re.compile(r"\w+|[^\w\s]")


class Hashed:
    """A vector for each word and punctuation mark, drawn from its hash, without weights and without context.

    An ablation for the knowledge of a pretrained encoder: two texts differ by exactly the words in
    which they differ, and no two words are related. Lower and upper case are the same. The numbers are uniform with
    mean 0 and variance 1, and the same on every machine. Raises PromptError for a setting out of range and for texts
    longer than `max_tokens`.

    Args:
        feature_size: D.
        max_tokens: longest text, in words and punctuation marks.
        seed: a different seed gives different vectors.
        pooling: vector of a whole text: the mean of its tokens, the first one, or the maximum.
    """

    def __init__(
        self,
        *,
        feature_size: int = 256,
        max_tokens: int = 512,
        seed: int = 0,
        pooling: Literal["mean", "first", "max"] = "mean",
    ) -> None:
        for name, value in {"feature_size": feature_size, "max_tokens": max_tokens}.items():
            if value < 1:
                raise PromptError(f"hashed: {name} is {value}, but must be at least 1.")
        self.feature_size = feature_size
        self.max_tokens = max_tokens
        self.seed = seed
        self.pooling = pooling

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the settings; `max_tokens` changes no feature."""
        return hashlib.sha256(f"hashed 1 {self.feature_size} {self.seed} {self.pooling}".encode()).hexdigest()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of words and punctuation marks of each text."""
        return [len(TOKEN.findall(text)) for text in texts]

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens [N, T, D] in float32 (padding is zero) and mask [N, T] of N texts, T the longest of them."""
        words = [TOKEN.findall(text.lower()) for text in texts]
        longest = max(map(len, words), default=0)
        if longest > self.max_tokens:
            text = texts[[len(row) for row in words].index(longest)]
            raise PromptError(
                f"hashed reads at most {self.max_tokens} tokens, and a text has {longest}: '{text[:80]}'. Shorten it, "
                "or raise max_tokens."
            )
        tokens = torch.zeros(len(texts), longest, self.feature_size)
        vectors = {word: self._vector(word) for row in words for word in row}
        for index, row in enumerate(words):
            if row:
                tokens[index, : len(row)] = torch.stack([vectors[word] for word in row])
        counts = torch.tensor([len(row) for row in words], dtype=torch.long)
        return tokens, torch.arange(longest)[None] < counts[:, None]

    def _vector(self, word: str) -> Tensor:
        # Of the hash itself: a generator's numbers may differ between machines and versions.
        drawn = hashlib.shake_256(f"{self.seed} {word}".encode()).digest(2 * self.feature_size)
        number = torch.tensor(list(drawn), dtype=torch.float32).reshape(-1, 2) @ torch.tensor([256.0, 1.0])
        vector: Tensor = ((number + 0.5) / 2**15 - 1) * 3**0.5  # uniform between -sqrt(3) and sqrt(3)
        return vector
