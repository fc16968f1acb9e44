from __future__ import annotations

import math
from typing import Any

import pytest

from textseg.system.yaml_text import CHARACTERS, DEPTH, DIGITS, YamlError, compose, dump, parse, parse_value

NESTED = "[" * 100 + "]" * 100
ALIASES = "a: &a [" + ", ".join("1" * 9) + "]\n"
for above, name in zip("abcdefgh", "bcdefghi", strict=True):
    ALIASES += f"{name}: &{name} [{', '.join([f'*{above}'] * 9)}]\n"
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{above}'] * 9)}]}}\n"
    for above, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text", ["on", "off", "yes", "no", "y", "n", "010", "1_1", "12:30", "0xff", "2026-01-01", "<<"]
)
def test_a_text_of_yaml_1_1_with_another_meaning_stays_a_text(text: str) -> None:
    assert parse(f"{text}: {text}\nlist: [{text}]")[0] == {text: text, "list": [text]}
    assert parse_value(text) == text
    assert parse_value(f"[{text}]") == [text]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("-5", -5),
        ("0", 0),
        ("1e-4", 1e-4),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("!!int '5'", 5),
        ("'5'", "5"),
    ],
)
def test_a_plain_value_has_one_type(text: str, value: Any) -> None:
    read = parse(f"key: {text}")[0]["key"]
    assert (read, type(read)) == (value, type(value))


def test_every_key_and_item_has_its_line() -> None:
    text = "a:\n  b: [1,\n    2]\nc: &x {d: 1}\ne: *x\n"
    value, lines = parse(text)
    assert value == {"a": {"b": [1, 2]}, "c": {"d": 1}, "e": {"d": 1}}
    assert lines[("a",)] == 1
    assert lines["a", "b", 1] == 3
    assert lines["e", "d"] == 4
    assert value["c"] is not value["e"]  # --set changes one of them


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb:\n  " + NESTED, 3, f"deeper than {DEPTH} levels"),
        ("a: 1\nb: &x [*x]", 2, f"deeper than {DEPTH} levels"),
        ("a: 1\nb: &x\n  c: *x", 2, f"deeper than {DEPTH} levels"),
        (ALIASES, 1, "more than 100,000 values, with those that aliases"),
        (MERGES, 1, "more than 100,000 values, with those that aliases"),
        ("a: 1\na: 2", 2, "the key 'a' stands twice"),
        ("a: 1\n? [b]\n: c", 2, "a key must be a text"),
        ("a: 1\nb: !!python/name:os.system x", 2, "no value of the type"),
        ("a: 1\nb: !!python/object:os.system {}", 2, "type tag:yaml.org,2002:python/object:os.system is not read"),
        ("a: !!int x", 1, "'x' is no value of the type"),
        (f"a: {'9' * 4000}", 1, f"more than {DIGITS} digits"),
        ("a: [1", 2, "expected"),
        ("a: *b", 1, "undefined alias"),
        ("a: 1\n---\nb: 2", 2, "another document"),
        ("a: \x00", 1, "can't be read as YAML"),
        ("a" * (CHARACTERS + 1), 1, "more than 2,000,000 characters"),
    ],
)
def test_what_is_no_yaml_or_too_much_is_refused_at_once(text: str, line: int, message: str) -> None:
    with pytest.raises(YamlError, match=message) as caught:
        parse(text)
    if "aliases" not in message:
        assert caught.value.line == line
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text", ["/data/scan #1", " #1", "a b ", "a: b", "- a", "*a", "&a", "!a", "%", "@", "`", "|", "J\udcfcrgen"]
)
def test_an_argument_without_quotes_and_brackets_is_a_text_whole(text: str) -> None:
    assert parse_value(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 5", 5),
        ("'5'", "5"),
        ("'a #b'", "a #b"),
        ("['ä #b', c d]", ["ä #b", "c d"]),
        ("{on: {a: yes}} ", {"on": {"a": "yes"}}),
    ],
)
def test_an_argument_with_quotes_and_brackets_is_yaml(text: str, value: Any) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize("text", ["[/data/scan #1]", "[ä] # b", "'a' b", "[", "{a: b: c}", NESTED, "['J\udcfc']"])
def test_an_argument_is_never_cut(text: str) -> None:
    with pytest.raises(YamlError):
        parse_value(text)


def test_a_dump_reads_back() -> None:
    texts = ["on", "no", "010", "1_1", "12:30", "1e-4", "true", "~", "", "0xff", "2026-01-01", "=", "a: b", " ä ", "#"]
    value = {"on": texts, "<<": [1e-7, 1e20, 5, None, True, math.inf], "e": {}, "l": []}
    assert parse(dump(value))[0] == value


def test_an_empty_text_is_nothing() -> None:
    assert parse("") == (None, {})
    assert compose("# a comment").value == ""
