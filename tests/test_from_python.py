"""The page "From Python" and its notebook: the same cells, executed from the first to the last."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import linecache
from pathlib import Path
from typing import Any

import pytest

from textseg.registry.discovery import installed_registry

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "how_to" / "from_python.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")


def notebook_cells() -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return cells


def test_page_and_notebook_have_the_same_cells() -> None:
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "docs" / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    expected = module.cells(PAGE.read_text(encoding="utf-8"))
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in notebook_cells()] == expected, (
        f"make it anew: python docs/notebook.py {PAGE.relative_to(ROOT)}"
    )
    outputs = [output for cell in notebook_cells() for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]


@pytest.mark.usefixtures("threads")
def test_the_cells_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEXTSEG_CACHE", str(tmp_path / "cache"))
    installed_registry.cache_clear()
    namespace: dict[str, Any] = {"__name__": "__main__"}
    codes = [cell for cell in notebook_cells() if cell["cell_type"] == "code"]
    try:
        for number, cell in enumerate(codes):
            source, name = "".join(cell["source"]), f"<cell {number}>"
            # IPython does this, so that `inspect` finds the text of a class.
            linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(source, name, "exec"), namespace)
            recorded = "".join(line for output in cell["outputs"] for line in output.get("text", []))
            if number in (2, 3, 5, 6):  # shapes and scores
                assert printed.getvalue().split()[0] == recorded.split()[0]
    finally:
        installed_registry.cache_clear()
    record = json.loads((namespace["folder"] / "run.json").read_text())
    assert record["components"]["fusion film"]["distribution"] == "Python session"
    assert list(record["components"]["fusion film"]["source"]) == ["FiLM of the session"]
    assert record["local_code"] == {}
