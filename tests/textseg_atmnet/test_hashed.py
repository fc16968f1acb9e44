from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from textseg.errors import PromptError
from textseg.text.embeddings import build_text_table
from textseg_atmnet.hashed import Hashed

TEXTS = ["Sagittal MRI: L4, L4/L5.", "L4", "", "l4 sagittal"]


def test_a_word_has_the_same_vector_wherever_it_stands() -> None:
    encoder = Hashed(feature_size=8)
    tokens, mask = encoder(TEXTS)
    assert encoder.count_tokens(TEXTS) == mask.sum(1).tolist() == [9, 1, 0, 2]
    assert tokens.shape == (4, 9, 8)
    assert tokens.dtype == torch.float32
    level, sagittal = tokens[1, 0], tokens[0, 0]
    assert torch.equal(tokens[0, 3], level)
    assert torch.equal(tokens[0, 5], level)
    assert torch.equal(tokens[3, :2], torch.stack([level, sagittal]))
    assert not tokens[~mask].any()


def test_vectors_of_different_words_are_unrelated_and_of_unit_variance() -> None:
    tokens, _ = Hashed(feature_size=1024)([" ".join(f"word{number}" for number in range(100))])
    vectors = tokens[0]
    assert abs(float(vectors.mean())) < 0.02
    assert float(vectors.var()) == pytest.approx(1, abs=0.02)
    assert float(vectors.abs().max()) <= 3**0.5
    likeness = torch.corrcoef(vectors) - torch.eye(100)
    assert float(likeness.abs().max()) < 0.2  # six deviations of chance


def test_vectors_are_the_same_on_every_machine() -> None:
    tokens, _ = Hashed(feature_size=3)(["spine"])
    assert tokens[0, 0].tolist() == pytest.approx([1.221416, 1.034299, 0.073499], abs=1e-6)
    assert not torch.equal(Hashed(feature_size=3, seed=1)(["spine"])[0], tokens)


def test_settings_and_limits() -> None:
    first = Hashed()
    others = [Hashed(seed=1), Hashed(feature_size=128), Hashed(pooling="max")]
    assert len({encoder.fingerprint for encoder in (first, *others)}) == 4
    assert Hashed(max_tokens=9).fingerprint == first.fingerprint
    with pytest.raises(PromptError, match="hashed reads at most 2 tokens, and a text has 3: 'a b c'"):
        Hashed(max_tokens=2)(["a", "a b c"])
    with pytest.raises(PromptError, match="hashed: feature_size is 0"):
        Hashed(feature_size=0)
    assert Hashed()([])[0].shape == (0, 0, 256)


def test_a_table_of_it(tmp_path: Path) -> None:
    table = build_text_table(Hashed(feature_size=8), TEXTS, text_length=12, cache=tmp_path)
    assert table.token_counts == (9, 1, 0, 2)
    torch.testing.assert_close(table.pooled[1], table.tokens[1, 0])


def test_it_needs_no_transformers() -> None:
    code = "import sys; from textseg_atmnet.hashed import Hashed; Hashed()(['a']); print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
