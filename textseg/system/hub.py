"""Models of the Hugging Face hub, or of a folder. Only `textseg fetch` downloads; all other code reads local files."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from textseg.errors import TextsegError
from textseg.system.commands import shell
from textseg.system.fetching import Progress
from textseg.system.files import file_name
from textseg.system.messages import counted

CONFIGURATION = "config.json"
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # in the order of preference; the second is a pickle
INDEX = "*.index.json"  # says which of several files holds which tensor
CODE = "*.py"
_USED: ContextVar[list[HubModel] | None] = ContextVar("used", default=None)
_CARRIED: ContextVar[Path | None] = ContextVar("carried", default=None)


@dataclass(eq=False)
class HubModel:
    """A model by its name on the hub or by its folder. Only `fetch` uses the network.

    Args:
        name: "owner/name" on the hub, or the path of a folder.
        revision: branch, tag or commit on the hub; the main branch where it is None.
        pickled_weights: True if weights in PyTorch's older format are accepted when there are no safetensors.
        remote_code: True if the code of the model is fetched, too.
        by_folder: True if a recipe may name a folder instead.
        what: the name of the kind of model in messages: "Text encoder".
        error: the type of error to raise.

    Raises `error` for a folder that holds no model, and for code of the hub that no commit pins.
    """

    name: str
    revision: str | None = None
    _: KW_ONLY
    pickled_weights: bool = False
    remote_code: bool = False
    by_folder: bool = True
    what: str
    error: type[TextsegError]

    def __post_init__(self) -> None:
        name, path = self.name, Path(self.name).expanduser()
        # A name on the hub has at most one slash and starts with neither a dot nor a slash.
        self.local = path.is_dir() or path.is_absolute() or name.startswith(".") or name.count("/") > 1
        if (used := _USED.get()) is not None:
            used.append(self)
        if self.local and _CARRIED.get() is None and not (path / CONFIGURATION).is_file():
            raise self.error(
                f"'{name}' is no folder that holds a model ({CONFIGURATION} and what belongs to it). Give the folder "
                f"of one, or its name on the Hugging Face hub. {self.remedy}"
            )
        if self.remote_code and not self.local and not re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            raise self.error(
                f"remote_code runs what '{name}' brings, and revision is {self.revision or 'the newest'}: anybody who "
                "may write there could change it. Read the code, and write `revision` with the 40 digits of the commit "
                "that you have read."
            )

    @cached_property
    def folder(self) -> Path:
        """The folder of its files on this machine. Raises `error` if they have not been fetched."""
        if (carried := _CARRIED.get()) is not None:
            return carried / self.place
        if self.local:
            return Path(self.name).expanduser()
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(self.name, revision=self.revision, local_files_only=True))
        except (LocalEntryNotFoundError, HfHubHTTPError, ValueError) as error:  # ValueError: no name that the hub takes
            raise self._absent() from error
        if not (folder / CONFIGURATION).is_file():
            raise self._absent()
        return folder

    @cached_property
    def code(self) -> dict[str, str]:
        """The SHA-256 of each file of code in the folder, by its path in it; none without `remote_code`.

        Raises `error` for a configuration that names code of another repository: transformers would run it unseen.
        """
        if not self.remote_code:
            return {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                elsewhere = [name for name in _code_names(json.loads(path.read_bytes())) if "--" in name]
            except (OSError, ValueError, RecursionError) as error:
                raise self.error(f"'{path}' can't be read: {type(error).__name__}. {self.remedy}") from error
            if elsewhere:
                raise self.error(
                    f"'{path}' names code of another repository, '{elsewhere[0]}', which is never run. Put the code "
                    f"into '{self.folder}', and name it there."
                )
        files = sorted(self.folder.rglob(CODE))
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        }

    @property
    def place(self) -> str:
        """The folder of the model among the configurations of a bundle."""
        return file_name(re.sub(r"\W", "-", self.name).strip("-"))

    @property
    def commit(self) -> str | None:
        """The commit on the hub that was fetched; None for a folder."""
        return None if self.local else self.folder.name

    def weights(self) -> list[Path]:
        """The files of the weights, safetensors if there are any. Raises `error`."""
        safe, pickled = (sorted(self.folder.glob(pattern)) for pattern in WEIGHTS)
        if files := safe or pickled:
            self._require_safe(files[0].name, f"{self.what} '{self.name}'")
            return files
        raise self.error(
            f"{self.what} '{self.name}' holds no weights ({' or '.join(WEIGHTS)}) in '{self.folder}'. {self.remedy}"
        )

    def load(self, kind: Any, config: Any, *, own: str | None = None) -> Any:
        """Return the model in float32, built by transformers from local files only; weights are random in a bundle.

        Args:
            kind: the class of the model.
            config: its configuration.
            own: part of the names of tensors that only this class has, so that the weights may lack them.

        Raises `error` for weights that can't be read, or lack other tensors.
        """
        import torch

        if _CARRIED.get() is not None:
            return kind(config)
        from safetensors import SafetensorError

        weights, what = self.weights(), f"{self.what[0].lower()}{self.what[1:]}"
        try:
            with quiet_transformers():
                model, report = kind.from_pretrained(
                    self.folder,
                    config=config,
                    local_files_only=True,
                    use_safetensors=weights[0].suffix == ".safetensors",
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
            cause = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
            raise self.error(f"The weights of {what} '{self.name}' can't be read: {cause}. {self.remedy}") from error
        if absent := sorted(key for key in report["missing_keys"] if own is None or own not in key):
            raise self.error(
                f"The weights of {what} '{self.name}' lack {counted(len(absent), 'tensor')}, "
                f"{', '.join(absent[:3])} among them; they would be random. "
                "Use weights that match the configuration, or none."
            )
        return model

    def fetch(self, patterns: Sequence[str], *, weights: bool, progress: Progress) -> str:
        """Download the matching files, with weights on request; files that exist are not downloaded again.

        Returns what is there now, with its commit. Raises `error`.
        """
        if self.local:
            return f"{self.what} '{self.name}' is a folder: nothing to fetch"
        from huggingface_hub import HfApi, hf_hub_download

        try:
            information = HfApi().model_info(self.name, revision=self.revision, files_metadata=True)
            sizes = {file.rfilename: file.size or 0 for file in information.siblings or ()}
            wanted = self._wanted(list(sizes), patterns, weights=weights)
            paths = [
                Path(hf_hub_download(self.name, name, revision=self.revision, tqdm_class=_reporting(name, progress)))
                for name in wanted
            ]
        except TextsegError:
            raise
        except Exception as error:
            # The hub's client lets through its own errors, those of the network and those of its HTTP library.
            raise self.error(
                f"{self.what} '{self.name}'{self._at} can't be had from the Hugging Face hub: {type(error).__name__}. "
                f"Check name, revision and network. {self._elsewhere}"
            ) from error
        if {path.parent.name for path in paths} != {information.sha}:
            raise self.error(f"'{self.name}'{self._at} changed while it was fetched. Fetch it again.")
        self.__dict__.pop("folder", None)
        size = sum(sizes[name] for name in wanted) / 1e6
        pin = "" if self.revision == information.sha else f"; `revision: {information.sha}` pins it"
        return (
            f"{self.what} '{self.name}', commit {information.sha}: {counted(len(wanted), 'file')}, {size:.1f} MB, in "
            f"{self.folder}{pin}"
        )

    def _wanted(self, names: Sequence[str], patterns: Sequence[str], *, weights: bool) -> list[str]:
        """Files at the top of the repository, weights in one format only."""
        asked = [CONFIGURATION, *patterns, *([CODE] if self.remote_code else [])]
        files = [name for name in names if any(fnmatch(name, pattern) for pattern in asked) and "/" not in name]
        where = f"'{self.name}'{self._at} on the Hugging Face hub"
        if CONFIGURATION not in files:
            raise self.error(f"{where} has no {CONFIGURATION}: use another one.")
        if not weights:
            return files
        safe, pickled = ([name for name in names if fnmatch(name, p) and "/" not in name] for p in WEIGHTS)
        if not (chosen := safe or pickled):
            raise self.error(f"{where} has no weights ({' or '.join(WEIGHTS)}).")
        self._require_safe(chosen[0], where)
        return list(dict.fromkeys([*files, *(name for name in names if fnmatch(name, INDEX)), *chosen]))

    def _require_safe(self, file: str, where: str) -> None:
        """Raise `error` for weights in a pickle that the recipe does not accept."""
        if not file.endswith(".safetensors") and not self.pickled_weights:
            raise self.error(
                f"{where} has no safetensors, only weights in PyTorch's older format, a pickle ({file}). Where you "
                "trust their source, write `pickled_weights: true`; nothing but tensors is read from them."
            )

    def _absent(self) -> TextsegError:
        return self.error(f"{self.what} '{self.name}'{self._at} is neither a folder nor on this machine. {self.remedy}")

    @property
    def _at(self) -> str:
        return f" at revision '{self.revision}'" if self.revision else ""

    @property
    def remedy(self) -> str:
        """Advice for messages about a missing model."""
        return f"Run `textseg fetch RECIPE` with the recipe that names it. {self._elsewhere}"

    @property
    def _elsewhere(self) -> str:
        if not self.by_folder:
            return "Without a network here: run that on a machine with one, and copy the hub's cache (HF_HOME)."
        name = "NAME" if self.local else self.name
        pinned = ["--revision", self.revision] if self.revision else []
        download = shell("hf", "download", name, *pinned, "--local-dir", "FOLDER")
        return (
            f"Without a network here: on a machine with one, run `{download}`, copy the folder, and write `model: "
            "/path/to/folder`."
        )


@contextmanager
def noting_models() -> Iterator[list[HubModel]]:
    """Collect the models that are created inside the block."""
    used: list[HubModel] = []
    token = _USED.set(used)
    try:
        yield used
    finally:
        _USED.reset(token)


@contextmanager
def carried_configurations(folder: Path) -> Iterator[None]:
    """Read configurations from `folder` inside the block, and leave weights random, because a bundle contains them."""
    token = _CARRIED.set(folder)
    try:
        yield
    finally:
        _CARRIED.reset(token)


def carried() -> bool:
    """Return True while a bundle is opened: it contains the weights, so a builder must not read any."""
    return _CARRIED.get() is not None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the progress bars of transformers, and its warnings about unused weights, inside the block."""
    messages: Any = importlib.import_module("transformers").logging
    verbosity, bar = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity(logging.ERROR)
    messages.disable_progress_bar()
    try:
        yield
    finally:
        messages.set_verbosity(verbosity)
        if bar:
            messages.enable_progress_bar()


def _code_names(node: Any, *, below: bool = False) -> Iterator[str]:
    """Yield the names of classes under each "auto_map" of a configuration."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _code_names(value, below=below or key == "auto_map")
    elif isinstance(node, list):
        for value in node:
            yield from _code_names(value, below=below)
    elif below and isinstance(node, str):
        yield node


def _reporting(name: str, progress: Progress) -> Any:
    """Return a class of invisible progress bars that report the bytes of one file."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Reporting(tqdm):  # type: ignore[misc]
        def __init__(self, *_: Any, total: float | None = None, initial: float = 0, **__: Any) -> None:
            super().__init__(total=total, initial=initial, disable=True)
            self.total, self.n = total, initial

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            progress(name, int(self.n), None if self.total is None else int(self.total))

    return Reporting
