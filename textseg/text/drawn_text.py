"""Texts of training slices, which depend on what a random distortion has left in the picture.

Every text that may be drawn is written and encoded before training. A draw only looks up its number, with tensors on
the device of the mask, so that a slice that is distorted on a GPU needs no copy to the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from textseg.contracts import IGNORED, Atlas, PromptGenerator, Source, TextFeatures, Visibility
from textseg.errors import RecipeError
from textseg.recipe.schema import RenumberingSettings
from textseg.system.devices import Movable
from textseg.text.embeddings import TextTable
from textseg.text.prompts import third_of_stack
from textseg.text.reports import Report, names_structure
from textseg.text.slice_text import (
    AVAILABLE,
    AnnotatedCase,
    SlicePrompt,
    SliceText,
    TextRows,
    miscounted,
    write_prompt,
)
from textseg.text.visibility import (
    NAMED_SHARE,
    ground_truth_visibility,
    person_visibility,
    report_visibility,
    template_visibility,
)

ENUMERABLE = 10  # structures outside the sequence up to which each set of them has a text of its own

Number = TypeVar("Number", int, Tensor)
_Facts = tuple[tuple[str, str], ...]
_Key = tuple[tuple[str, ...], Source, int, _Facts, str]  # visible, source, third of the stack, facts, sentence


@dataclass(frozen=True)
class Draws(Movable):
    """The random draws and the areas on which the texts of B slices depend."""

    number: Tensor  # [B] number of the slice
    source: Tensor  # [B] position of its prompt source in `AVAILABLE`
    before: Tensor  # [B, K] pixels of each class before the distortion, times the factor by which it enlarges areas
    ends_at_vertebra: Tensor  # [B] bool, True where a person's list ends at a vertebra, without the disc below it
    renumbering: Tensor  # [B] position of the move among those that are possible, in [0, 1); -1 for no move
    error: Tensor  # [B] levels by which a person has miscounted: the text moves, and the mask stays


class Statements:
    """The prompts that may be drawn for training slices, and their number for each slice and each state of its picture.

    The state of a picture has a code: the levels by which its names are moved, the first and last structure of the
    sequence that are named, and the set of structures outside the sequence that are visible.

    Args:
        cases: the training cases; their slices are numbered through.
        sources: the prompt sources of the training.
        generator: the prompt generator.
        atlas: the structures.
        counted: False where the template says that nobody counted.
        template_position: True if the template states the position of a slice in the stack.
        renumbering: the settings of the renumbering, or None.
        interactive_error: probability that a person has miscounted a case by one level.
        seed: of that error.
        reports: the words that came with cases, by case id. A report is cut to what the picture shows, as a person
            would say it; a sentence stays as it is.
        moves: False if no distortion changes what a slice shows; the prompts are then only those of whole slices.
    """

    def __init__(
        self,
        cases: Sequence[AnnotatedCase],
        sources: Iterable[Source],
        generator: PromptGenerator,
        atlas: Atlas,
        *,
        counted: bool = True,
        template_position: bool = True,
        renumbering: RenumberingSettings | None = None,
        interactive_error: float = 0.0,
        seed: int = 0,
        reports: Mapping[str, Report] = {},
        moves: bool = True,
    ) -> None:
        self.atlas, self.generator, self.moves = atlas, generator, moves
        self.renumbering = renumbering if atlas.ordered else None
        # Numbers of slices whose report is a sentence on structures, which holds for the whole picture only.
        sentences = [(reports[p.case.id].sentence if p.case.id in reports else "") for p in cases for _ in p.present]
        self.whole_only = {number for number, text in enumerate(sentences) if names_structure(atlas, text)}
        self.sources = tuple(source for source in AVAILABLE if source in sources)
        self.counted, self.template_position = counted, template_position
        self.outside = [atlas[name].index for name in atlas.names if name not in atlas.sequence]
        if len(self.outside) > ENUMERABLE:
            if "interactive" in self.sources and not atlas.ordered:
                raise RecipeError(
                    f"prompts.training: a person may name any set of the {len(self.outside)} structures of atlas "
                    f"'{atlas.name}', too many to encode. Leave out interactive; ground_truth and template work."
                )
            self.outside = []  # such a structure is then named wherever the whole slice shows it
        # First the moves of the renumbering, 0 in front, then what an error of a person adds to them.
        farthest = self.renumbering.levels if self.renumbering is not None else 0
        self.move_count = 2 * farthest + 1
        farthest += 1 if interactive_error and atlas.ordered else 0
        self.shifts = [0, *(sign * level for level in range(1, farthest + 1) for sign in (-1, 1))]
        self.errors = [
            miscounted(prepared.case.id, interactive_error, seed) if atlas.ordered else 0
            for prepared in cases
            for _ in prepared.present
        ]  # of each slice, in levels
        self.prompts: list[SlicePrompt] = []
        self._numbers: dict[_Key, int] = {}
        self.variants, self.lookup = self._tabulate(cases, reports)

    def code(self, shift: Number, picture: Number, outside: Number) -> Number:
        """Return the code of a picture, from whole numbers or from tensors of them.

        Args:
            shift: the position of the levels in `shifts`.
            picture: `first * n + last`, the named stretch as positions in a sequence of n; n * n where none is named.
            outside: the structures outside the sequence that are visible, as the bits of a number.
        """
        return ((shift * (len(self.atlas.sequence) ** 2 + 1) + picture) << len(self.outside)) + outside

    @property
    def code_count(self) -> int:
        """The number of codes."""
        return (len(self.shifts) * (len(self.atlas.sequence) ** 2 + 1)) << len(self.outside)

    def _tabulate(
        self, cases: Sequence[AnnotatedCase], reports: Mapping[str, Report]
    ) -> tuple[dict[Source, Tensor], dict[Source, Tensor]]:
        """Return, for each source, the variant of each slice [N], and the prompt of each variant and code."""
        variants: dict[Source, Tensor] = {}
        lookup: dict[Source, Tensor] = {}
        for source in self.sources:
            known: dict[Any, int] = {}
            numbers: list[int] = []
            rows: list[Tensor] = []
            for prepared in cases:
                report = reports.get(prepared.case.id) if source == "report" else None
                facts = tuple(sorted({**prepared.case.facts, **(report.facts if report else {})}.items()))
                # A person names what the slice shows, or what the volume shows where a batch is a volume.
                everywhere = source in ("interactive", "report") and not self.moves
                volume = tuple(sorted({*itertools.chain(*prepared.present)})) if everywhere else ()
                for index, present in enumerate(prepared.present):
                    third = third_of_stack(index, prepared.slice_count)
                    assert third is not None
                    key = (present if source == "ground_truth" or not self.moves else (), volume, third, facts)
                    words = (report.visible, report.sentence) if report else None
                    if (*key, words) not in known:
                        known[*key, words] = len(rows)
                        rows.append(self._row(source, *key, words))
                    numbers.append(known[*key, words])
            variants[source] = torch.tensor(numbers)
            lookup[source] = torch.stack(rows) if rows else torch.zeros(0, self.code_count, dtype=torch.long)
        return variants, lookup

    def _row(
        self,
        source: Source,
        present: tuple[int, ...],
        volume: tuple[int, ...],
        third: int,
        facts: _Facts,
        report: tuple[tuple[str, ...], str] | None,
    ) -> Tensor:
        """Return the number of the prompt for each code [code_count], for slices of one kind.

        For `report`, a moved picture that its words do not name has none (-1): these words can't be moved with it.
        """
        n = len(self.atlas.sequence)
        template = self._number(self.atlas.names, "template", third, facts) if report is None else -1
        if source == "template":
            return torch.full((self.code_count,), template, dtype=torch.long)
        row = torch.full((self.code_count,), -1)
        reported, sentence = report or ((), "")
        if source == "report":
            unmoved = self.code(1, 0, 0)
            row[:unmoved] = template if report is None else self._number((), source, third, facts, sentence)
        else:
            for bits in range(1 << len(self.outside)):
                row[self.code(0, n * n, bits)] = template  # nobody can name the levels of a picture without any
        for code, visible in self._pictures(source, present, volume, reported):
            if visible or source != "report":
                row[code] = self._number(visible, source, third, facts)
        return row

    def _pictures(
        self, source: Source, present: tuple[int, ...], volume: tuple[int, ...], reported: tuple[str, ...]
    ) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Give the code and the named structures of each picture that a slice may become.

        Without distortion these are the structures `present` in the slice, and those in its `volume`. A report names
        what is both `reported` and in the picture.
        """
        atlas, n = self.atlas, len(self.atlas.sequence)
        shown = {atlas.names[index - 1] for index in present}
        if source in ("interactive", "report") and self.moves:
            shown = set(atlas.names)  # a person's words depend on nothing but the code
        named = set(reported) if source == "report" else shown
        for first, last in self._stretches(shown, present, volume):
            names = atlas.sequence[first : last + 1]
            if source != "interactive":
                names = tuple(name for name in names if name in named)
            # A person who has miscounted moves further than the renumbering.
            shifts = self.shifts[: self.move_count] if source == "report" else self.shifts
            for shift, levels in enumerate(shifts):
                moved = [atlas.neighbour(name, levels) for name in names]
                if None not in moved and (names or not shift or source != "report"):
                    for bits, outside in self._outside_sets(source, named):
                        yield self.code(shift, first * n + last, bits), self._in_class_order({*moved, *outside})
        # A picture without any level to name; in an ordered atlas, a person can say nothing about it.
        if source != "interactive" or not atlas.ordered:
            for bits, outside in self._outside_sets(source, named):
                yield self.code(0, n * n, bits), self._in_class_order(outside)

    def _stretches(
        self, shown: Collection[str], present: tuple[int, ...], volume: tuple[int, ...]
    ) -> list[tuple[int, int]]:
        """Return the stretches that may be named, as positions in the sequence."""
        if not self.moves:
            both = (self._whole_stretches(indices) for indices in (present, volume))
            return list(dict.fromkeys(itertools.chain(*both)))
        positions = [position for position, name in enumerate(self.atlas.sequence) if name in shown]
        return list(itertools.combinations_with_replacement(positions, 2))

    def _outside_sets(self, source: Source, shown: Collection[str]) -> Iterator[tuple[int, Collection[str]]]:
        """Yield each set of visible structures outside the sequence, as bits, with those of them that are named."""
        atlas = self.atlas
        every = [name for name in atlas.names if name not in atlas.sequence]
        for bits in range(1 << len(self.outside)):
            visible = [atlas.names[index - 1] for i, index in enumerate(self.outside) if bits >> i & 1]
            if source == "interactive":
                # A stretch comes with all of them. Without an order they are all that a person can name.
                if atlas.ordered or visible:
                    yield bits, every if atlas.ordered else visible
            else:
                yield bits, [name for name in (visible if self.outside else every) if name in shown]

    def _in_class_order(self, names: Collection[str | None]) -> tuple[str, ...]:
        return tuple(name for name in self.atlas.names if name in names)

    def _whole_stretches(self, present: Collection[int]) -> list[tuple[int, int]]:
        """Return the stretches, as positions in the sequence, in which a person may name all structures present."""
        positions = [i for i, name in enumerate(self.atlas.sequence) if self.atlas[name].index in present]
        if not positions:
            return []
        vertebra = last_of_first_group(self.atlas)[positions[-1]]
        return [(positions[0], last) for last in {positions[-1], vertebra} if last >= positions[0]]

    def _number(self, visible: tuple[str, ...], source: Source, third: int, facts: _Facts, sentence: str = "") -> int:
        """Return the number of the prompts that state some structures, and write them the first time."""
        key = visible, source, third, facts, sentence
        if key not in self._numbers:
            self._numbers[key] = len(self.prompts)
            self.prompts.append(write_prompt(self.generator, self.atlas, self._visibility(*key)))
        return self._numbers[key]

    def _visibility(
        self, visible: tuple[str, ...], source: Source, third: int, facts: _Facts, sentence: str
    ) -> Visibility:
        known = dict(facts)
        if source == "report":
            return report_visibility(self.atlas, visible, known, sentence).at(third, 3)
        if source == "template":
            plain = template_visibility(self.atlas, known, counted=self.counted)
            return plain.at(third, 3) if self.template_position else plain
        if source == "interactive":
            return person_visibility(self.atlas, visible, known).at(third, 3)
        indices = [self.atlas[name].index for name in visible]
        return ground_truth_visibility(self.atlas, indices, known).at(third, 3)


class DrawnText:
    """The features of the texts of training slices, and the renumbering of their masks."""

    def __init__(self, statements: Statements, table: TextTable) -> None:
        self.statements, self.table = statements, table
        atlas = statements.atlas
        self.text = SliceText(table, atlas, {"drawn": statements.prompts})
        # Tensors by name, on the host; each device gets its copy once.
        order = [atlas[name].index for name in atlas.sequence]
        shifted = torch.arange(IGNORED + 1).repeat(statements.move_count, 1)  # [moves, 256] new class
        movable = torch.ones(statements.move_count, atlas.class_count, dtype=torch.bool)
        without_landmark = statements.renumbering is not None and statements.renumbering.where == "without_landmark"
        landmarks = atlas.landmarks if without_landmark else ()
        for move, levels in enumerate(statements.shifts[: statements.move_count]):
            for name in atlas.sequence if levels else ():
                target = atlas.neighbour(name, levels)
                if target is None or target in landmarks:
                    movable[move, atlas[name].index] = False
                else:
                    shifted[move, atlas[name].index] = atlas[target].index
            for name in landmarks if levels else ():  # also those outside the sequence
                movable[move, atlas[name].index] = False
        holistic, classwise, present = self.text.rows["drawn"]
        tensors = {
            "order": torch.tensor(order, dtype=torch.long),
            "outside": torch.tensor(statements.outside, dtype=torch.long),
            "vertebra": torch.tensor(last_of_first_group(atlas), dtype=torch.long),
            "levels": torch.tensor(statements.shifts),
            "shift": torch.tensor([statements.shifts.index(level) for level in sorted(statements.shifts)]),
            "shifted": shifted,
            "movable": movable,
            "holistic": holistic,
            "classwise": classwise,
            "present": present,
        }
        for source in statements.sources:
            tensors |= {
                f"variants {source}": statements.variants[source],
                f"lookup {source}": statements.lookup[source],
            }
        self._tensors = {torch.device("cpu"): tensors}

    def __call__(self, mask: Tensor, draws: Draws, *, volume: bool) -> tuple[Tensor, TextRows, Tensor]:
        """Return the mask with its new names, the rows of the texts, and which slices were renumbered.

        Args:
            mask: class indices [B, H, W], uint8, after the distortion.
            draws: of the slices.
            volume: True for the slices of one volume: one statement for all of them.
        """
        numbers, moves = self.numbers(mask, draws, volume=volume)
        tensors = self._on(mask.device)
        rows = TextRows(*(tensors[name][numbers] for name in ("holistic", "classwise", "present")))
        if self.statements.renumbering is not None:
            new = tensors["shifted"][moves].to(mask.dtype)  # [B, 256]
            # Slice by slice: the indices of a whole batch would be temporary arrays of many megabytes.
            renamed = (row.index_select(0, labels.flatten().int()) for row, labels in zip(new, mask, strict=True))
            mask = torch.stack(list(renamed)).reshape(mask.shape)
        return mask, rows, moves > 0

    def numbers(self, mask: Tensor, draws: Draws, *, volume: bool) -> tuple[Tensor, Tensor]:
        """Return the number of the prompts and of the move of each slice, both [B]."""
        tensors, sequence = self._on(mask.device), self.statements.atlas.sequence
        # 1. The area of each class, before and after the distortion.
        before, area = draws.before, _areas(mask, draws.before.shape[1])
        if volume:
            area, before = area.sum(0, keepdim=True).expand_as(area), before.sum(0, keepdim=True).expand_as(before)
        # 2. The first and the last structure of the sequence that has enough of its area in the picture.
        person, order = draws.source == AVAILABLE.index("interactive"), tensors["order"]
        first, last = _ends(((area >= NAMED_SHARE * before) & (area > 0))[:, order])
        if sequence:
            vertebra = tensors["vertebra"][last.clamp(min=0)]
            last = torch.where(person & draws.ends_at_vertebra & (vertebra >= first) & (last >= 0), vertebra, last)
        # 3. The move, among those that every structure can make that the picture shows or the text names.
        position = torch.arange(len(sequence), device=mask.device)
        stretch = (position >= first[:, None]) & (position <= last[:, None])  # [B, n]
        shown = area > 0
        shown[:, order] |= stretch
        moves = self._moves(shown, draws, first >= 0, tensors["movable"])
        if volume:  # the ground truth of a slice is only its own part of the volume's stretch
            ends = _ends(stretch & (draws.before[:, order] > 0))
            truth = draws.source == AVAILABLE.index("ground_truth")
            first, last = (torch.where(truth, own, whole) for own, whole in zip(ends, (first, last), strict=True))
        # 4. The structures outside the sequence, as the bits of a number.
        outside = (area[:, tensors["outside"]] > 0).long()
        bits = (outside << torch.arange(outside.shape[1], device=mask.device)).sum(1)
        # 5. The code of the picture, and its prompts. A person errs in the other direction where a name does not exist,
        # and not at all where neither does.
        n, farthest = len(sequence), self.statements.shifts[-1]
        picture = torch.where(first < 0, n * n, first * n + last)
        error = torch.where(person & (first >= 0), draws.error, 0)
        move = torch.where(first < 0, 0, moves)  # a slice of a renumbered volume may show no level
        if "report" in self.statements.sources:  # a report that names no level of the picture can't be moved with it
            variants, lookup = tensors["variants report"][draws.number], tensors["lookup report"]
            silent = (draws.source == AVAILABLE.index("report")) & (
                lookup[variants, self.statements.code(move, picture, bits)] < 0
            )
            move, moves = torch.where(silent, 0, move), torch.where(silent, 0, moves)
        shifts = [tensors["shift"][tensors["levels"][move] + levels + farthest] for levels in (error, -error)]
        codes = [self.statements.code(shift, picture, bits) for shift in (*shifts, move)]
        numbers = torch.full_like(draws.source, -1)
        for source in self.statements.sources:
            variants, lookup = tensors[f"variants {source}"][draws.number], tensors[f"lookup {source}"]
            wrong, opposite, right = (lookup[variants, code] for code in codes)
            row = torch.where(wrong >= 0, wrong, torch.where(opposite >= 0, opposite, right))
            numbers = torch.where(draws.source == AVAILABLE.index(source), row, numbers)
        return numbers, moves

    def _moves(self, shown: Tensor, draws: Draws, named: Tensor, movable: Tensor) -> Tensor:
        """Return the move of each slice [B], 0 for none, from the structures that are visible [B, K]."""
        possible = ~(shown[:, None] & ~movable[None]).any(2)[:, 1:]  # [B, moves - 1]
        count = possible.sum(1)
        pick = (draws.renumbering * count).long() + 1  # counted from 1 among the possible ones
        chosen = (possible & (possible.cumsum(1) == pick[:, None])).int()
        wanted = named & (draws.renumbering >= 0) & (draws.source != AVAILABLE.index("template")) & (count > 0)
        if not chosen.shape[1]:
            return torch.zeros_like(draws.source)
        return torch.where(wanted, chosen.argmax(1) + 1, 0)

    def features(self, rows: TextRows) -> TextFeatures:
        """Return the features of B slices on the device of their rows."""
        return self.text.gather(rows)

    def holistic(self, number: int) -> str:
        """Return the holistic prompt with this number."""
        return self.statements.prompts[number].holistic

    def _on(self, device: torch.device) -> Mapping[str, Tensor]:
        if device not in self._tensors:
            host = self._tensors[torch.device("cpu")]
            self._tensors[device] = {name: tensor.to(device) for name, tensor in host.items()}
        return self._tensors[device]


def _ends(named: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of the first and the last True in each row of [B, n], both [B]; -1 where there is none."""
    position = torch.arange(named.shape[1], device=named.device)
    # A column in front stands for a row without any.
    last = F.pad(torch.where(named, position, -1), (1, 0), value=-1).amax(1)
    first = F.pad(torch.where(named, position, named.shape[1]), (1, 0), value=named.shape[1]).amin(1)
    return torch.where(last < 0, -1, first), last


def _areas(mask: Tensor, classes: int) -> Tensor:
    """Return the number of pixels of each class [B, K] in a mask [B, H, W], without those that are ignored."""
    if mask.device.type == "cpu":
        return torch.stack([torch.bincount(labels.flatten(), minlength=classes)[:classes] for labels in mask])
    flat = mask.flatten(1).long()  # on a GPU, counting bins would wait for the result
    area = torch.zeros(len(mask), IGNORED + 1, dtype=torch.long, device=mask.device)
    return area.scatter_add_(1, flat, torch.ones_like(flat))[:, :classes]


def last_of_first_group(atlas: Atlas) -> list[int]:
    """Return, for each position in the sequence, the nearest one above or at it that holds a vertebra; -1 for none.

    A person names vertebrae. In a sequence of vertebrae and discs these are the group of its first structure.
    """
    if not atlas.sequence:
        return []
    group = next((names for names in atlas.groups.values() if atlas.sequence[0] in names), atlas.sequence)
    positions, latest = [], -1
    for position, name in enumerate(atlas.sequence):
        latest = position if name in group else latest
        positions.append(latest)
    return positions
