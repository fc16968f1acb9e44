"""Published tables of any plug-in, with values by structure and without."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace

import pytest

from textseg import PublishedMethod, PublishedTable, hookimpl
from textseg.comparison import published
from textseg.comparison.published import published_means, published_rows, published_tables
from textseg.comparison.text import print_published
from textseg.errors import RunError
from textseg.registry.discovery import Registry, hook_caller

NAN = float("nan")
TABLE = PublishedTable(
    dataset="hearts",
    source="A challenge, 2024",
    protocol="per volume",
    units={"dsc": "", "hd95": "mm"},
    methods=[
        PublishedMethod(
            "first",
            {"dsc": 0.9, "hd95": 4.0},
            {"dsc": {"LV": 0.9, "RV": 0.7}, "hd95": {"LV": 2.0, "RV": 6.0}},
            parameters=2_000_000,
        ),
        PublishedMethod("second", {"dsc": 0.6, "hd95": 3.0}, {"hd95": {"LV": 3.0, "RV": NAN}}),
    ],
    rare=["RV"],
)


@pytest.fixture
def _brought(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = hook_caller()
    hooks.register(SimpleNamespace(textseg_published_results=hookimpl(lambda: [TABLE])), "hearts")
    monkeypatch.setattr(published, "installed_registry", lambda: Registry((), (), hooks))


@pytest.mark.usefixtures("_brought")
def test_any_plugin_brings_a_table() -> None:
    assert published_tables() == published_tables("hearts") == [TABLE]
    first, second = published_rows("hearts")
    assert (first.method, first.value("dsc"), first.unit("hd95"), first.parameters) == ("first", 0.9, "mm", 2_000_000)
    assert second.value("hd95", "common") == 3.0
    assert math.isnan(second.value("asd"))
    assert second.parameters is None
    assert "A challenge, 2024" in first.note
    with pytest.raises(RunError, match="no published results of 'heart'. Did you mean 'hearts'"):
        published_rows("heart")


def test_means_are_computed_again_where_the_table_has_the_values() -> None:
    dsc, hd95 = published_means(TABLE)
    assert dsc[0].printed == 0.9
    assert dsc[0].as_published == pytest.approx(0.8)
    assert dsc[0].wrong
    assert math.isnan(dsc[1].as_published)
    assert not dsc[1].wrong
    assert [(mean.common, mean.without_rare, mean.structures) for mean in hd95] == [(2.0, 2.0, 2), (3.0, 3.0, 1)]


@pytest.mark.usefixtures("_brought")
def test_they_are_printed_with_their_source() -> None:
    text = io.StringIO()
    print_published(None, text)
    assert "hearts: hd95 [mm]" in text.getvalue()
    assert "Source: A challenge, 2024. Protocol: per volume." in text.getvalue()


def test_a_plugin_that_brings_something_else_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    hooks = hook_caller()
    hooks.register(SimpleNamespace(textseg_published_results=hookimpl(lambda: ["a table"])), "wrong")
    assert Registry((), (), hooks).published_results() == []
    assert "which is no PublishedTable" in capsys.readouterr().err


def test_without_any_table_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "installed_registry", Registry)
    with pytest.raises(RunError, match="No installed plug-in brings any"):
        published_tables("spider")
    assert published_tables() == []
