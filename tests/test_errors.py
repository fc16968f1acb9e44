from __future__ import annotations

from textseg.errors import LONGEST_LINE, printable, shortened, suggestion


def test_a_message_has_no_colours_and_control_characters_and_short_lines() -> None:
    assert printable("a \x1b[31mred\x1b[0m\x07 ä\tb\nJ\udcfc\r") == "a red\\x07 ä\tb\nJ\\udcfc\\r"
    assert [len(line) < LONGEST_LINE + 10 for line in printable("x" * 10**6 + "\ny").split("\n")] == [True, True]


def test_a_value_is_shortened_only_where_it_is_long() -> None:
    assert (shortened(5), len(shortened("x" * 100_000))) == ("5", 60)
    assert suggestion("epochs" + "x" * 10**6, ["epochs"]) == " Possible: epochs."
