"""Make the notebook of a page: its text and its Python blocks as cells, executed. Needs nbclient and ipykernel.

Example: python docs/notebook.py docs/how_to/from_python.md
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def cells(page: str) -> list[tuple[str, str]]:
    """Return the kind (markdown or code) and the content of each cell of a page."""
    parts = enumerate(BLOCK.split(page))
    return [("code" if number % 2 else "markdown", part.strip()) for number, part in parts if part.strip()]


def main(page: Path) -> None:
    """Write the executed notebook beside its page; what it makes lies in a temporary folder."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook()
    new = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    for number, (kind, content) in enumerate(cells(page.read_text(encoding="utf-8"))):
        notebook.cells.append(new[kind](content, id=f"cell-{number}"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TEXTSEG_CACHE"] = f"{folder}/cache"
        NotebookClient(notebook, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata = {"language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":  # warnings of other packages name folders of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, page.with_suffix(".ipynb"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
