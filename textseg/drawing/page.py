"""A page to read: one HTML file that needs no network, with its styles and, where it has one, its script inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path


def page(title: str, body: str, *, styles: Sequence[str] = ("report.css",), script: str | None = None) -> str:
    """A whole page of `body`, which is HTML; `styles` and `script` are files of textseg.

    Its policy lets nothing be loaded, and no script run but that one.
    """
    style = "".join(_text(name) for name in styles)
    code = _text(script) if script else ""
    allowed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    policy += f"; script-src 'sha256-{allowed}'" if script else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
{f"<script>{code}</script>" if script else ""}</body>
</html>
"""


def section(heading: str, body: str, *, kind: str = "") -> str:
    """A part of a page under a heading; `kind` is a class of its style."""
    name = f' class="{kind}"' if kind else ""
    return f"<section{name}><h2>{escape(heading)}</h2>{body}</section>"


def breakable(name: str) -> str:
    """A name as HTML that may be broken after its underscores."""
    return escape(name).replace("_", "_<wbr>")


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
