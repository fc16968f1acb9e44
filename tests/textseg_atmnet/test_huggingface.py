from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from textseg.embeddings import build_text_table
from textseg.errors import PromptError
from textseg_atmnet.huggingface import HuggingFace

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "contains", "l", "##1", "##2", "spine", "the", "."]
TEXTS = ["It contains the spine.", "L1", "the spine contains L1 L2 the spine contains L1 L2.", "It"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random BERT, as a person would fetch it from the hub."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=40).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with RoBERTa's positions, which begin after the padding index, and a tokenizer that knows no limit."""
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("roberta")
    tokenizer = AutoTokenizer.from_pretrained(bert)
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=len(WORDS), max_position_embeddings=18, pad_token_id=0, **sizes)
    RobertaModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "model"))


def test_sizes_come_without_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    encoder = HuggingFace(model=str(copied))
    assert encoder.feature_size == 16
    assert encoder.max_tokens == 40
    assert encoder.count_tokens(["It contains L1.", "", "It"]) == [7, 2, 3]
    with pytest.raises(PromptError, match="holds no weights"):
        encoder(["It"])


def test_tokens_are_those_of_the_model_and_padding_is_zero(bert: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = HuggingFace(model=str(bert))
    tokens, mask = encoder(TEXTS)
    counts = encoder.count_tokens(TEXTS)
    assert tokens.shape == (4, max(counts), 16)
    assert tokens.dtype == torch.float32
    assert not tokens.requires_grad
    assert not tokens.is_inference()
    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()
    for row, (text, count) in enumerate(zip(TEXTS, counts, strict=True)):
        with torch.no_grad():
            alone = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert mask[row].tolist() == [True] * count + [False] * (max(counts) - count)
        torch.testing.assert_close(tokens[row, :count], alone, rtol=1e-5, atol=1e-5)
        assert not tokens[row, count:].any()


def test_more_texts_than_a_batch_keep_their_order(bert: Path) -> None:
    encoder = HuggingFace(model=str(bert))
    texts = [TEXTS[number % 4] for number in range(70)]
    tokens, mask = encoder(texts)
    for row, text in enumerate(texts):
        alone, _ = encoder([text])
        torch.testing.assert_close(tokens[row][mask[row]], alone[0], rtol=1e-5, atol=1e-5)


def test_no_texts(bert: Path) -> None:
    tokens, mask = HuggingFace(model=str(bert))([])
    assert (tokens.shape, mask.shape) == ((0, 0, 16), (0, 0))


def test_layers(bert: Path) -> None:
    last, _ = HuggingFace(model=str(bert))(TEXTS)
    second, mask = HuggingFace(model=str(bert), layer=2)(TEXTS)
    torch.testing.assert_close(second, last)
    first, _ = HuggingFace(model=str(bert), layer=1)(TEXTS)
    assert not torch.allclose(first, last, atol=1e-2)
    assert not first[~mask].any()
    with pytest.raises(PromptError, match=r"layer 3: .* has the layers 0"):
        HuggingFace(model=str(bert), layer=3)(TEXTS)


def test_positions_after_the_padding_index_hold_no_token(roberta: Path) -> None:
    encoder = HuggingFace(model=str(roberta))
    assert encoder.max_tokens == 17
    tokens, mask = encoder(["the " * 15, "It"])  # all positions: one too many would be an index error
    assert mask.sum(1).tolist() == [17, 3]
    torch.testing.assert_close(encoder(["It"])[0][0], tokens[1, :3], rtol=1e-5, atol=1e-5)
    with pytest.raises(PromptError, match="reads at most 17 tokens, and a text has 18: 'the the"):
        encoder(["It", "the " * 16])


def test_max_tokens_may_be_chosen_within_the_model(bert: Path) -> None:
    assert HuggingFace(model=str(bert), max_tokens=64).max_tokens == 64
    for beyond in (65, 0):
        with pytest.raises(PromptError, match=f"max_tokens {beyond}: .* reads 1 to 64 tokens"):
            _ = HuggingFace(model=str(bert), max_tokens=beyond).max_tokens


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def test_fingerprint_is_of_weights_tokenizer_configuration_and_layer(bert: Path, copied: Path) -> None:
    first = HuggingFace(model=str(bert)).fingerprint
    assert HuggingFace(model=str(copied)).fingerprint == first  # wherever the folder stands
    found = {first, HuggingFace(model=str(bert), layer=1).fingerprint}
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        append(copied / name)
        found.add(HuggingFace(model=str(copied)).fingerprint)
    assert len(found) == 5
    (copied / "README.md").write_text("about")
    assert HuggingFace(model=str(copied)).fingerprint in found


def test_weights_that_would_be_random_are_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(PromptError, match=r"lack 16 tensors, encoder\.layer\.2"):
        HuggingFace(model=str(copied))(["It"])


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "configuration"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "unheard-of"}'), "configuration"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "weights"),
    ],
)
def test_damaged_folders(copied: Path, damage: Callable[[Path], Any], part: str) -> None:
    damage(copied)
    with pytest.raises(PromptError, match=f"The {part} of text encoder .* can't be read"):
        HuggingFace(model=str(copied))(["It"])


def test_a_folder_without_a_tokenizer(copied: Path) -> None:
    for path in (*copied.glob("*token*"), *copied.glob("vocab*")):
        path.unlink()
    with pytest.raises(PromptError, match=r"The tokenizer of .* can't be read: there is no tokenizer\.json"):
        HuggingFace(model=str(copied)).count_tokens(["It"])


def test_a_folder_with_the_vocabulary_alone(bert: Path, copied: Path) -> None:
    for path in copied.glob("*token*"):
        path.unlink()
    (copied / "vocab.txt").write_text("\n".join(WORDS))
    encoder = HuggingFace(model=str(copied))
    assert encoder.max_tokens == 64
    assert torch.equal(encoder(TEXTS)[0], HuggingFace(model=str(bert))(TEXTS)[0])


def test_weights_in_the_older_format(bert: Path, copied: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    encoder = HuggingFace(model=str(copied))
    assert torch.equal(encoder(TEXTS)[0], HuggingFace(model=str(bert))(TEXTS)[0])
    assert encoder.fingerprint != HuggingFace(model=str(bert)).fingerprint


@pytest.mark.parametrize("model", ["/nowhere/model", "./model", "data/models/bert"])
def test_a_wrong_folder_is_said_at_once(model: str) -> None:
    with pytest.raises(PromptError, match=f"'{model}' is no folder that holds a model.*hf download"):
        HuggingFace(model=model)


def test_an_unreachable_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*args: Any, **kwargs: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    encoder = HuggingFace(model="somebody/ClinicalBERT", revision="v2")
    with pytest.raises(PromptError) as error:
        _ = encoder.feature_size
    assert "'somebody/ClinicalBERT' at revision 'v2' is neither a folder" in str(error.value)
    assert "hf download somebody/ClinicalBERT --local-dir FOLDER" in str(error.value)
    assert "model: /path/to/folder" in str(error.value)


def test_a_model_from_the_hub(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    commit = tmp_path / "0123abc"
    asked: list[tuple[str | None, tuple[str, ...]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((revision, tuple(allow_patterns)))
        commit.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for path in bert.glob(pattern):
                shutil.copy(path, commit)
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    encoder = HuggingFace(model="somebody/ClinicalBERT")
    assert encoder.feature_size == 16
    assert encoder.count_tokens(["It"]) == [3]
    fingerprint = encoder.fingerprint
    assert not (commit / "model.safetensors").exists()
    assert torch.equal(encoder(TEXTS)[0], HuggingFace(model=str(bert))(TEXTS)[0])
    assert [revision for revision, _ in asked] == [None, "0123abc"]
    assert HuggingFace(model="somebody/ClinicalBERT").fingerprint == fingerprint
    assert HuggingFace(model="somebody/Other").fingerprint != fingerprint
    commit = tmp_path / "4567def"
    assert HuggingFace(model="somebody/ClinicalBERT").fingerprint != fingerprint


def test_loading_says_nothing(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    HuggingFace(model=str(bert))(["It"])
    assert capfd.readouterr() == ("", "")


def test_a_table_of_it(bert: Path, tmp_path: Path) -> None:
    table = build_text_table(HuggingFace(model=str(bert)), TEXTS, text_length=40, cache=tmp_path)
    tokens, mask = HuggingFace(model=str(bert))(TEXTS)
    assert torch.equal(table.mask[:, : mask.shape[1]], mask)
    torch.testing.assert_close(table.tokens[:, : mask.shape[1]].float(), tokens, rtol=1e-2, atol=1e-2)


def test_importing_it_does_not_import_transformers() -> None:
    code = "import sys, textseg_atmnet.huggingface, textseg_atmnet.minilm; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
