from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from textseg.system import torch_builds
from textseg.system.torch_builds import usable_torchvision

# A torchvision whose compiled part was not found, and its first lines that need it.
UNFIT = """
import torch

@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return dets
"""


def install(folder: Path, source: str) -> None:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(source)
    information = folder / "torchvision-0.28.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_a_torchvision_of_another_build_is_named_and_no_obstacle(tmp_path: Path) -> None:
    install(tmp_path, UNFIT)
    assert "operator torchvision::nms does not exist" in run(tmp_path, "import torchvision").stderr
    ended = run(tmp_path, "import textseg.training; import torchvision; print(torchvision.meta_nms)")
    assert ended.returncode == 0
    assert "meta_nms" in ended.stdout
    assert ended.stderr.startswith("Warning: torchvision 0.28.0 was not built for torch 2.")
    assert "Install the build that fits: pip install --force-reinstall --no-deps torchvision==0." in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_torchvision_that_cannot_be_imported_at_all_is_an_error(tmp_path: Path) -> None:
    install(tmp_path, "raise RuntimeError('compiled with CUDA Version=11.8')")
    code = (
        "from textseg.errors import PluginError; from textseg.system.torch_builds import usable_torchvision\n"
        "try: usable_torchvision()\nexcept PluginError as error: print(error)"
    )
    assert "It can't be imported: compiled with CUDA Version=11.8" in run(tmp_path, code).stdout


@pytest.mark.parametrize(
    ("torch", "command"),
    [
        ("2.13.0+cpu", "torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu"),
        ("2.9.1+cu128", "torchvision==0.24.1 --index-url https://download.pytorch.org/whl/cu128"),
        ("2.13.0", "torchvision==0.28.0"),
        ("2.14.0.dev20261201", "torchvision==0.29.0"),
    ],
)
def test_the_command_installs_the_build_of_this_torch(
    torch: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_builds, "version", {"torch": torch, "torchvision": "0.27.0"}.__getitem__)
    message = torch_builds._misfit()
    assert message.startswith(f"torchvision 0.27.0 was not built for torch {torch}, ")
    assert message.endswith(f"--no-deps {command}")


def test_without_torchvision_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_builds.importlib.util, "find_spec", lambda name: None)
    assert usable_torchvision.__wrapped__() is None
