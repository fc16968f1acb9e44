"""Any text encoder of the Hugging Face hub, frozen."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from textseg.errors import PromptError
from textseg.system import HubModel, Progress, quiet_transformers

BATCH_SIZE = 32
TEXT_FILES = ("config.json", "*token*.json", "vocab*", "merges.txt", "*.model")  # configuration and tokenizer
VOCABULARY = ("tokenizer.json", "vocab.*", "*.model")  # one of them at least
# Their position embeddings begin after the padding index, so that many rows hold no token.
OFFSET_POSITIONS = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
NO_LIMIT = 1_000_000  # tokenizers that know no length state a huge one
AUTO = ("AutoConfig", "AutoTokenizer", "AutoModel")
# Kinds whose own code only puts heads on a model that transformers knows: the features need none of that code.
HEADS_ALONE = {"cxr-bert": ("BertConfig", "BertTokenizer", "BertModel")}


@dataclass(frozen=True)
class Preset:
    """A published model with a short name for recipes."""

    model: str
    revision: str
    pickled_weights: bool  # no safetensors at that revision


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # Alsentzer 2019, arXiv 1904.03323: BioBERT that went on to read the notes of MIMIC-III
        "bio_clinicalbert": Preset(
            "emilyalsentzer/Bio_ClinicalBERT", "d5892b39a4adaed74b92212a44081509db72f87b", pickled_weights=True
        ),
        # Gu 2020, arXiv 2007.15779: abstracts and full texts of PubMed, from scratch
        "pubmedbert": Preset(
            "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
            "e1354b7a3a09615f6aba48dfad4b7a613eef7062",
            pickled_weights=True,
        ),
        # Liu 2019, arXiv 1907.11692: general English
        "roberta": Preset("FacebookAI/roberta-base", "e2da8e2f811d1448a5b465c236feacd80ffbac7b", pickled_weights=False),
        # Boecking 2022, arXiv 2204.09817: reports of chest radiographs; the tag that its authors' own library asks for
        "cxr_bert": Preset("microsoft/BiomedVLP-CXR-BERT-specialized", "v1.1", pickled_weights=True),
    }
)


class HuggingFace:
    """A frozen text encoder from the Hugging Face hub or from a folder, such as Bio_ClinicalBERT in ATM-Net.

    Nothing is downloaded but by `textseg fetch`. Configuration and tokenizer are read when first asked for, the weights
    at the first call. Results don't depend on the other texts of a call beyond the rounding of floating-point numbers.
    Raises PromptError where the model has not been fetched or is no text encoder, where a setting is beyond it, and for
    texts longer than `max_tokens`.

    Args:
        model: A preset (bio_clinicalbert, pubmedbert, roberta, cxr_bert), a name on the hub, or a folder that holds a
            model. A preset, also when called by its name on the hub, is pinned to a revision and may be pickled.
        revision: Branch, tag or commit on the hub.
        max_tokens: Longest text, special tokens included; by default what tokenizer and model allow.
        layer: The hidden layer that gives the features: 0 the embeddings, -1 the last.
        pooling: Vector of a whole text: the mean of its tokens, the first one (BERT's [CLS]), or the maximum.
        lowercase: Lower-case the texts, for tokenizers of the kind of BERT; by default as the tokenizer's files say. A
            folder with a vocabulary alone says nothing, and transformers would lower-case; then a vocabulary with
            capitals keeps them.
        pickled_weights: Read weights in PyTorch's older format if there are no safetensors.
        remote_code: Run code of the model's repository; on the hub `revision` must then be a commit.
    """

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        max_tokens: int | None = None,
        layer: int = -1,
        pooling: Literal["mean", "first", "max"] = "mean",
        lowercase: bool | None = None,
        pickled_weights: bool = False,
        remote_code: bool = False,
    ) -> None:
        preset = PRESETS.get(model) or next((known for known in PRESETS.values() if known.model == model), None)
        self.model = preset.model if preset else model
        self.layer = layer
        self.pooling = pooling
        self._asked_tokens, self._asked_case = max_tokens, lowercase
        self._source = HubModel(
            self.model,
            revision or (preset.revision if preset else None),
            pickled_weights=pickled_weights or (preset is not None and preset.pickled_weights),
            remote_code=remote_code,
            what="Text encoder",
            error=PromptError,
        )

    @classmethod
    def fetch(cls, *, progress: Progress, **settings: Any) -> str:
        """Download configuration, tokenizer and weights, and return a sentence on the result. Raises PromptError."""
        return cls(**settings)._source.fetch(TEXT_FILES, weights=True, progress=progress)

    @cached_property
    def feature_size(self) -> int:
        """D."""
        size = getattr(self._config, "hidden_size", None)
        if not isinstance(size, int):
            raise PromptError(
                f"'{self.model}' ({self._config.model_type}) states no hidden_size: it is no plain text encoder. "
                "Use one of the kind of BERT, such as emilyalsentzer/Bio_ClinicalBERT."
            )
        return size

    @cached_property
    def max_tokens(self) -> int:
        """The longest text that the encoder reads, in tokens, including special tokens."""
        positions = getattr(self._config, "max_position_embeddings", None)
        if positions is not None and self._config.model_type in OFFSET_POSITIONS:
            positions -= (self._config.pad_token_id or 0) + 1
        if self._asked_tokens is not None:
            if not 0 < self._asked_tokens <= (positions or self._asked_tokens):
                raise PromptError(
                    f"max_tokens {self._asked_tokens}: '{self.model}' reads 1 to {positions or 'any number of'} tokens."
                )
            return self._asked_tokens
        stated = self._tokenizer.model_max_length
        limits = [limit for limit in (positions, stated) if limit is not None and 0 < limit < NO_LIMIT]
        if not limits:
            raise PromptError(f"'{self.model}' does not say how long its texts may be; give the setting max_tokens.")
        return int(min(limits))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights (on the hub: name and commit), configuration, tokenizer, case, layer and pooling."""
        source = self._source
        case = [] if self._lowercase is None else [self._lowercase]
        digest = hashlib.sha256(json.dumps([self.layer, self.pooling, *case]).encode())
        files = {path for pattern in TEXT_FILES for path in source.folder.glob(pattern)}
        files |= {source.folder / name for name in source.code}
        if source.local:
            files |= set(source.weights())
        else:
            digest.update(json.dumps([self.model, source.commit]).encode())
        for path in sorted(files):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, including special tokens, before truncation."""
        return [len(ids) for ids in self._token_ids(texts)]

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens [N, T, D] in float32 (padding is zero) and mask [N, T] of N texts, T the longest of them."""
        token_ids = self._token_ids(texts)
        counts = [len(ids) for ids in token_ids]
        longest = max(counts, default=0)
        if longest > self.max_tokens:
            raise PromptError(
                f"'{self.model}' reads at most {self.max_tokens} tokens, and a text has {longest}: "
                f"'{texts[counts.index(longest)][:80]}'. Shorten it, or use a text encoder that reads more."
            )
        tokens = torch.zeros(len(texts), longest, self.feature_size)
        order = sorted(range(len(texts)), key=counts.__getitem__)  # neighbours of equal length need little padding
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            features = self._encode([token_ids[row] for row in rows])
            tokens[rows, : features.shape[1]] = features
        mask = torch.arange(longest)[None] < torch.tensor(counts, dtype=torch.long)[:, None]
        return tokens * mask[..., None], mask

    def _encode(self, token_ids: list[list[int]]) -> Tensor:
        padding = self._tokenizer.pad_token_id or 0
        longest = max(map(len, token_ids))
        padded = torch.tensor([ids + [padding] * (longest - len(ids)) for ids in token_ids], dtype=torch.long)
        counts = torch.tensor([len(ids) for ids in token_ids])
        attention = (torch.arange(longest)[None] < counts[:, None]).long()
        with torch.inference_mode():
            output = self._network(input_ids=padded, attention_mask=attention, output_hidden_states=self.layer != -1)
            features: Tensor = output.last_hidden_state if self.layer == -1 else output.hidden_states[self.layer]
        # A tensor made in inference mode could not take part in training.
        return features.float().clone()

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self._tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
        return ids

    @cached_property
    def _classes(self) -> tuple[Any, Any, Any]:
        """The classes that read configuration, tokenizer and weights."""
        transformers: Any = importlib.import_module("transformers")
        try:
            stated = json.loads((self._source.folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._unreadable("configuration", error) from error
        _ = self._source.code  # refuses code of other repositories
        names = AUTO if self._source.remote_code else HEADS_ALONE.get(stated.get("model_type"), AUTO)
        config, tokenizer, model = (getattr(transformers, name) for name in names)
        return config, tokenizer, model

    @property
    def _options(self) -> dict[str, Any]:
        automatic = self._classes[0].__name__ in AUTO
        return {"local_files_only": True} | ({"trust_remote_code": self._source.remote_code} if automatic else {})

    @cached_property
    def _config(self) -> Any:
        read, _, _ = self._classes
        try:
            with quiet_transformers():
                return read.from_pretrained(self._source.folder, **self._options)
        except (OSError, ValueError) as error:
            raise self._unreadable("configuration", error) from error

    @cached_property
    def _tokenizer(self) -> Any:
        _, read, _ = self._classes
        config, folder = self._config, self._source.folder
        if not any(path for pattern in VOCABULARY for path in folder.glob(pattern)):
            # transformers makes a tokenizer without words then, to which all texts are alike.
            raise self._unreadable("tokenizer", OSError(f"there is no {', '.join(VOCABULARY)} in '{folder}'"))
        case = {} if self._lowercase is None else {"do_lower_case": self._lowercase}
        try:
            with quiet_transformers():
                return read.from_pretrained(folder, config=config, **case, **self._options)
        except Exception as error:
            # Tokenizers fail in many ways on a folder without their files, and each means the same to a person.
            raise self._unreadable("tokenizer", error) from error

    @cached_property
    def _lowercase(self) -> bool | None:
        """True if texts are lower-cased; None if neither the recipe nor a vocabulary that stands alone decides it."""
        folder = self._source.folder
        vocabulary = folder / "vocab.txt"
        stated = (folder / "tokenizer_config.json").exists() or (folder / "tokenizer.json").exists()
        if self._asked_case is not None or stated or not vocabulary.exists():
            return self._asked_case
        words = vocabulary.read_text(encoding="utf-8", errors="replace").split()
        cased = any(word != word.lower() for word in words if not word.startswith("["))  # [CLS] and the like
        return False if cased else None

    @cached_property
    def _network(self) -> Any:
        _, _, read = self._classes
        layers = getattr(self._config, "num_hidden_layers", None)
        if layers is not None and not -(layers + 1) <= self.layer <= layers:
            raise PromptError(f"layer {self.layer}: '{self.model}' has the layers 0 (embeddings) to {layers}, or -1.")
        safe = self._source.weights()[0].suffix == ".safetensors"
        try:
            with quiet_transformers():
                network, report = read.from_pretrained(
                    self._source.folder,
                    config=self._config,
                    use_safetensors=safe,
                    dtype=torch.float32,
                    output_loading_info=True,
                    **self._options,
                )
        except UnpicklingError as error:
            raise self._unreadable("weights", ValueError("they hold more than tensors, or are damaged")) from error
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise self._unreadable("weights", error) from error
        absent = sorted(key for key in report["missing_keys"] if "pooler" not in key)
        if absent:
            raise PromptError(
                f"The weights of '{self.model}' lack {len(absent)} tensors, {', '.join(absent[:3])} among them; they "
                "would be random. Fetch the model again, or use one whose weights match its configuration."
            )
        if self._config.is_encoder_decoder:
            network = network.get_encoder()
        return network.eval().requires_grad_(False)

    def _unreadable(self, part: str, error: Exception) -> PromptError:
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        return PromptError(
            f"The {part} of text encoder '{self.model}' can't be read: {cause}. It may be incomplete, or of a kind "
            f"that transformers doesn't know. {self._source.remedy}"
        )
