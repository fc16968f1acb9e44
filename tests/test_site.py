"""Tests of docs/conf.py: drawings become part of the page, names may break at a line end, flags may not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("furo")
pytest.importorskip("myst_parser")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("site")
    (folder / "pages").mkdir()
    for name in ("pictures", "style"):
        shutil.copytree(ROOT / "docs" / name, folder / name)
    shutil.copy(ROOT / "docs/conf.py", folder)
    (folder / "index.md").write_text("# Title\n\n```{toctree}\npages/one\n```\n", encoding="utf-8")
    markdown = "# One\n\n![a drawing](../pictures/architecture.svg)\n\n`my_file.csv` `a.module` `--only-this` `0.5`\n\n"
    markdown += "```bash\nrun --only-this\n```\n\n```python\na_b.c\n```\n"
    (folder / "pages/one.md").write_text(markdown, encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(folder), str(folder / "_build")]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "_build/pages/one.html").read_text(encoding="utf-8")


def test_a_drawing_is_part_of_the_page_so_that_it_follows_its_theme(page: str) -> None:
    assert '<span class="drawing" tabindex="0"><svg' in page
    assert "architecture.svg" not in page


def test_a_drawing_styles_nothing_but_itself() -> None:
    style = (ROOT / "docs/pictures/architecture.svg").read_text(encoding="utf-8").split("<style>")[1]
    assert style.split("*/")[1].strip().startswith(".architecture {")
    assert style.split("</style>")[0].count("\n  }") == 1  # one rule, all others inside it


def test_a_name_may_break_at_its_joints_and_a_flag_stays_whole(page: str) -> None:
    assert ">my_<wbr>file.csv<" in page
    assert ">a.<wbr>module<" in page
    assert page.count('<span class="flag">--only</span>-this') == 2  # in the text and in the command
    assert '<span class="pre">0.5</span>' in page


def test_code_is_left_alone(page: str) -> None:
    assert "a_b" in page
    assert "a_<wbr>b" not in page
