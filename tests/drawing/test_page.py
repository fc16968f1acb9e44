import base64
import hashlib
import re

import jinja2
import pytest
from markupsafe import Markup

from textseg.drawing import page as pages

FRAME = '{% extends "page.html.j2" %}{% block title %}{{ title }}{% endblock %}'


@pytest.fixture
def template(tmp_path, monkeypatch):
    """Make a template beside those of the package: template(text) returns its name."""

    def write(text):
        (tmp_path / "new.html.j2").write_text(text)
        return "new.html.j2"

    monkeypatch.setattr(pages, "TEMPLATES", tmp_path)
    pages._environment.cache_clear()
    for path in (pages.Path(pages.__file__).parent / "templates").iterdir():
        (tmp_path / path.name).symlink_to(path)
    yield write
    pages._environment.cache_clear()


def test_values_are_escaped_except_markup(template):
    name = template(FRAME + "{% block body %}{{ text }}{{ html }}{% endblock %}")
    html = pages.render(name, title="<b>", text="<i>&", html=Markup("<hr>"))
    assert "<title>&lt;b&gt;</title>" in html
    assert "&lt;i&gt;&amp;<hr>" in html


def test_a_missing_name_is_an_error(template):
    with pytest.raises(jinja2.UndefinedError, match="'text' is undefined"):
        pages.render(template(FRAME + "{% block body %}{{ text }}{% endblock %}"), title="")


def test_a_page_without_a_body_is_an_error(template):
    with pytest.raises(jinja2.TemplateRuntimeError, match="'body'"):
        pages.render(template(FRAME), title="")


def test_a_page_loads_nothing_and_runs_only_its_own_script(template):
    body = "{% block body %}{% endblock %}"
    plain = pages.render(template(FRAME + body), title="")
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in plain
    assert "script" not in plain
    name = template(
        FRAME + '{% set styles = ["report.css", "leaderboard.css"] %}{% set script = "leaderboard.js" %}' + body
    )
    html = pages.render(name, title="")
    (script,) = re.findall("<script>(.*)</script>", html, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"img-src data:; script-src 'sha256-{allowed}'\"" in html
    for name in ("report.css", "leaderboard.css"):
        assert (pages.TEMPLATES / name).read_text() in html


def test_filters(template):
    filters = '{{ "a_b<" | breakable }} {{ 2 | counted("case") }} {{ 0.5 | format_value }} {{ png | image_address }}'
    html = pages.render(template(FRAME + "{% block body %}" + filters + "{% endblock %}"), title="", png=b"\x89PNG")
    assert "a_<wbr>b&lt; 2 cases 0.5000 data:image/png;base64,iVBORw==" in html
