from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from textseg.errors import PluginError, PromptError
from textseg.text.embeddings import CHUNK, PromptRow, _Entry, build_text_table, check_budget, write_prompt_table

TEXTS = ("a spine", "It contains L1.", "It does not contain the spinal canal.")


class Words:
    """Token = word; its features are random numbers drawn from the word and its place."""

    feature_size = 6
    max_tokens = 8

    def __init__(self, fingerprint: str = "words") -> None:
        self.fingerprint = fingerprint
        self.encoded: list[str] = []

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def features(self, text: str) -> Tensor:
        rows = []
        for position, word in enumerate(text.split()):
            seed = hashlib.sha256(f"{position} {word}".encode()).digest()[:4]
            rows.append(torch.randn(self.feature_size, generator=torch.Generator().manual_seed(int.from_bytes(seed))))
        return torch.stack(rows)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        assert len(texts) <= CHUNK
        self.encoded += texts
        longest = max(self.count_tokens(texts))
        tokens, mask = torch.zeros(len(texts), longest, 6), torch.zeros(len(texts), longest, dtype=torch.bool)
        for row, text in enumerate(texts):
            features = self.features(text)
            tokens[row, : len(features)] = features
            mask[row, : len(features)] = True
        return tokens, mask


def test_table_holds_each_text_once_padded_to_one_length(tmp_path: Path) -> None:
    encoder = Words()
    table = build_text_table(encoder, [*TEXTS, "", TEXTS[0]], text_length=9, cache=tmp_path)
    assert table.texts == (*TEXTS, "")
    assert table.token_counts == (2, 3, 7, 0)
    assert table.tokens.shape == (4, 9, 6)
    assert table.tokens.dtype == table.pooled.dtype == torch.float16
    assert table.mask.dtype == torch.bool
    for text in TEXTS:
        row, features = table.index(text), encoder.features(text).half()
        count = len(features)
        assert torch.equal(table.tokens[row, :count], features)
        assert not table.tokens[row, count:].any()
        assert table.mask[row].tolist() == [True] * count + [False] * (9 - count)
        torch.testing.assert_close(table.pooled[row], features.float().mean(0).half(), rtol=1e-3, atol=1e-3)
    assert table.encoded_count == 3


def test_an_empty_text_is_zero_and_unseen_by_the_encoder(tmp_path: Path) -> None:
    encoder = Words()
    table = build_text_table(encoder, [""], text_length=4, cache=tmp_path)
    assert encoder.encoded == []
    assert not table.tokens.any()
    assert not table.mask.any()
    assert not table.pooled.any()
    assert table.token_counts == (0,)


def test_unknown_text_is_a_clear_error(tmp_path: Path) -> None:
    table = build_text_table(Words(), TEXTS, text_length=7, cache=tmp_path)
    with pytest.raises(PromptError, match="'a knee' is not among the 3 texts"):
        table.index("a knee")


def test_only_new_texts_are_encoded_and_cached_features_are_equal(tmp_path: Path) -> None:
    first = build_text_table(Words(), TEXTS, text_length=7, cache=tmp_path)
    encoder = Words()
    second = build_text_table(encoder, ["a knee", *TEXTS], text_length=7, cache=tmp_path)
    assert encoder.encoded == ["a knee"]
    assert second.encoded_count == 1
    assert torch.equal(second.tokens[1:], first.tokens)
    assert torch.equal(second.pooled[1:], first.pooled)
    assert second.token_counts[1:] == first.token_counts


def test_another_encoder_has_entries_of_its_own(tmp_path: Path) -> None:
    build_text_table(Words("one"), TEXTS, text_length=7, cache=tmp_path)
    assert build_text_table(Words("two"), TEXTS, text_length=7, cache=tmp_path).encoded_count == 3
    assert build_text_table(Words("one"), TEXTS, text_length=9, cache=tmp_path).encoded_count == 0


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [lambda _: b"", lambda c: c[:-5], lambda c: b"x" * len(c), flipped])
def test_a_damaged_entry_is_noticed_and_rebuilt(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    good = build_text_table(Words(), TEXTS[:1], text_length=7, cache=tmp_path)
    (entry,) = tmp_path.rglob("*.safetensors")
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    rebuilt = build_text_table(Words(), TEXTS[:1], text_length=7, cache=tmp_path)
    assert rebuilt.encoded_count == 1
    assert torch.equal(rebuilt.tokens, good.tokens)
    assert entry.read_bytes() == whole


def test_an_entry_under_anothers_name_is_noticed(tmp_path: Path) -> None:
    build_text_table(Words(), TEXTS[:2], text_length=7, cache=tmp_path)
    first, second = tmp_path.rglob("*.safetensors")
    shutil.copy(first, second)
    assert build_text_table(Words(), TEXTS[:2], text_length=7, cache=tmp_path).encoded_count == 1


@pytest.mark.parametrize("shape", [(2, 5), (2, 7), (12,), (1, 2, 6)])
def test_an_entry_of_another_shape_is_noticed_and_rebuilt(tmp_path: Path, shape: tuple[int, ...]) -> None:
    good = build_text_table(Words(), TEXTS[:1], text_length=7, cache=tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    _Entry(tmp_path, Words(), TEXTS[0]).write(torch.ones(shape, dtype=torch.float16))  # its checksum is right
    assert path.read_bytes() != whole
    rebuilt = build_text_table(Words(), TEXTS[:1], text_length=7, cache=tmp_path)
    assert rebuilt.encoded_count == 1
    assert torch.equal(rebuilt.tokens, good.tokens)
    assert path.read_bytes() == whole


def test_an_interrupted_job_keeps_what_it_wrote(tmp_path: Path) -> None:
    class Interrupted(Words):
        def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
            if self.encoded:
                raise KeyboardInterrupt
            return super().__call__(texts)

    texts = [f"text {number}" for number in range(CHUNK + 10)]
    with pytest.raises(KeyboardInterrupt):
        build_text_table(Interrupted(), texts, text_length=7, cache=tmp_path)
    assert build_text_table(Words(), texts, text_length=7, cache=tmp_path).encoded_count == 10


def test_several_may_fill_one_cache(tmp_path: Path) -> None:
    texts = [f"text number {number}" for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(lambda _: build_text_table(Words(), texts, text_length=7, cache=tmp_path), range(4)))
    assert all(torch.equal(table.tokens, tables[0].tokens) for table in tables)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 20
    assert build_text_table(Words(), texts, text_length=7, cache=tmp_path).encoded_count == 0


def test_a_cache_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    cache = tmp_path / "file"
    cache.touch()
    with pytest.raises(PromptError, match=r"can't be written to .*set TEXTSEG_CACHE"):
        build_text_table(Words(), TEXTS, text_length=7, cache=cache)


def test_a_text_longer_than_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="has 7 tokens, and this run was built for texts of at most 5"):
        build_text_table(Words(), TEXTS, text_length=5, cache=tmp_path)


def test_features_that_are_no_numbers_never_reach_the_cache(tmp_path: Path) -> None:
    class Huge(Words):
        def features(self, text: str) -> Tensor:
            return super().features(text) * 1e6

    with pytest.raises(PromptError, match="no numbers in 16 bits"):
        build_text_table(Huge(), TEXTS, text_length=7, cache=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokens, mask: tokens, "expected a tuple of tokens and mask, [1, T, 6], [1, T]; seen Tensor"),
        (lambda tokens, mask: [tokens, mask], "seen list"),
        (lambda tokens, mask: (tokens.mean(1), mask), "seen tuple of [(1, 6), (1, 2)]"),
        (lambda tokens, mask: (tokens[..., :5], mask), "seen tuple of [(1, 2, 5), (1, 2)]"),
        (lambda tokens, mask: (tokens, mask[:, :1]), "seen tuple of [(1, 2, 6), (1, 1)]"),
        (lambda tokens, mask: (tokens, mask.float()), "seen torch.float32 and torch.float32"),
    ],
)
def test_an_encoder_that_breaks_its_contract_is_named(change: Any, message: str, tmp_path: Path) -> None:
    class Wrong(Words):
        def __call__(self, texts: Sequence[str]) -> Any:
            return change(*super().__call__(texts))

    with pytest.raises(PluginError) as caught:
        build_text_table(Wrong(), TEXTS[:1], text_length=9, cache=tmp_path)
    assert str(caught.value).startswith("Text encoder Wrong breaks the contract of its kind: expected a tuple")
    assert message in str(caught.value)


def test_fingerprint_of_the_table(tmp_path: Path) -> None:
    def fingerprint(encoder: str, texts: Sequence[str], text_length: int) -> str:
        return build_text_table(Words(encoder), texts, text_length=text_length, cache=tmp_path).fingerprint

    first = fingerprint("one", TEXTS, 7)
    assert fingerprint("one", TEXTS[::-1], 7) == first
    others = {fingerprint("two", TEXTS, 7), fingerprint("one", TEXTS[:2], 7), fingerprint("one", TEXTS, 8)}
    assert len(others | {first}) == 4


def test_budget(tmp_path: Path) -> None:
    assert check_budget(Words(), ["", *TEXTS]) == 7
    assert check_budget(Words(), []) == check_budget(Words(), [""]) == 0
    long, longer = "word " * 30, "longer " * 31
    with pytest.raises(PromptError) as error:
        check_budget(Words(), [TEXTS[0], long, longer])
    assert str(error.value) == (
        "Words reads at most 8 tokens, and these prompts are longer:\n"
        f"  31 tokens: {longer[:80]}...\n"
        f"  30 tokens: {long[:80]}...\n"
        "Lower the granularity of the prompt generator, shorten the sentences and facts of cases, or use a text "
        "encoder that reads more."
    )
    with pytest.raises(PromptError, match="  and 5 more\n"):
        check_budget(Words(), [long + str(number) for number in range(25)])
    encoder = Words()
    with pytest.raises(PromptError, match="30 tokens"):
        build_text_table(encoder, [long], text_length=40, cache=tmp_path)
    assert encoder.encoded == []


def test_prompt_table_has_a_line_for_each_source_view_and_text(tmp_path: Path) -> None:
    def row(source: str, view: str, structure: str | None, text: str) -> PromptRow:
        return PromptRow(source, view, structure, text, len(text.split()), "sequence", "words")  # type: ignore[arg-type]

    path = tmp_path / "run" / "prompts.jsonl"
    rows = [
        row("template", "holistic", None, "Größe"),
        row("template", "classwise", "L1", "It contains L1."),
        row("interactive", "classwise", "L1", "It contains L1."),
        row("template", "classwise", "L1", "It contains L1."),
        row("template", "classwise", "L2", ""),
        row("template", "classwise", "L3", ""),
    ]
    write_prompt_table(path, iter(rows))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["source"], line["view"], line["structure"], line["text"]) for line in lines] == [
        ("template", "holistic", None, "Größe"),
        ("template", "classwise", "L1", "It contains L1."),
        ("interactive", "classwise", "L1", "It contains L1."),
        ("template", "classwise", None, ""),
    ]
    assert list(lines[1]) == ["source", "view", "structure", "text", "tokens", "generator", "encoder_fingerprint"]
    assert lines[1]["tokens"] == 3

    before = path.read_bytes()
    with pytest.raises(PromptError, match="empty holistic prompt"):
        write_prompt_table(path, [row("template", "holistic", None, "")])
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["prompts.jsonl"]
