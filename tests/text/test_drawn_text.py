from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from textseg.contracts import IGNORED, Atlas, PromptGenerator, Prompts, Structure, Visibility
from textseg.data.preparation import PreparedCase
from textseg.errors import RecipeError
from textseg.recipe.schema import RenumberingSettings
from textseg.text.drawn_text import DrawnText, Draws, Statements, last_of_first_group
from textseg.text.reports import Report
from textseg.text.slice_text import AVAILABLE

DrawnTextOf = Callable[..., DrawnText]
NAMES = ("V1", "V1/V2", "V2", "V2/V3", "V3", "V3/V4", "V4", "V4/V5", "V5")


@pytest.fixture
def spine() -> Atlas:
    """Five vertebrae with the discs between them and a canal; the lowest disc and vertebra are landmarks."""
    names = (*NAMES, "SC")
    vertebrae, discs = NAMES[::2], NAMES[1::2]
    return Atlas(
        "spine",
        tuple(Structure(name, "part", index) for index, name in enumerate(names, 1)),
        sequence=NAMES,
        groups={"vertebrae": vertebrae, "discs": discs, "canal": ("SC",)},
        landmarks=("V5",),
    )


@pytest.fixture
def spine_text(
    spine: Atlas, prepared_case: Callable[..., PreparedCase], drawn_text_of: DrawnTextOf
) -> Callable[..., DrawnText]:
    """The texts of one slice that shows V1 to V4 and the canal."""

    def speak(visibility):
        content = [visibility.source, visibility.counted, *visibility.visible]
        return Prompts(json.dumps(content), tuple(f"{n} {n in visibility.visible}" for n in spine.names))

    names = (f"a{number}" for number in itertools.count())

    def build(present: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 10), report: Report | None = None, **options) -> DrawnText:
        case = replace(prepared_case(next(names), [()]), present=(tuple(present),))
        if report is not None:
            options |= {"sources": ("report",), "reports": {case.case.id: report}}
        return drawn_text_of([case], spine, generator=speak, **options)

    return build


def mask_of(areas: dict[int, int]) -> Tensor:
    """Return a mask [1, 11, 100] with a row for each structure, of the given number of pixels."""
    mask = torch.zeros(1, 11, 100, dtype=torch.uint8)
    for index, area in areas.items():
        mask[0, index, :area] = index
    return mask


def draws_of(source: str, before: dict[int, float], **draws: float) -> Draws:
    sizes = torch.zeros(1, 11)
    for index, area in before.items():
        sizes[0, index] = area
    return Draws(
        number=torch.tensor([0]),
        source=torch.tensor([AVAILABLE.index(source)]),  # type: ignore[arg-type]
        before=sizes,
        ends_at_vertebra=torch.tensor([bool(draws.get("ends", 0))]),
        renumbering=torch.tensor([float(draws.get("move", -1))]),
        error=torch.tensor([int(draws.get("error", 0))]),
    )


WHOLE = dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 10), 100)


def stated(text: DrawnText, source: str, areas: dict[int, int], **draws: float) -> list:
    numbers, _ = text.numbers(mask_of(areas), draws_of(source, WHOLE, **draws), volume=False)
    return json.loads(text.holistic(int(numbers[0])))


def test_a_person_names_what_is_left_of_the_picture(spine_text: DrawnTextOf) -> None:
    text = spine_text()
    assert stated(text, "interactive", WHOLE) == ["interactive", True, *NAMES[:7], "SC"]
    # V1 is cut to less than a third, V4 is gone; the disc between V2 and V3 is small, but lies between two that are not
    left = {1: 29, 2: 31, 3: 100, 4: 5, 5: 100, 6: 100, 10: 40}
    assert stated(text, "interactive", left) == ["interactive", True, "V1/V2", "V2", "V2/V3", "V3", "V3/V4", "SC"]
    assert stated(text, "interactive", left, ends=1) == ["interactive", True, "V1/V2", "V2", "V2/V3", "V3", "SC"]
    assert stated(text, "interactive", {2: 50, 10: 100}, ends=1) == ["interactive", True, "V1/V2", "SC"]
    assert stated(text, "interactive", {10: 100})[0] == "template"  # nobody can name its levels


def test_the_ground_truth_is_what_the_slice_shows_less_what_left_it(spine_text: DrawnTextOf) -> None:
    text = spine_text(present=(1, 3, 5, 7, 10))  # a lateral slice without discs
    assert stated(text, "ground_truth", WHOLE) == ["ground_truth", True, "V1", "V2", "V3", "V4", "SC"]
    assert stated(text, "ground_truth", {1: 20, 3: 100, 5: 50}) == ["ground_truth", True, "V2", "V3"]
    assert stated(text, "ground_truth", {}) == ["ground_truth", True]


def test_the_template_knows_nothing_of_the_picture(spine_text: DrawnTextOf) -> None:
    for counted in (True, False):
        text = spine_text(counted=counted)
        assert stated(text, "template", {3: 100}) == ["template", counted, *NAMES, "SC"]


@pytest.mark.parametrize("where", ["anywhere", "without_landmark"])
def test_names_and_text_move_together(spine_text: DrawnTextOf, where: str) -> None:
    text = spine_text(renumbering=RenumberingSettings(probability=1, levels=2, where=where))  # type: ignore[arg-type]
    areas = {3: 100, 4: 100, 5: 100, 10: 100}  # V2 to V3: may move by -1, 1 and, onto the landmark V5, by 2
    results = set()
    for move in (0.0, 0.34, 0.51, 0.67, 0.99):
        mask, rows, renumbered = text(mask_of(areas), draws_of("interactive", WHOLE, move=move), volume=False)
        new = sorted(set(torch.unique(mask).tolist()) - {0})
        assert [index for index, yes in enumerate(rows.present[0].tolist(), 1) if yes] == new
        assert renumbered.tolist() == [True]
        assert new[-1] == 10  # the canal keeps its name
        assert int((mask[0, 3] > 0).sum()) == 100  # the pixels stay, only their names move
        results.add(tuple(new[:-1]))
    assert results == {(1, 2, 3), (5, 6, 7)} | ({(7, 8, 9)} if where == "anywhere" else set())


def test_ignored_pixels_have_no_name_and_stay(spine_text: DrawnTextOf) -> None:
    text = spine_text(renumbering=RenumberingSettings(probability=1, levels=1, where="anywhere"))
    mask = mask_of({3: 100, 4: 100, 5: 100, 10: 100})
    mask[0, 7], mask[0, 4, 50:] = IGNORED, IGNORED
    new, rows, renumbered = text(mask, draws_of("interactive", WHOLE, move=0.0), volume=False)
    assert renumbered.tolist() == [True]
    assert torch.equal(new == IGNORED, mask == IGNORED)
    assert sorted(set(torch.unique(new).tolist()) - {0, IGNORED}) == [1, 2, 3, 10]
    assert rows.present[0].tolist() == [True] * 3 + [False] * 6 + [True]


def test_what_cannot_move_stays(spine_text: DrawnTextOf) -> None:
    text = spine_text(
        present=(5, 6, 7, 8, 9, 10), renumbering=RenumberingSettings(probability=1, levels=1, where="without_landmark")
    )
    shown = dict.fromkeys((5, 6, 7, 8, 9, 10), 100)

    def moves(source: str, areas: dict[int, int], move: float) -> int:
        draws = draws_of(source, dict.fromkeys(range(1, 11), 100), move=move)
        return int(text.numbers(mask_of(areas), draws, volume=False)[1][0])

    assert moves("interactive", shown, 0.9) == 0  # the landmark is in the picture
    assert moves("interactive", {**shown, 9: 1}, 0.9) == 0  # even if nobody would name it
    assert moves("interactive", {5: 100, 6: 100, 7: 100}, 0.0) == 1  # upwards
    assert moves("interactive", {5: 100, 6: 100, 7: 100}, 0.99) == 1  # downwards it would become the landmark
    assert moves("template", {5: 100}, 0.5) == 0  # it names no level
    assert moves("interactive", {5: 100}, -1) == 0  # no move was drawn
    assert moves("interactive", {10: 100}, 0.5) == 0  # no level to name


def test_a_landmark_outside_the_sequence_keeps_the_names_too(
    spine: Atlas, prepared_case: Callable[..., PreparedCase], drawn_text_of: DrawnTextOf
) -> None:
    case = replace(prepared_case("canal", [()]), present=((3, 10),))

    def speak(visibility: Visibility) -> Prompts:
        return Prompts(json.dumps(visibility.visible), ("",) * 10)

    text = drawn_text_of(
        [case],
        replace(spine, landmarks=("SC",)),
        generator=speak,
        renumbering=RenumberingSettings(probability=1, levels=1),
    )
    for areas, moved in (({3: 100, 10: 1}, False), ({3: 100}, True)):
        draws = draws_of("interactive", {3: 100, 10: 100}, move=0.5)
        assert (int(text.numbers(mask_of(areas), draws, volume=False)[1][0]) > 0) == moved


def test_a_person_who_miscounts_moves_the_text_and_not_the_mask(spine_text: DrawnTextOf) -> None:
    text = spine_text(interactive_error=1.0)
    areas = {3: 100, 4: 100, 5: 100, 10: 100}
    assert stated(text, "interactive", areas, error=1)[2:] == ["V3", "V3/V4", "V4", "SC"]
    assert stated(text, "interactive", areas, error=-1)[2:] == ["V1", "V1/V2", "V2", "SC"]
    assert stated(text, "interactive", WHOLE, error=-1)[2:] == [*NAMES[2:], "SC"]  # there is no level above V1
    everything = dict.fromkeys(range(1, 11), 100)
    assert stated(text, "interactive", everything, error=1)[2:] == [*NAMES, "SC"]  # nor below V5
    mask, _, renumbered = text(mask_of(areas), draws_of("interactive", WHOLE, error=1), volume=False)
    assert torch.equal(mask, mask_of(areas))
    assert renumbered.tolist() == [False]


def test_one_statement_holds_for_a_whole_volume(small_atlas: Atlas, drawn_text_of: DrawnTextOf, prepared_case) -> None:
    cases = [prepared_case("a", [(2,), (2, 3, 1)])]
    text = drawn_text_of(cases, small_atlas)
    masks = torch.zeros(2, 6, 10, dtype=torch.uint8)
    masks[0, 2], masks[1, 2], masks[1, 3], masks[1, 1] = 2, 2, 3, 1
    before = torch.stack([torch.bincount(mask.flatten(), minlength=5) for mask in masks]).float()
    none = torch.zeros(2, dtype=torch.long)
    draws = Draws(torch.arange(2), none + 1, before, none.bool(), none - 1.0, none)
    by_slice, by_volume = (
        [json.loads(text.holistic(int(n)))[:-5] for n in text.numbers(masks, draws, volume=volume)[0]]
        for volume in (False, True)
    )
    assert by_slice == [["L1", "SC"], ["L2", "L1", "L1/L2", "SC"]]
    assert by_volume == [["L2", "L1", "L1/L2", "SC"]] * 2


@pytest.mark.parametrize("distorts", [True, False])
def test_a_slice_of_a_volume_has_a_text_of_its_own_whatever_it_shows(
    spine: Atlas, prepared_case: Callable[..., PreparedCase], drawn_text_of: DrawnTextOf, distorts: bool
) -> None:
    """The volume shows V2 to V3 and the canal; its slices show V2, everything, only the canal, and nothing."""
    shown = ((3,), (3, 4, 5, 10), (10,), ())
    case = replace(prepared_case(f"a{distorts}", [()] * 4), present=shown)

    def speak(visibility: Visibility) -> Prompts:
        return Prompts(json.dumps([visibility.source, *visibility.visible]), ("",) * 10)

    text = drawn_text_of(
        [case], spine, generator=speak, moves=distorts, renumbering=RenumberingSettings(probability=1, levels=1)
    )
    masks = torch.cat([mask_of(dict.fromkeys(indices, 100)) for indices in shown])
    none = torch.zeros(4, dtype=torch.long)
    before = torch.stack([torch.bincount(mask.flatten(), minlength=11) for mask in masks]).float()
    for move, names in ((-1.0, ("V2", "V2/V3", "V3")), (0.0, ("V1", "V1/V2", "V2"))):
        drawn = {}
        for source in ("interactive", "ground_truth"):
            draws = Draws(torch.arange(4), none + AVAILABLE.index(source), before, none.bool(), none + move, none)
            _, _, renumbered = text(masks, draws, volume=True)
            numbers, _ = text.numbers(masks, draws, volume=True)
            drawn[source] = [json.loads(text.holistic(int(number))) for number in numbers]
            assert renumbered.tolist() == [move >= 0] * 4
        assert drawn["interactive"] == [["interactive", *names, "SC"]] * 4
        assert drawn["ground_truth"] == [["ground_truth", *part] for part in (names[:1], (*names, "SC"), ("SC",), ())]


def test_a_list_that_the_atlas_cannot_move_stays_even_if_the_picture_lacks_its_middle(
    prepared_case: Callable[..., PreparedCase], drawn_text_of: DrawnTextOf
) -> None:
    """V2 and V3 could move up, but not the disc between them, since there is none above V2, as in the neck."""
    sequence = ("V1", "V2", "V2/V3", "V3")
    neck = Atlas(
        "neck",
        tuple(Structure(name, "part", index) for index, name in enumerate(sequence, 1)),
        sequence=sequence,
        groups={"vertebrae": ("V1", "V2", "V3"), "discs": ("V2/V3",)},
    )
    case = replace(prepared_case("neck", [()]), present=((2, 4),))

    def speak(visibility: Visibility) -> Prompts:
        return Prompts(json.dumps([visibility.source, *visibility.visible]), ("",) * 4)

    text = drawn_text_of([case], neck, generator=speak, renumbering=RenumberingSettings(probability=1, levels=1))
    areas = {2: 100, 4: 100}
    draws = replace(draws_of("interactive", areas, move=0.5), before=draws_of("interactive", areas).before[:, :5])
    numbers, moves = text.numbers(mask_of(areas), draws, volume=False)
    assert moves.tolist() == [0]
    assert json.loads(text.holistic(int(numbers[0]))) == ["interactive", "V2", "V2/V3", "V3"]


def test_without_distortion_only_the_texts_of_whole_slices_are_written(
    cases: list[PreparedCase], small_atlas: Atlas, speak: PromptGenerator
) -> None:
    still = Statements(cases, ["ground_truth"], speak, small_atlas, moves=False)
    moving = Statements(cases, ["ground_truth"], speak, small_atlas)
    assert len(still.prompts) < len(moving.prompts)
    assert {p.visibility.visible for p in still.prompts} < {p.visibility.visible for p in moving.prompts}


def test_structures_without_an_order_are_named_as_a_set(drawn_text_of: DrawnTextOf, prepared_case) -> None:
    heart = Atlas("heart", tuple(Structure(name, "part", index) for index, name in enumerate(("L2", "L1"), 1)))

    def speak(visibility: Visibility) -> Prompts:
        return Prompts(json.dumps([*visibility.visible, *"....."]), ("", ""))

    text = drawn_text_of([prepared_case("a", [(1, 2)])], heart, generator=speak)
    draws = Draws(
        torch.tensor([0]),
        torch.tensor([1]),
        torch.full((1, 3), 10.0),
        torch.tensor([True]),
        torch.tensor([0.5]),
        torch.tensor([0]),
    )
    for areas, names in ({1: 5}, ["L2"]), ({1: 5, 2: 1}, ["L2", "L1"]):
        mask = mask_of(areas)[:, :3]
        numbers, moves = text.numbers(mask, draws, volume=False)
        assert json.loads(text.holistic(int(numbers[0])))[:-5] == names
        assert moves.tolist() == [0]


def test_a_report_names_what_the_picture_shows_of_it(spine_text: DrawnTextOf) -> None:
    text = spine_text(report=Report((*NAMES[2:8], "SC")))
    assert stated(text, "report", WHOLE) == ["report", True, *NAMES[2:7], "SC"]
    assert stated(text, "report", {1: 100, 2: 100, 3: 100}) == ["report", True, "V2"]
    assert stated(text, "report", {1: 100, 10: 100}) == ["report", True, "SC"]
    assert stated(text, "report", {1: 100}) == ["report", False, *NAMES, "SC"]  # it names nothing that is in view
    assert stated(text, "report", {}) == ["report", False, *NAMES, "SC"]


def test_names_of_a_report_move_with_the_mask_or_nothing_moves(spine_text: DrawnTextOf) -> None:
    settings = RenumberingSettings(probability=1, levels=1, where="anywhere")
    areas = {3: 100, 4: 100, 5: 100}  # V2 to V3
    for names, moves in ((NAMES[:5], True), (NAMES[5:], False), ((), False)):
        report = Report(names, {"history": "trauma"})
        text = spine_text(report=report, renumbering=settings, interactive_error=0.1)
        mask, rows, renumbered = text(mask_of(areas), draws_of("report", WHOLE, move=0.9), volume=False)
        assert renumbered.tolist() == [moves]
        assert sorted(set(torch.unique(mask).tolist()) - {0}) == ([5, 6, 7] if moves else [3, 4, 5])
        present = [index for index, yes in enumerate(rows.present[0].tolist(), 1) if yes]
        assert present == ([5, 6, 7] if moves else [*range(1, 11)])
    text = spine_text(sources=("report",), reports={}, renumbering=settings)  # no report: the template
    numbers, moved = text.numbers(mask_of(areas), draws_of("report", WHOLE, move=0.9), volume=False)
    assert json.loads(text.holistic(int(numbers[0])))[0] == "template"
    assert moved.tolist() == [0]


def test_a_sentence_stays_as_it_is_and_belongs_to_the_whole_picture(spine_text: DrawnTextOf) -> None:
    settings = RenumberingSettings(probability=1, levels=1, where="anywhere")
    for sentence, whole_only in (("V2 is narrow.", {0}), ("Pain.", set())):
        text = spine_text(report=Report(sentence=sentence), renumbering=settings)
        assert text.statements.whole_only == whole_only
        numbers, moves = text.numbers(mask_of({3: 100}), draws_of("report", WHOLE, move=0.9), volume=False)
        assert text.holistic(int(numbers[0])) == sentence
        assert moves.tolist() == [0]


def test_one_report_holds_for_a_whole_volume(small_atlas: Atlas, drawn_text_of: DrawnTextOf, prepared_case) -> None:
    case = prepared_case("a", [(2,), (1, 2, 3, 4), ()])
    reports = {"a": Report(("L1",), {}, "")}
    text = drawn_text_of([case], small_atlas, sources=("report",), reports=reports, moves=False)
    mask = torch.from_numpy(case.mask.copy())
    before = torch.stack([torch.bincount(plane.flatten(), minlength=5) for plane in mask])
    none = torch.full((3,), -1.0)
    draws = Draws(torch.arange(3), torch.full((3,), 3), before, torch.zeros(3).bool(), none, torch.zeros(3).long())
    numbers, _ = text.numbers(mask, draws, volume=True)
    assert [text.statements.prompts[number].visibility.visible for number in numbers.tolist()] == [("L1",)] * 3


def test_too_many_sets_are_refused(speak: PromptGenerator) -> None:
    crowd = Atlas("crowd", tuple(Structure(f"s{i}", "part", i) for i in range(1, 13)))
    with pytest.raises(RecipeError, match="any set of the 12 structures of atlas 'crowd', too many"):
        Statements([], ["interactive"], speak, crowd)
    assert Statements([], ["ground_truth"], speak, crowd).outside == []


def test_a_list_ends_at_the_nearest_vertebra(spine: Atlas) -> None:
    assert last_of_first_group(spine) == [0, 0, 2, 2, 4, 4, 6, 6, 8]
    bare = Atlas("bare", spine.structures, spine.sequence)
    assert last_of_first_group(bare) == list(range(9))
