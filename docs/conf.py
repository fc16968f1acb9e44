"""Settings of the documentation's build."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

project = "textseg"
author = "The textseg developers"
copyright = f"2026, {author}"  # noqa: A001
release = importlib.metadata.version("textseg")

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = f"textseg {release}"
html_static_path = ["style"]
html_css_files = ["pages.css"]
html_use_index = False

LITERAL = re.compile(r'(?<=<span class="pre">)[^<]*(?=</span>)')
COMMANDS = re.compile(r'<div class="highlight-(?:bash|shell) .*?</pre>', re.DOTALL)
DRAWING = re.compile(r'<img [^>]*src="[^"]*/(\w+\.svg)"[^>]*/>')


def whole(text: re.Match[str]) -> str:
    """A flag keeps its dashes beside its first word."""
    return re.sub(r"(?<![\w-])-{1,2}[a-z]+", r'<span class="flag">\g<0></span>', text.group())


def breakable(literal: re.Match[str]) -> str:
    """A name in the text may end its line after `_`, `/`, `=` or the dot of a module, but not before `.csv`."""
    return re.sub(r"(?<=\w[_/=])(?=[a-zA-Z&<$])|(?<=\w\.)(?=\w{6})", "<wbr>", whole(literal))


def drawn(image: re.Match[str]) -> str:
    """A drawing as part of the page, so that it follows the page's theme: an image follows the system's."""
    svg = (Path(__file__).parent / "pictures" / image.group(1)).read_text(encoding="utf-8")
    return f'<span class="drawing" tabindex="0">{svg}</span>'


def finish(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    if "body" in context:
        body = COMMANDS.sub(whole, LITERAL.sub(breakable, context["body"]))
        context["body"] = DRAWING.sub(drawn, body)


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", finish)
