"""Any text encoder of the Hugging Face hub, frozen."""

import hashlib
import importlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from textseg.errors import PromptError

BATCH_SIZE = 32
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # in the order of preference
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


class HuggingFace:
    """A frozen text encoder from the Hugging Face hub or from a folder, such as Bio_ClinicalBERT in ATM-Net.

    Configuration and tokenizer are read when first asked for, the weights at the first call. Code that a model brings
    is never run. Results don't depend on the other texts of a call beyond the rounding of floating-point numbers.
    Raises PromptError where the model is not to be had or is no text encoder, where a setting is beyond it, and for
    texts longer than `max_tokens`.

    Args:
        model: A name on the hub, "emilyalsentzer/Bio_ClinicalBERT", or a folder that holds a model.
        revision: Branch, tag or commit on the hub.
        max_tokens: Longest text, special tokens included; by default what tokenizer and model allow.
        layer: The hidden layer that gives the features: 0 the embeddings, -1 the last.
    """

    def __init__(
        self, *, model: str, revision: str | None = None, max_tokens: int | None = None, layer: int = -1
    ) -> None:
        self.model = model
        self.revision = revision
        self.layer = layer
        self._asked_tokens = max_tokens
        folder = Path(model).expanduser()
        # A name on the hub has at most one slash and starts with neither a dot nor a slash.
        self._local = folder.is_dir() or folder.is_absolute() or model.startswith(".") or model.count("/") > 1
        if self._local and not (folder / "config.json").is_file():
            raise PromptError(
                f"'{model}' is no folder that holds a model (config.json, tokenizer and weights). Give the folder of "
                f"one, or its name on the hub.{self._remedy}"
            )

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
        """The longest text that the encoder reads, in tokens, special ones included."""
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
        """Hash of weights (on the hub: name and commit), configuration, tokenizer and layer."""
        digest = hashlib.sha256(json.dumps(["layer", self.layer]).encode())
        files = {path for pattern in TEXT_FILES for path in self._folder.glob(pattern)}
        if self._local:
            files |= set(self._weights(self._folder))
        else:
            digest.update(json.dumps([self.model, self._folder.name]).encode())
        for path in sorted(files):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special ones included, before any truncation."""
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
    def _folder(self) -> Path:
        return Path(self.model).expanduser() if self._local else self._fetched(self.revision, *TEXT_FILES)

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self._folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise self._unreadable("configuration", error) from error

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        config = self._config
        if not any(path for pattern in VOCABULARY for path in self._folder.glob(pattern)):
            # transformers makes a tokenizer without words then, to which all texts are alike.
            raise self._unreadable("tokenizer", OSError(f"there is no {', '.join(VOCABULARY)} in '{self._folder}'"))
        try:
            return AutoTokenizer.from_pretrained(
                self._folder, config=config, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            # Tokenizers fail in many ways on a folder without their files, and each means the same to a person.
            raise self._unreadable("tokenizer", error) from error

    @cached_property
    def _network(self) -> Any:
        transformers: Any = importlib.import_module("transformers")
        layers = getattr(self._config, "num_hidden_layers", None)
        if layers is not None and not -(layers + 1) <= self.layer <= layers:
            raise PromptError(f"layer {self.layer}: '{self.model}' has the layers 0 (embeddings) to {layers}, or -1.")
        folder = self._folder
        if not self._local:
            # By the commit of the tokenizer, which is part of the fingerprint: a branch may have moved since.
            folder = self._fetched(self._folder.name, *TEXT_FILES, WEIGHTS[0])
            if not any(folder.glob(WEIGHTS[0])):
                folder = self._fetched(self._folder.name, *TEXT_FILES, WEIGHTS[1])
        safe = self._weights(folder)[0].suffix == ".safetensors"
        try:
            with _silence(transformers.logging):
                network, report = transformers.AutoModel.from_pretrained(
                    folder,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=safe,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
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

    def _weights(self, folder: Path) -> list[Path]:
        for pattern in WEIGHTS:
            if files := sorted(folder.glob(pattern)):
                return files
        raise PromptError(f"'{self.model}' holds no weights ({' or '.join(WEIGHTS)}) in '{folder}'.{self._remedy}")

    def _fetched(self, revision: str | None, *patterns: str) -> Path:
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(self.model, revision=revision, allow_patterns=list(patterns)))
        except Exception as error:
            # The hub's client lets through its own errors, those of the network and those of its HTTP library.
            raise self._unreachable(f"{type(error).__name__}") from error
        if not (folder / "config.json").is_file():
            raise self._unreachable("it has no config.json")
        return folder

    def _unreachable(self, cause: str) -> PromptError:
        revision = f" at revision '{self.revision}'" if self.revision else ""
        return PromptError(
            f"Text encoder '{self.model}'{revision} is neither a folder, nor on this machine, nor to be had from the "
            f"Hugging Face hub ({cause}). Check the name.{self._remedy}"
        )

    def _unreadable(self, part: str, error: Exception) -> PromptError:
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        return PromptError(
            f"The {part} of text encoder '{self.model}' can't be read: {cause}. It may be incomplete, or of a kind "
            f"that transformers doesn't know.{self._remedy}"
        )

    @property
    def _remedy(self) -> str:
        name = "NAME" if self._local else self.model
        return (
            f" Without a network here: on a machine with one, run `hf download {name} --local-dir FOLDER`, copy the "
            "folder, and write `model: /path/to/folder`."
        )


@contextmanager
def _silence(messages: Any) -> Iterator[None]:
    """No progress bar for a second's work, and no warning about heads that an encoder doesn't need."""
    verbosity, bar = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity(logging.ERROR)
    messages.disable_progress_bar()
    try:
        yield
    finally:
        messages.set_verbosity(verbosity)
        if bar:
            messages.enable_progress_bar()
