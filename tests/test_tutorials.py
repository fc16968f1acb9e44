"""A tutorial is followed to the letter: its commands in a shell, its files where their first line says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def surroundings(tmp_path: Path) -> Mapping[str, str]:
    """An environment that may be installed into, in which pip takes what is here and asks no index."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    outside = [folder for folder in sys.path if folder.endswith("-packages")]
    (site / "outside.pth").write_text("".join(f"import site; site.addsitedir({folder!r})\n" for folder in outside))
    for program in ("pip", "pytest", "textseg"):
        script = python.with_name(program)
        script.write_text(f'#!/bin/sh\nexec "{python}" -m {program} "$@"\n')
        script.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads a flag that begins with "no" the other way round
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "TEXTSEG_CACHE": str(tmp_path / "cache"),
    }


@pytest.mark.slow
def test_the_first_prompt_generator(tmp_path: Path, surroundings: Mapping[str, str]) -> None:
    pytest.importorskip("hatchling", reason="what builds the package is not installed")
    page = (ROOT / "docs/tutorials/first_prompt_generator.md").read_text(encoding="utf-8")
    folder = tmp_path / "here"
    folder.mkdir()
    printed, kinds = "", []
    for kind, content in BLOCK.findall(page):
        kinds.append(kind)
        if kind == "python":
            path = folder / content.partition("\n")[0].removeprefix("# ")
            assert path.is_file(), "the page changes what is there"
            path.write_text(content, encoding="utf-8")
        elif kind == "bash":
            command = ["bash", "-euo", "pipefail", "-c", content]
            done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{content}\n{done.stdout}\n{done.stderr}"
            printed = "\n".join(" ".join(line.split()) for line in done.stdout.splitlines())
        else:
            assert kind == "text"
            assert [line for line in content.splitlines() if " ".join(line.split()) not in printed] == []
    assert (kinds.count("bash"), kinds.count("python"), kinds.count("text")) == (7, 2, 4)
    report = folder / "runs" / "plain_words_lumbar_phantom" / "seed2025" / "report.html"
    assert "of 5 from the left shows, from top to bottom, " in report.read_text(encoding="utf-8")
