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

from textseg.errors import PromptError
from textseg.text.embeddings import build_text_table
from textseg_atmnet.huggingface import PRESETS, HuggingFace

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "contains", "l", "##1", "##2", "spine", "the", "."]
TEXTS = ["It contains the spine.", "L1", "the spine contains L1 L2 the spine contains L1 L2.", "It"]


@pytest.fixture(scope="module")
def roberta(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with RoBERTa's positions, which begin after the padding index, and a tokenizer without a limit."""
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


def test_fingerprint_is_of_weights_tokenizer_configuration_layer_and_pooling(bert: Path, copied: Path) -> None:
    first = HuggingFace(model=str(bert)).fingerprint
    assert HuggingFace(model=str(copied)).fingerprint == first  # wherever the folder stands
    fingerprints = {
        first,
        *(HuggingFace(model=str(bert), **settings).fingerprint for settings in ({"layer": 1}, {"pooling": "max"})),
    }
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        append(copied / name)
        fingerprints.add(HuggingFace(model=str(copied)).fingerprint)
    assert len(fingerprints) == 6
    (copied / "README.md").write_text("about")
    assert HuggingFace(model=str(copied)).fingerprint in fingerprints


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


def test_a_cased_vocabulary_alone_keeps_the_case(bert: Path, copied: Path) -> None:
    """The repository of Bio_ClinicalBERT has no tokenizer_config.json, and transformers would lower-case its texts."""
    for path in copied.glob("*token*"):
        path.unlink()
    words = [*WORDS, "The", "L"]
    (copied / "vocab.txt").write_text("\n".join(words))
    cased, lower = HuggingFace(model=str(copied)), HuggingFace(model=str(copied), lowercase=True)
    assert cased._token_ids(["The L"])[0][1:-1] == [words.index("The"), words.index("L")]
    assert lower._token_ids(["The L"])[0][1:-1] == [words.index("the"), words.index("l")]
    assert cased.fingerprint != lower.fingerprint
    assert cased.fingerprint == HuggingFace(model=str(copied), lowercase=False).fingerprint
    (copied / "vocab.txt").write_text("\n".join(word.lower() if word[0] != "[" else word for word in words[:-2]))
    assert HuggingFace(model=str(copied))._lowercase is None  # as transformers has it


def test_weights_in_the_older_format(bert: Path, copied: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(
        PromptError, match=r"no safetensors, .* a pickle \(pytorch_model.bin\).*`pickled_weights: true`"
    ):
        HuggingFace(model=str(copied))(TEXTS)
    encoder = HuggingFace(model=str(copied), pickled_weights=True)
    assert torch.equal(encoder(TEXTS)[0], HuggingFace(model=str(bert))(TEXTS)[0])
    assert encoder.fingerprint != HuggingFace(model=str(bert)).fingerprint


def test_safetensors_are_preferred(bert: Path, copied: Path) -> None:
    (copied / "pytorch_model.bin").write_bytes(b"never read")
    encoder = HuggingFace(model=str(copied), pickled_weights=True)
    assert torch.equal(encoder(TEXTS)[0], HuggingFace(model=str(bert))(TEXTS)[0])


def test_a_pickle_runs_no_code(copied: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "attacked",))

    torch.save({"embeddings": Attack()}, copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(PromptError, match="The weights of text encoder .* can't be read"):
        HuggingFace(model=str(copied), pickled_weights=True)(TEXTS)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("model", ["/nowhere/model", "./model", "data/models/bert"])
def test_a_wrong_folder_is_said_at_once(model: str) -> None:
    with pytest.raises(PromptError, match=f"'{model}' is no folder that holds a model.*hf download"):
        HuggingFace(model=model)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of the hub's client."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into(cache: Path, name: str, commit: str, model: Path, branch: str = "main") -> None:
    """Write the files of a fetched model."""
    folder = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(model, folder / "snapshots" / commit)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / branch).write_text(commit)


@pytest.mark.usefixtures("hub_cache")
def test_a_model_that_was_not_fetched_says_how_to_get_it() -> None:
    encoder = HuggingFace(model="somebody/ClinicalBERT", revision="v2")
    with pytest.raises(PromptError) as error:
        _ = encoder.feature_size
    assert "'somebody/ClinicalBERT' at revision 'v2' is neither a folder nor on this machine" in str(error.value)
    assert "`textseg fetch RECIPE`" in str(error.value)
    assert "hf download somebody/ClinicalBERT --revision v2 --local-dir FOLDER" in str(error.value)
    assert "model: /path/to/folder" in str(error.value)


def test_a_model_that_was_fetched_is_used_without_a_network(bert: Path, hub_cache: Path) -> None:
    put_into(hub_cache, "somebody/ClinicalBERT", "a" * 40, bert)
    encoder = HuggingFace(model="somebody/ClinicalBERT")
    assert encoder.count_tokens(["It"]) == [3]
    assert torch.equal(encoder(TEXTS)[0], HuggingFace(model=str(bert))(TEXTS)[0])
    fingerprint = encoder.fingerprint
    assert HuggingFace(model="somebody/ClinicalBERT", revision="a" * 40).fingerprint == fingerprint
    put_into(hub_cache, "somebody/Other", "a" * 40, bert)
    assert HuggingFace(model="somebody/Other").fingerprint != fingerprint
    put_into(hub_cache, "somebody/ClinicalBERT", "b" * 40, bert)
    assert HuggingFace(model="somebody/ClinicalBERT").fingerprint != fingerprint
    assert HuggingFace(model="somebody/ClinicalBERT", revision="a" * 40).fingerprint == fingerprint


def test_a_model_of_which_only_the_tokenizer_was_fetched(bert: Path, hub_cache: Path) -> None:
    put_into(hub_cache, "somebody/ClinicalBERT", "a" * 40, bert)
    next(hub_cache.rglob("model.safetensors")).unlink()
    encoder = HuggingFace(model="somebody/ClinicalBERT")
    assert encoder.feature_size == 16
    with pytest.raises(PromptError, match="holds no weights .*`textseg fetch RECIPE`"):
        encoder(["It"])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_pinned_models(name: str, bert: Path, hub_cache: Path) -> None:
    from safetensors.torch import load_file

    preset = PRESETS[name]
    put_into(hub_cache, preset.model, "c" * 40, bert, branch=preset.revision)
    if len(preset.revision) == 40:  # a commit is the name of its folder, a tag is not
        folder = next(hub_cache.glob("models--*/snapshots"))
        (folder / ("c" * 40)).rename(folder / preset.revision)
    if preset.pickled_weights:
        weights = next(hub_cache.rglob("model.safetensors"))
        torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
        weights.unlink()
    encoder = HuggingFace(model=name)
    assert torch.equal(encoder(TEXTS)[0], HuggingFace(model=str(bert))(TEXTS)[0])
    assert HuggingFace(model=preset.model).fingerprint == encoder.fingerprint
    with pytest.raises(PromptError, match=f"'{preset.model}' at revision 'other' is neither"):
        _ = HuggingFace(model=name, revision="other").feature_size


def test_a_model_whose_own_code_adds_heads_alone_needs_none_of_it(tmp_path: Path) -> None:
    """CXR-BERT: a BERT with a head for contrastive learning, its configuration and tokenizer BERT's by another name."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForMaskedLM(BertConfig(vocab_size=len(WORDS), **sizes)).eval()
    torch.save(model.state_dict() | {"cls_projection_head.weight": torch.ones(4)}, tmp_path / "pytorch_model.bin")
    code = {"auto_map": {"AutoConfig": "attack.Config", "AutoModel": "attack.Model"}}
    stated = model.config.to_dict() | code | {"model_type": "cxr-bert", "architectures": ["CXRBertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    code = {"tokenizer_class": "CXRBertTokenizer", "auto_map": {"AutoTokenizer": ["attack.Tokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 64} | code))
    (tmp_path / "attack.py").write_text("raise SystemExit('code of the model was run')")

    encoder = HuggingFace(model=str(tmp_path), pickled_weights=True)
    assert encoder.max_tokens == 64
    tokens, mask = encoder(["The spine contains L1."])
    ids = BertTokenizer(vocab=str(tmp_path / "vocab.txt"))("The spine contains L1.", return_tensors="pt")
    with torch.no_grad():
        expected = model.bert(**ids).last_hidden_state
    assert mask.all()
    assert ids["input_ids"].tolist()[0][1] == WORDS.index("the")
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


CODE = """
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * 2
        return output
"""


def test_code_of_a_model_is_run_where_the_recipe_says_so(
    bert: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import transformers

    for module in (transformers.dynamic_module_utils, transformers.utils.hub):
        monkeypatch.setattr(module, "HF_MODULES_CACHE", str(tmp_path / "modules"), raising=False)
    (copied / "own.py").write_text(CODE)
    config = json.loads((copied / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(PromptError, match="The configuration of text encoder .* can't be read"):
        _ = HuggingFace(model=str(copied)).feature_size
    encoder = HuggingFace(model=str(copied), remote_code=True)
    torch.testing.assert_close(encoder(TEXTS)[0], HuggingFace(model=str(bert))(TEXTS)[0] * 2)
    fingerprint = encoder.fingerprint
    append(copied / "own.py")
    assert HuggingFace(model=str(copied), remote_code=True).fingerprint != fingerprint


@pytest.mark.parametrize("revision", [None, "main", "0123abc"])
def test_code_of_the_hub_is_run_of_a_commit_alone(revision: str | None) -> None:
    with pytest.raises(PromptError, match="remote_code runs what 'somebody/Own' brings.*40 digits"):
        HuggingFace(model="somebody/Own", revision=revision, remote_code=True)
    HuggingFace(model="somebody/Own", revision="a" * 40, remote_code=True)


def test_loading_says_nothing(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    HuggingFace(model=str(bert))(["It"])
    assert capfd.readouterr() == ("", "")


def test_a_table_of_it(bert: Path, tmp_path: Path) -> None:
    table = build_text_table(HuggingFace(model=str(bert)), TEXTS, text_length=40, cache=tmp_path)
    tokens, mask = HuggingFace(model=str(bert))(TEXTS)
    assert torch.equal(table.mask[:, : mask.shape[1]], mask)
    torch.testing.assert_close(table.tokens[:, : mask.shape[1]].float(), tokens, rtol=1e-2, atol=1e-2)


def test_what_stands_for_a_text(bert: Path, tmp_path: Path) -> None:
    tokens, mask = HuggingFace(model=str(bert))(TEXTS)
    lowest = tokens.masked_fill(~mask[..., None], -torch.inf)
    expected = {"mean": tokens.sum(1) / mask.sum(1, keepdim=True), "first": tokens[:, 0], "max": lowest.amax(1)}
    for pooling, vectors in expected.items():
        encoder = HuggingFace(model=str(bert), pooling=pooling)  # type: ignore[arg-type]
        table = build_text_table(encoder, [*TEXTS, ""], text_length=40, cache=tmp_path)
        torch.testing.assert_close(table.pooled[:4].float(), vectors, rtol=1e-2, atol=1e-2)
        assert not table.pooled[4].any()


def test_importing_it_does_not_import_transformers() -> None:
    code = "import sys, textseg_atmnet.huggingface, textseg_atmnet.minilm; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
