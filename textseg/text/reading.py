"""One reader for all words from outside: a typed sentence, a list or a table becomes a `Visibility`.

A model never reads the words of a person. This module understands or refuses them, and the prompt generator of the run
writes the text. The grammar is strict, because nobody would notice a wrong guess: each word is a structure of the atlas
or belongs to one of these forms, and every other word is refused.

    T11 to L3, from T11 through L3, T11:L3, T11-L3, T11/L3   a stretch, with all structures outside the sequence
    L4/L5, L4-L5, L4/5, disc L4/5                            a disc, where the atlas has one between these vertebrae
    L4, L5 and the spinal canal; all vertebrae; everything   exactly these structures
    no L5/S, without the canal, L1 is not visible            the structures that are not visible
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from textseg.contracts import Atlas, Visibility
from textseg.errors import DataError, PromptError, suggestion
from textseg.system.messages import counted
from textseg.system.user_files import TABLE_SUFFIXES, read_table

# Words without content. They are removed first, so that "is not visible" becomes "not visible".
_EMPTY = (
    "the|an?|is|are|was|were|be|can|do|does|did|from|only|also|there|i|we|one|this|in|on|see|sees|shows?|image|scan"
)
_SPELLINGS = (  # a pattern, and its spelling in the patterns below
    (r"[\u2010-\u2015\u2212]", "-"),
    (r"\u2192|->", " to "),
    (r"[\"'\u2018\u2019\u201c\u201d]", ""),
    (r"\b(?:ca|is|are|was|were|could|do|does|did)nt\b|\bcannot\b", "not"),
    (r"\b(everything|all) but\b", r"\1 without"),
    (r"\bbut (?=(?:no|not|without|excluding)\b)", ", "),
    (r"\bdisk", "disc"),
    (rf"(?<![/-])\b(?:{_EMPTY}|levels?)\b:?(?![/-])", " "),
    (r"\s*([:/-])\s*", r"\1"),
    (r"[ \t]+", " "),
)
_SEEN = "(?:visible|seen|shown|present|view)"
_MARK = re.compile(
    rf"\b(?P<hidden>not {_SEEN}|absent|missing|invisible|out of view)\b:?|\b(?P<seen>{_SEEN})\b:?"
    r"|\b(?P<no>no|not|without|except(?: for)?|excluding|neither|nor)\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[;!\n]|\.(?=\s|$)")
_AND = re.compile(r"\band\b|\bas well as\b|\bplus\b|\bwith\b|\bincluding\b|[&+]", re.IGNORECASE)
_OR = re.compile(r"\band\b|\bor\b|[&+]", re.IGNORECASE)  # in "without L4 and L5"; "without L4 with L5" is refused
_TO = re.compile(r"\b(?:down |up )?(?:to|through|thru|until|till)\b|:", re.IGNORECASE)
_ALL = ("everything", "all", "all structures", "every structure")
_LEVEL = re.compile(r"([a-z]+)(\d+)", re.IGNORECASE)  # "L4"
LISTED = 5  # cases that a line names
_FIRST_PLACEHOLDER = 0xE000  # the first of the characters that Unicode leaves to private use


def interactive_visibility(atlas: Atlas, named: str | Sequence[str], facts: Mapping[str, str] = {}) -> Visibility:
    """Return the visibility that a person states for a whole volume.

    `named` is a text ("T10:L5", "T10 to L5, no canal", "L4, L5") or a list of names. The names are those of the atlas,
    their synonyms, and the usual ways to write them. Raises PromptError for a text that names nothing, contradicts
    itself or has a word that can't be read, and for stretches that the atlas doesn't have.
    """
    reader = _Reader(atlas)
    visible = reader.read_text(named) if isinstance(named, str) else reader.read_names(named)
    return Visibility(visible, source="interactive", scope="volume", facts=facts)


def summary(atlas: Atlas, visible: Sequence[str]) -> str:
    """Return what was read, for a person who checks it: "T11:L3, 9 structures and the spinal canal"."""
    row = [name for name in atlas.sequence if name in visible]
    outside = [structure for structure in atlas.structures if structure.name not in atlas.sequence]
    seen = [structure for structure in outside if structure.name in visible]
    # A stretch has no gaps. One structure alone is not called a stretch unless the structures outside are with it.
    start = atlas.sequence.index(row[0]) if row else 0
    unbroken = row == list(atlas.sequence[start : start + len(row)])
    if not row or not unbroken or len(visible) == 1 or (len(row) == 1 and seen != outside):
        return f"{counted(len(visible), 'structure')}: {', '.join([*row, *(structure.name for structure in seen)])}"
    others = [f" {'and' if structure in seen else 'without'} the {structure.family}" for structure in outside]
    return f"{row[0]}:{row[-1]}, {counted(len(row), 'structure')}{''.join(others)}"


def read_statements(text: str, case_ids: Iterable[str]) -> dict[str, str]:
    """Read the statement for each case: one text for all, or the columns `case` and `visible` of a CSV file.

    A case without a row, or whose cell is empty, has none. Raises PromptError for a file that can't be read or has no
    words for any of the cases, and for a case without a row whose name is close to that of a row for no case.
    """
    ids = list(case_ids)
    if not text.lower().endswith(TABLE_SUFFIXES):
        return dict.fromkeys(ids, text)
    try:
        table = read_table(Path(text), "case", optional=["visible"])
    except DataError as error:
        raise PromptError(f"{error} A table of visible structures has rows such as 12_t2,T10:L5.") from None
    foreign = table.keys() - set(ids)
    for case_id in ids:
        near = difflib.get_close_matches(case_id, foreign, n=1) if case_id not in table else []
        if near:
            raise PromptError(
                f"'{text}' has no row for case '{case_id}'. Did you mean '{near[0]}'? Correct the name there, or "
                f"add a row for '{case_id}'; its cells may be empty."
            )
    rows = [table[case_id].cells for case_id in ids if case_id in table]
    if ids and not any(cell for cells in rows for column, cell in cells.items() if column != "case"):
        raise PromptError(
            f"'{text}' has no words for any case.{suggestion(ids[0], table)} Add a row such as {ids[0]},T10:L5."
        )
    return {case_id: row.cells["visible"] for case_id, row in table.items() if row.cells.get("visible")}


def read_facts(text: str) -> dict[str, dict[str, str]]:
    """Return the other columns of a CSV file that `read_statements` reads, by case; nothing for a text."""
    if not text.lower().endswith(TABLE_SUFFIXES):
        return {}
    rows = read_table(Path(text), "case", optional=["visible"])
    others = {case_id: row.cells.items() for case_id, row in rows.items()}
    return {
        id_: {c: cell for c, cell in cells if c not in ("case", "visible") and cell} for id_, cells in others.items()
    }


def read_cases(atlas: Atlas, text: str, case_ids: Iterable[str]) -> dict[str, Visibility]:
    """Read what a person states about each case that has words; see `read_statements`. An error names its case."""
    read = {}
    for case_id, words in read_statements(text, case_ids := list(case_ids)).items():
        if case_id in case_ids:
            try:
                read[case_id] = interactive_visibility(atlas, words)
            except PromptError as error:
                raise PromptError(f"case '{case_id}': {error}") from None
    if case_ids and not read:
        raise PromptError(f"'{text}' does not say what is visible in any case: fill its column 'visible'.")
    return read


def unstated(case_ids: Iterable[str], read: Collection[str], prompts: str) -> list[str]:
    """Return a line with the cases of which nothing was read, and the source of their prompts, if there are any."""
    silent = [case_id for case_id in case_ids if case_id not in read]
    more = f" and {len(silent) - LISTED} more" if len(silent) > LISTED else ""
    names = ", ".join(silent[:LISTED])
    return [f"no words: {counted(len(silent), 'case')} ({names}{more}); prompts: {prompts}"] if silent else []


def readings(atlas: Atlas, read: Mapping[str, Visibility]) -> list[str]:
    """Return lines that show what was read for each case; a single line where it is the same for all."""
    lines = {case_id: f"read: {summary(atlas, visibility.visible)}" for case_id, visibility in read.items()}
    distinct = list(dict.fromkeys(lines.values()))
    return distinct if len(distinct) < 2 else [f"{case_id}: {line}" for case_id, line in lines.items()]


class _Reader:
    """A reader of statements on the structures of one atlas."""

    def __init__(self, atlas: Atlas) -> None:
        self.atlas = atlas
        self.spellings: dict[str, str] = {}  # a name or synonym in lower case -> the name
        self.kinds: dict[str, set[str]] = {}  # "lumbar vertebra", "vertebrae", "lumbar" -> the structures of that kind
        self.numbered: set[str] = set()  # kinds whose structures people number: "lumbar 4"
        self.sets: dict[str, set[str]] = {group.casefold(): set(names) for group, names in atlas.groups.items()}
        for structure in atlas.structures:
            self.spellings[structure.name.casefold()] = structure.name
            family = structure.family.strip() or structure.name
            first, last = family.split()[0], family.split()[-1]
            for words in dict.fromkeys((family, first, last)):
                for form in (words.casefold(), _plural(words).casefold()):
                    self.kinds.setdefault(form, set()).add(structure.name)
                    if words != last:  # "vertebra 4" may be L4 or the fourth one in the image
                        self.numbered.add(form)
            for form in (_plural(family), _plural(last)):
                self.sets.setdefault(form.casefold(), set()).add(structure.name)
        for structure in atlas.structures:  # a name of any structure comes before a synonym of another one
            kinds = (structure.family, *structure.family.split()[-1:])
            unique = (words for words in kinds if self.kinds.get(words.casefold()) == {structure.name})
            for words in (*structure.synonyms, *unique):
                self.spellings.setdefault(words.casefold(), structure.name)
        letters = {match[1] for words in self.spellings if (match := _LEVEL.fullmatch(words))}
        self.prefix = re.compile(rf"\b({'|'.join(sorted(letters, key=len)) or '(?!)'})\.? ?(?=\d)", re.IGNORECASE)
        self.placeholders: dict[str, str] = {}

    def read_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the structures of a list of names, in class order."""
        if not names:
            raise PromptError(self._nothing())
        return self._ordered({self._structure(name) or self.atlas[name].name for name in names})

    def read_text(self, text: str) -> tuple[str, ...]:
        """Return the structures that a text calls visible, in class order."""
        try:
            return self._read(self._normal(text))
        except PromptError as error:
            message = str(error)
            for placeholder, name in self.placeholders.items():
                message = message.replace(placeholder, name)
            raise PromptError(message if f"'{text}'" in message or not text else f"'{text}': {message}") from None

    def _normal(self, text: str) -> str:
        """Return a text in one spelling; a name that has words of the grammar in it becomes a placeholder."""
        structures = self.atlas.structures
        names = [spelling for structure in structures for spelling in (structure.name, *structure.synonyms)]
        for name in sorted(names, key=len, reverse=True):
            if _spell(name) != name or any(pattern.search(name) for pattern in (_MARK, _AND, _OR, _TO)):
                placeholder = chr(_FIRST_PLACEHOLDER + len(self.placeholders))
                self.placeholders[placeholder] = name
                self.spellings[placeholder] = self.spellings[name.casefold()]
                text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", placeholder, text)
        return self.prefix.sub(r"\1", _spell(text))

    def _read(self, text: str) -> tuple[str, ...]:
        visible: set[str] = set()
        hidden: set[str] = set()
        explicit: list[str] = []  # visible structures that the text names, alone or as the end of a stretch
        previous = ""
        for part, is_visible in _parts(text):
            for words in (_AND if is_visible else _OR).split(part):
                if not words.strip():
                    continue
                names, named = self._item(words.strip(), previous)
                previous = named[-1] if named else previous
                if is_visible:
                    visible.update(names)
                    explicit += named
                else:
                    # "no L4 to L5" says nothing about the canal, which a stretch of visible structures has with it.
                    hidden.update(names if len(named) < 2 else set(names) & set(self.atlas.sequence))
        if contradictory := [name for name in explicit if name in hidden]:
            raise PromptError(
                f"'{contradictory[0]}' is named as visible and as not visible. Name it once; a stretch begins and ends "
                "with a visible structure."
            )
        if hidden and not visible:
            raise PromptError(
                f"only {', '.join(self._ordered(hidden))} is named, as not visible. Say also what is visible, such as "
                f"'everything without {self._ordered(hidden)[0]}'."
            )
        if not visible - hidden:
            raise PromptError(self._nothing())
        return self._ordered(visible - hidden)

    def _item(self, words: str, previous: str) -> tuple[Iterable[str], tuple[str, ...]]:
        """Return the structures that an item of a list means, and those among them that it names."""
        if name := self._structure(words, previous):
            return (name,), (name,)
        if words.casefold() in _ALL:
            return self.atlas.names, ()
        if names := self.sets.get(re.sub(r"^(?:all|both)\s+", "", words.casefold())):
            return names, tuple(names) if len(names) == 1 else ()
        ends = [end.strip() for end in _TO.split(words)]
        if len(ends) == 1:
            ends = self._cut(words, previous)
        if len(ends) != 2 or not all(ends):
            raise PromptError(
                f"'{words}' is no stretch of structures; write FIRST:LAST with the upper structure first, or names "
                f"separated by commas. Atlas '{self.atlas.name}' has {', '.join(self.atlas.names)}."
            )
        first = self._structure(ends[0], previous) or ends[0]
        last = self._structure(ends[1], first) or ends[1]
        return self.atlas.between(first, last), (first, last)

    def _cut(self, words: str, previous: str) -> list[str]:
        """Return the two ends of a stretch that is written with a hyphen or a slash, such as "T11-L3"."""
        if self.atlas.ordered:
            for mark in "-/":
                cuts = [[words[: sign.start()], words[sign.end() :]] for sign in re.finditer(mark, words)]
                if len(cuts) > 1:  # "T12/L1-L3/L4" can only be cut at the hyphen, and "T11/T12/L1" at both slashes
                    cuts = [cut for cut in cuts if all(self._structure(end, previous) for end in cut)]
                if len(cuts) == 1:
                    return cuts[0]
                if cuts:
                    raise PromptError(f"'{words}' can be read in {len(cuts)} ways; write FIRST to LAST.")
        if words.casefold() in self.kinds:
            names = ", ".join(self._ordered(self.kinds[words.casefold()]))
            raise PromptError(f"'{words}' may be any of {names}. Name one of them.")
        raise PromptError(
            f"Atlas '{self.atlas.name}' has no structure '{words}'.{suggestion(words, self.atlas.names)} Write FIRST "
            "to LAST or names with commas between them, and 'no NAME' for what is not visible."
        )

    def _structure(self, words: str, previous: str = "") -> str | None:
        """Return the name of one structure, or None; `previous` is the structure that the text named before."""
        if name := words if words in self.atlas.names else self.spellings.get(words.casefold()):
            return name
        if words.isdigit():  # the end of "L1 to 5"
            level = _LEVEL.fullmatch(previous)
            return self.spellings.get(f"{level[1]}{words}".casefold()) if level else None
        if pair := re.fullmatch(r"([^/-]+)[/-]([^/-]+)", words):  # a disc: "Th11/12", "L5-S1"
            first = self.spellings.get(pair[1].casefold(), pair[1])
            level = _LEVEL.fullmatch(first) if pair[2].isdigit() else None
            second = f"{level[1]}{pair[2]}" if level else pair[2]
            second = self.spellings.get(second.casefold(), second)
            if name := self.spellings.get(f"{first}/{second}".casefold()):
                return name
        for kind in sorted(self.kinds, key=len, reverse=True):
            if match := re.fullmatch(rf"{re.escape(kind)} (.+)|(.+) {re.escape(kind)}", words, re.IGNORECASE):
                return self._of_kind(kind, words, match[1], match[2])
        return None

    def _of_kind(self, kind: str, words: str, after: str | None, before: str | None) -> str | None:
        """Return the structure that its kind and its name or number mean: "disc L4/5", "lumbar 4"."""
        ordinal = re.fullmatch(r"(\d+)(?:st|nd|rd|th)", before or "", re.IGNORECASE)
        number = after if after and after.isdigit() else ordinal[1] if ordinal else None
        members = self._ordered(self.kinds[kind])
        if number and kind in self.numbered:
            levels = [name for name in members if (level := _LEVEL.fullmatch(name)) and level[2] == number]
            return levels[0] if len(levels) == 1 else None
        name = self._structure(after or before or "")
        if name and name not in members:
            raise PromptError(
                f"'{words}': {name} is a structure of the kind '{self.atlas[name].family}'. Name "
                "the structure alone, or write FIRST to LAST."
            )
        return name

    def _ordered(self, names: Iterable[str]) -> tuple[str, ...]:
        chosen = set(names)
        return tuple(name for name in self.atlas.names if name in chosen)

    def _nothing(self) -> str:
        return (
            f"No visible structure is named; name at least one of atlas '{self.atlas.name}': "
            f"{', '.join(self.atlas.names)}."
        )


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each part of a text with True if it is visible.

    Raises PromptError where the range of a negation is not clear.
    """
    for sentence in _SENTENCE.split(text):
        open_denial = False  # "no L4, L5": does the word apply to L5, too?
        open_list = False  # "L3, L4 not visible": do the last words apply to L3, too?
        for phrase in sentence.split(","):
            parts = list(_phrase_parts(phrase))
            for part, visible, mark in parts:
                if visible and open_denial:
                    raise PromptError(
                        f"'{part}' follows a negation, so it may be visible or not. Name visible structures first, and "
                        "write 'no' before each structure that is not visible."
                    )
                if not visible and mark == "after" and open_list:
                    raise PromptError(
                        f"'{part}' may be the end of a longer list of structures that are not visible. Write 'no' "
                        "before each structure that is not visible, or end the sentence before it."
                    )
                yield part, visible
            open_denial |= any(not visible and mark == "before" for _, visible, mark in parts)
            if parts:
                open_list = parts[-1][1] and parts[-1][2] == "none"


def _phrase_parts(phrase: str) -> Iterator[tuple[str, bool, str]]:
    """Yield the parts of a phrase without commas: names, True if visible, and the side of the word that says so."""
    visible, side, start, closed = True, "none", 0, False
    for mark in [*_MARK.finditer(phrase), None]:
        part = phrase[start : mark.start() if mark else None].strip()
        if part and closed and not _AND.match(part):
            raise PromptError(f"'{phrase.strip()}' is not clear; write a comma between visible structures and others.")
        kind, start = mark.lastgroup if mark else None, mark.end() if mark else 0
        if not visible and (kind == "hidden" or (kind == "no" and not part)):
            raise PromptError(f"'{phrase.strip()}' has two negations. Write 'no NAME' for what is not visible.")
        if not part:  # "not visible: L4"
            if not mark and not visible:
                raise PromptError(f"'{phrase.strip()}' ends with a negation. Write 'no NAME' for what is not visible.")
            if mark:
                visible, side = visible and kind == "seen", "before"
            continue
        if kind in ("hidden", "seen"):  # "L4 is not visible"
            yield part, visible and kind == "seen", side if not visible else "after"
            visible, side, closed = True, "none", True
        else:
            yield part, visible, side
            visible, side, closed = kind != "no", "before" if kind == "no" else "none", False


def _spell(text: str) -> str:
    for pattern, spelling in _SPELLINGS:
        text = re.sub(pattern, spelling, text, flags=re.IGNORECASE)
    return text.strip()


def _plural(words: str) -> str:
    """Return the plural of a kind: vertebrae, atria, discs."""
    if words.endswith("um"):
        return f"{words[:-2]}a"
    return f"{words}e" if words.endswith("a") else f"{words}s"
