"""Pages from templates: each is one HTML file that works offline, with its styles and its script inside."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from textseg.drawing.tables import format_value, metric_title
from textseg.system.messages import counted

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: object) -> str:
    """Return a page, or a part of one: a template of `textseg/drawing/templates` with `values` filled in.

    A template of a page begins with `{% extends "page.html.j2" %}` and fills the blocks `title` and `body`. It may
    name its style sheets and its script, which are files of the same folder and are written into the page:

        {% set styles = ["report.css", "leaderboard.css"] %}
        {% set script = "leaderboard.js" %}

    The content security policy of the page lets the browser load nothing and run only that script. Every value is
    escaped, except `markupsafe.Markup`, which a function returns when it makes HTML itself (an SVG, for example). A
    name that `values` lacks raises `jinja2.UndefinedError`.

    Besides Jinja's own filters, a template has those that are the keys of `FILTERS`.
    """
    return _environment().get_template(template).render(values)


def breakable(name: str) -> Markup:
    """Return a name as HTML that a browser may break after each underscore."""
    return Markup(escape(name).replace("_", "_<wbr>"))


def image_address(image: bytes, kind: str = "png") -> Markup:
    """Return the value of `src` for an image that is part of the page."""
    return Markup(f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}")


FILTERS = {
    "breakable": breakable,
    "counted": counted,  # {{ 3 | counted("case") }}
    "format_value": format_value,  # {{ value | format_value(unit) }}
    "metric_title": metric_title,  # {{ metric | metric_title(unit) }}
    "image_address": image_address,
}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= FILTERS | {"sha256": _sha256}
    environment.globals["source"] = _source
    return environment


def _source(name: str) -> Markup:
    """Return a style sheet or a script unescaped, because browsers decode no entities in them."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _sha256(script: str) -> str:
    """Return the hash by which a content security policy allows a script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
