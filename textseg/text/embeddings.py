"""Features of prompts from a frozen text encoder: token budget, each text encoded once, the cache on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from textseg.contracts import Source, TextEncoder
from textseg.errors import PluginError, PromptError, suggestion
from textseg.system.files import write_atomically
from textseg.system.messages import counted

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 64  # texts encoded between two writes: what an interrupted job loses at most
POOLINGS = ("mean", "first", "max")
LISTED = 20  # too long texts that a message shows


@dataclass(frozen=True)
class PromptRow:
    """A line of the prompt table: a text with its source, its generator and its encoder."""

    source: Source | Literal["simulated"]
    view: Literal["holistic", "classwise"]
    structure: str | None  # None for a holistic text, and for a text that several structures share
    text: str
    tokens: int
    generator: str
    encoder_fingerprint: str


@dataclass(frozen=True, eq=False)
class TextTable:
    """Frozen features of N distinct texts.

    An empty text has token count 0, zero features and a mask that is False everywhere.
    """

    texts: tuple[str, ...]
    token_counts: tuple[int, ...]
    tokens: Tensor  # [N, T, D] float16; padding is zero
    mask: Tensor  # [N, T] bool, True at tokens
    pooled: Tensor  # [N, D] float16, over the tokens as the encoder asks: their mean by default
    fingerprint: str  # of the encoder, the texts whatever their order, and T
    encoded_count: int  # texts that were not in the cache

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.texts)}

    def index(self, text: str) -> int:
        """Return the row of a text; raises PromptError where the table doesn't hold it."""
        try:
            return self._rows[text]
        except KeyError:
            raise PromptError(
                f"The text '{_shortened(text)}' is not among the {len(self.texts)} texts that were encoded for this "
                "run; build the text table from every text that the run can need."
            ) from None


def check_budget(encoder: TextEncoder, texts: Sequence[str]) -> int:
    """Return the token count of the longest text, special tokens included; 0 where no text has a word.

    Raises PromptError for texts longer than the encoder can read: cutting them would silently hide structures.
    """
    distinct = [text for text in dict.fromkeys(texts) if text]
    if not distinct:
        return 0
    counts = encoder.count_tokens(distinct)
    over = sorted(((n, text) for n, text in zip(counts, distinct, strict=True) if n > encoder.max_tokens), reverse=True)
    if over:
        lines = [f"  {counted(count, 'token')}: {_shortened(text)}" for count, text in over[:LISTED]]
        if len(over) > LISTED:
            lines.append(f"  and {len(over) - LISTED} more")
        raise PromptError(
            f"{type(encoder).__name__} reads at most {encoder.max_tokens} tokens, and these prompts are longer:\n"
            + "\n".join(lines)
            + "\nLower the granularity of the prompt generator, shorten the sentences and facts of cases, or use a "
            "text encoder that reads more."
        )
    return max(counts)


def build_text_table(encoder: TextEncoder, texts: Iterable[str], *, text_length: int, cache: Path) -> TextTable:
    """Return the features of every distinct text, padded to `text_length` (T); encode only texts not in the cache.

    `cache` is a folder that runs and processes may share. Raises PromptError for a text over the encoder's or the
    table's length, and for features that are no numbers; PluginError for an encoder that breaks its contract.
    """
    import torch

    # 1. Take features from the cache and encode the others, sorted by length: a chunk is padded to its longest text.
    distinct = tuple(dict.fromkeys(texts))
    entries = {text: _Entry(cache, encoder, text) for text in distinct if text}
    features = {text: stored for text, entry in entries.items() if (stored := entry.read()) is not None}
    missing = sorted((text for text in entries if text not in features), key=len)
    check_budget(encoder, missing)
    for start in range(0, len(missing), CHUNK):
        chunk = missing[start : start + CHUNK]
        tokens, mask = _encoded(encoder, chunk)
        for text, rows, kept in zip(chunk, tokens.detach().cpu(), mask.cpu(), strict=True):
            features[text] = rows[kept].to(torch.float16)
            if not torch.isfinite(features[text]).all():
                raise PromptError(
                    f"{type(encoder).__name__} gave features that are no numbers in 16 bits for '{_shortened(text)}'; "
                    "its weights are damaged or its features too large: use another layer or another encoder."
                )
            entries[text].write(features[text])

    # 2. Pad all features to one length.
    table = torch.zeros(len(distinct), text_length, encoder.feature_size, dtype=torch.float16)
    counts = tuple(len(features[text]) if text else 0 for text in distinct)
    for row, (text, count) in enumerate(zip(distinct, counts, strict=True)):
        if count > text_length:
            raise PromptError(
                f"The text '{_shortened(text)}' has {count} tokens, and this run was built for texts of at most "
                f"{text_length}; shorten it, or train a run whose prompts are as long."
            )
        if count:
            table[row, :count] = features[text]
    mask = torch.arange(text_length)[None] < torch.tensor(counts, dtype=torch.long)[:, None]
    return TextTable(
        texts=distinct,
        token_counts=counts,
        tokens=table,
        mask=mask,
        pooled=_pooled(table, mask, getattr(encoder, "pooling", "mean")),
        fingerprint=_digest(json.dumps([encoder.fingerprint, text_length, sorted(distinct)])),
        encoded_count=len(missing),
    )


def _all_tensors(given: object) -> bool:
    import torch

    return isinstance(given, tuple) and all(isinstance(part, torch.Tensor) for part in given)


def _encoded(encoder: TextEncoder, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return what an encoder gives for some texts. Raises PluginError for other shapes and types than it promises."""
    import torch

    given = encoder(texts)
    tensors: tuple[Tensor, ...] = given if _all_tensors(given) else ()
    size, shapes = (len(texts), encoder.feature_size), [tuple(tensor.shape) for tensor in tensors]
    if len(shapes) != 2 or (*shapes[0][:1], *shapes[0][2:]) != size or shapes[1] != shapes[0][:2]:
        seen = f"{type(given).__name__} of {shapes}" if shapes else type(given).__name__
        raise PluginError(_BROKEN.format(type(encoder).__name__, f"[{size[0]}, T, {size[1]}], [{size[0]}, T]", seen))
    tokens, mask = tensors
    if not tokens.is_floating_point() or mask.dtype != torch.bool:
        seen = f"{tokens.dtype} and {mask.dtype}"
        raise PluginError(_BROKEN.format(type(encoder).__name__, "floating point and torch.bool", seen))
    return tokens, mask


_BROKEN = (
    "Text encoder {} breaks the contract of its kind: expected a tuple of tokens and mask, {}; seen {}. Check it "
    "further: textseg plugins doctor --check"
)


def _pooled(tokens: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool the tokens of each text to a vector, [N, D]; zero for a text without a token."""
    import torch

    if pooling not in POOLINGS:
        raise PromptError(f"A text encoder asks for the pooling '{pooling}'.{suggestion(pooling, POOLINGS)}")
    if pooling == "mean" or not tokens.shape[1]:
        # Summed in float32: a hundred tokens in float16 would lose the last digits.
        return (tokens.sum(dim=1, dtype=torch.float32) / mask.sum(dim=1, keepdim=True).clamp(min=1)).to(tokens.dtype)
    if pooling == "first":
        return tokens[:, 0]
    highest = tokens.masked_fill(~mask[..., None], torch.finfo(tokens.dtype).min).amax(dim=1)
    return highest.masked_fill(~mask.any(dim=1, keepdim=True), 0)


def write_prompt_table(path: Path, rows: Iterable[PromptRow]) -> None:
    """Write prompts.jsonl, one line for each distinct source, view and text, in the order of their first use.

    Raises PromptError for an empty holistic text.
    """
    lines: dict[tuple[str, str, str], PromptRow] = {}
    for row in rows:
        if row.view == "holistic" and not row.text:
            raise PromptError(f"Prompt generator '{row.generator}' gave an empty holistic prompt ({row.source}).")
        first = lines.setdefault((row.source, row.view, row.text), row)
        if first.structure != row.structure:
            lines[row.source, row.view, row.text] = replace(first, structure=None)
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in lines.values())
    write_atomically(path, text)


class _Entry:
    """The cache file with the features of one text; a damaged one counts as missing."""

    def __init__(self, cache: Path, encoder: TextEncoder, text: str) -> None:
        self.key = _digest(json.dumps([encoder.fingerprint, text]))
        self.path = cache / self.key[:2] / f"{self.key}.safetensors"
        self.feature_size = encoder.feature_size

    def read(self) -> Tensor | None:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            stored = load(self.path.read_bytes())
            tokens, checksum = stored["tokens"], stored["checksum"]
        except (OSError, SafetensorError, KeyError):
            return None
        sound = tokens.dtype == torch.float16 and tokens.ndim == 2 and tokens.shape[1] == self.feature_size
        return tokens if sound and checksum.tolist() == list(self._checksum(tokens)) else None

    def write(self, tokens: Tensor) -> None:
        import torch
        from safetensors.torch import save

        checksum = torch.tensor(list(self._checksum(tokens)), dtype=torch.uint8)
        try:
            write_atomically(self.path, save({"tokens": tokens.contiguous(), "checksum": checksum}))
        except OSError as error:
            raise PromptError(
                f"The features of a prompt can't be written to '{self.path}': {error.strerror or error}. Make "
                "room, or set TEXTSEG_CACHE to a folder that you may write to."
            ) from error

    def _checksum(self, tokens: Tensor) -> bytes:
        # The key is part of it, so that a file under another's name is noticed too.
        return hashlib.sha256(self.key.encode() + tokens.numpy().tobytes()).digest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."
