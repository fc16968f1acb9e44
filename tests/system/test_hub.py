from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from textseg.errors import RecipeError
from textseg.system.hub import HubModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A server that answers as the hub does, for one repository."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if self.command == "GET":
                    hub.asked.append(path)
                if path.startswith("/api/models/somebody/tiny"):
                    sizes = [{"rfilename": name, "size": len(content)} for name, content in hub.files.items()]
                    self.answer(json.dumps({"id": "somebody/tiny", "sha": COMMIT, "siblings": sizes}).encode())
                elif path.startswith("/somebody/tiny/resolve/") and path.rpartition("/")[2] in hub.files:
                    self.answer(hub.files[path.rpartition("/")[2]])
                else:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "RepoNotFound")
                    self.end_headers()

            do_HEAD = do_GET

            def answer(self, content: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small random BERT."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "spine"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def textseg(*arguments: str, hub: Hub, home: Path, offline: bool) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own: the hub's client reads its settings when it is imported."""
    surroundings = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": str(int(offline)),
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "textseg", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=surroundings, check=False)


def recipe_with(encoder: str, tiny_recipe: Path, folder: Path) -> str:
    text = tiny_recipe.read_text().replace("{use: hashed_words}", encoder)
    (folder / "tiny.yaml").write_text(text)
    return str(folder / "tiny.yaml")


@pytest.mark.slow
def test_fetch_brings_what_a_run_then_needs_without_a_network(
    hub: Hub, model: dict[str, bytes], tiny_recipe: Path, tmp_path: Path
) -> None:
    hub.files = model | {"pytorch_model.bin": b"x" * 1000, "README.md": b"about", "tf_model.h5": b"x"}
    recipe = recipe_with("{use: huggingface, model: somebody/tiny}", tiny_recipe, tmp_path)
    fetched = textseg("fetch", recipe, hub=hub, home=tmp_path, offline=False)
    assert fetched.returncode == 0, fetched.stderr
    size = sum(map(len, model.values())) / 1e6
    assert f"commit {COMMIT}: {len(model)} files, {size:.1f} MB" in " ".join(fetched.stdout.split())
    assert f"`revision: {COMMIT}` pins it" in fetched.stdout
    assert {path.rpartition("/")[2] for path in hub.asked if "resolve" in path} == set(model)

    hub.asked.clear()
    again = textseg("fetch", recipe, hub=hub, home=tmp_path, offline=False)
    assert again.returncode == 0, again.stderr
    assert [path for path in hub.asked if "resolve" in path] == []

    hub.server.shutdown()
    done = textseg("run", recipe, "--dry-run", hub=hub, home=tmp_path, offline=True)
    assert done.returncode == 0, done.stderr


def test_fetch_of_what_cannot_be_had(hub: Hub, model: dict[str, bytes], tiny_recipe: Path, tmp_path: Path) -> None:
    hub.files = {name: content for name, content in model.items() if "model" not in name}
    hub.files["pytorch_model.bin"] = b"x"
    recipe = recipe_with("{use: huggingface, model: somebody/tiny}", tiny_recipe, tmp_path)
    pickled = textseg("fetch", recipe, hub=hub, home=tmp_path, offline=False)
    assert pickled.returncode == 2
    assert "has no safetensors, only weights in PyTorch's older format, a pickle (pytorch_model.bin)" in pickled.stderr
    overrides = ("--set", "prompts.text_encoder.model=somebody/else")
    unknown = textseg("fetch", recipe, *overrides, hub=hub, home=tmp_path, offline=False)
    assert unknown.returncode == 2
    assert "'somebody/else' can't be had from the Hugging Face hub: RepositoryNotFoundError" in unknown.stderr
    assert "Traceback" not in pickled.stderr + unknown.stderr


def test_progress_is_in_bytes_of_each_file(hub: Hub, model: dict[str, bytes], tmp_path: Path) -> None:
    hub.files = model
    code = f"""
from textseg.errors import RecipeError
from textseg.system.hub import HubModel
told = {{}}
source = HubModel("somebody/tiny", "{COMMIT}", what="Model", error=RecipeError)
def report(name, done, total): told[name] = done, total
said = source.fetch(["vocab.txt"], weights=True, progress=report)
assert "pins it" not in said
print(sorted(told.items()))
"""
    surroundings = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    surroundings["NO_PROXY"] = "127.0.0.1"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=surroundings, check=False)
    wanted = [name for name in ("config.json", "model.safetensors", "vocab.txt") if name in model]
    assert done.stdout.strip() == str([(name, (len(model[name]), len(model[name]))) for name in wanted]), done.stderr
    assert done.stderr == ""


def test_a_recipe_without_weights_from_elsewhere(hub: Hub, tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = recipe_with("{use: hashed}", tiny_recipe, tmp_path)
    done = textseg("fetch", recipe, hub=hub, home=tmp_path, offline=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "needs no weights from elsewhere" in " ".join(done.stdout.split())


def test_a_folder_has_nothing_to_fetch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    source = HubModel(str(tmp_path), what="Model", error=RecipeError)
    message = source.fetch([], weights=True, progress=lambda name, done, total: None)
    assert message == f"Model '{tmp_path}' is a folder: nothing to fetch"
    assert source.commit is None
    with pytest.raises(RecipeError, match="holds no weights"):
        source.weights()


def test_weights_become_a_model(model: dict[str, bytes], tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, BertModel

    for name, content in model.items():
        (tmp_path / name).write_bytes(content)
    source = HubModel(str(tmp_path), what="Text encoder", error=RecipeError)
    config = BertConfig.from_pretrained(tmp_path)
    expected = BertModel.from_pretrained(tmp_path).state_dict()
    weights = source.load(BertModel, config).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in weights.items())
    source.load(BertForMaskedLM, config, own="cls.")
    with pytest.raises(RecipeError, match="weights of text encoder .* lack .* tensors, cls.* would be random"):
        source.load(BertForMaskedLM, config)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(RecipeError, match="weights of text encoder .* can't be read"):
        source.load(BertModel, config)
