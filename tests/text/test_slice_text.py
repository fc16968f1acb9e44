from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from textseg.contracts import Atlas, PromptGenerator, Prompts, Source, Structure, Visibility
from textseg.data.preparation import PreparedCase
from textseg.errors import PromptError
from textseg.text.prompts import SequencePrompts
from textseg.text.slice_text import Knowledge, SliceText, build_text, slice_prompts
from textseg.text.visibility import predicted_visibilities, template_visibility

MakeCase = Callable[..., PreparedCase]
TextOf = Callable[[Sequence[PreparedCase], Atlas], SliceText]
Visible = Callable[[Sequence[PreparedCase], Source, Atlas], list[list[tuple[str, ...]]]]


@pytest.fixture
def visible(speak: PromptGenerator) -> Visible:
    """Return the structures that the prompts of a source call visible, slice by slice."""
    return lambda cases, source, atlas: [
        [prompt.visibility.visible for prompt in slice_prompts(case, source, speak, atlas)] for case in cases
    ]


def test_a_template_names_everything_and_the_annotation_what_a_slice_shows(
    cases: list[PreparedCase], small_atlas: Atlas, visible: Visible
) -> None:
    assert visible(cases[:1], "template", small_atlas) == [[small_atlas.names] * 5]
    assert visible(cases[:1], "ground_truth", small_atlas) == [[(), ("L1", "L1/L2"), ("L1", "SC"), ("L1/L2",), ()]]


def test_the_simulated_person_names_the_stretch_that_the_volume_shows(
    cases: list[PreparedCase], small_atlas: Atlas, visible: Visible
) -> None:
    result = visible(cases, "interactive", small_atlas)
    assert result[0] == [("L1", "L1/L2", "SC")] * 5  # L1:L1/L2, and what is not in the sequence
    assert result[1] == [("SC",)] * 2  # nothing of the sequence: what is shown
    assert result[2] == [small_atlas.names] * 6


def test_the_simulated_person_fills_the_gaps_of_a_stretch(
    small_atlas: Atlas, prepared_case: MakeCase, visible: Visible
) -> None:
    gap = prepared_case("gap", [(2,), (1,)])
    assert visible([gap], "interactive", small_atlas)[0][0] == small_atlas.names


def test_without_an_order_the_simulated_person_lists_what_the_volume_shows(
    prepared_case: MakeCase, visible: Visible
) -> None:
    heart = Atlas("heart", tuple(Structure(n, "part", i) for i, n in enumerate(("LV", "RV", "MYO", "LA"), 1)))
    shown = prepared_case("shown", [(3,), (1,), ()])
    nothing = prepared_case("nothing", [(), ()])
    assert visible([shown, nothing], "interactive", heart) == [[("LV", "MYO")] * 3, [heart.names] * 2]


def test_every_prompt_knows_its_slice_and_the_facts(
    cases: list[PreparedCase], small_atlas: Atlas, speak: PromptGenerator
) -> None:
    for source, scope in (("template", "volume"), ("interactive", "volume"), ("ground_truth", "slice")):
        for index, prompt in enumerate(slice_prompts(cases[1], source, speak, small_atlas)):  # type: ignore[arg-type]
            *_, stated_source, where, number, count, facts = json.loads(prompt.holistic)
            assert (stated_source, where, number, count, facts) == (source, scope, index, 2, {"sequence": "T1"})
            assert prompt.visibility.source == source


def test_text_features_are_the_rows_of_the_table(
    cases: list[PreparedCase], small_atlas: Atlas, text_of: TextOf, speak: PromptGenerator
) -> None:
    text = text_of(cases, small_atlas)
    slices = [(case, index) for case in cases for index in range(case.slice_count)]
    numbers, sources = [7, 0, 12, 1, 7], ["template", "ground_truth", "interactive", "ground_truth", "interactive"]
    features = text.features(numbers, sources)  # type: ignore[arg-type]
    assert features.classwise is not None
    for row, (number, source) in enumerate(zip(numbers, sources, strict=True)):
        case, index = slices[number]
        prompt = slice_prompts(case, source, speak, small_atlas)[index]  # type: ignore[arg-type]
        holistic = text.table.texts.index(prompt.holistic)
        assert torch.equal(features.tokens[row], text.table.tokens[holistic].float())
        assert torch.equal(features.mask[row], text.table.mask[holistic])
        for position, sentence in enumerate(prompt.classwise):
            assert torch.equal(
                features.classwise[row, position], text.table.pooled[text.table.texts.index(sentence)].float()
            )
        assert features.present[row].tolist() == [name in prompt.visibility.visible for name in small_atlas.names]
    assert (features.tokens.dtype, features.mask.dtype, features.present.dtype) == (
        torch.float32,
        torch.bool,
        torch.bool,
    )


class Letters:
    """Every character is a token of one feature."""

    feature_size, max_tokens, fingerprint = 1, 10_000, "letters"

    def __init__(self) -> None:
        self.read: list[str] = []

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        self.read += texts
        rows = [torch.tensor([[float(ord(letter))] for letter in text]) for text in texts]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return tokens, torch.arange(tokens.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]


def test_each_text_is_encoded_once_and_each_source_has_its_own_row(
    cases: list[PreparedCase], small_atlas: Atlas, speak: PromptGenerator, tmp_path: Path
) -> None:
    encoder = Letters()
    needed = [(cases[0], {"template", "ground_truth"}), (cases[2], {"ground_truth"})]
    text = build_text(needed, speak, encoder, small_atlas, generator_name="speak", cache=tmp_path)  # type: ignore[arg-type]
    assert sorted(encoder.read) == sorted(text.table.texts)
    assert set(text.prompts["a"]) == {"template", "ground_truth"}
    assert set(text.prompts["ccc"]) == {"ground_truth"}
    lines = [(row.source, row.view, row.structure, row.text) for row in text.rows]
    assert len(set(lines)) == len(lines)
    assert {row.text for row in text.rows} == set(text.table.texts)
    assert all(row.tokens == len(row.text) for row in text.rows)


def test_the_length_is_that_of_the_longest_text_on_any_scan(
    cases: list[PreparedCase], small_atlas: Atlas, speak: PromptGenerator, tmp_path: Path
) -> None:
    poor, rich = (
        build_text([(case, {source})], speak, Letters(), small_atlas, generator_name="speak", cache=tmp_path)  # type: ignore[arg-type]
        for case, source in ((cases[1], "ground_truth"), (cases[2], "interactive"))
    )
    longest = max(len(row.text) for row in poor.rows)
    assert poor.table.tokens.shape[1] > longest
    assert abs(poor.table.tokens.shape[1] - rich.table.tokens.shape[1]) <= len("ground_truth")


def test_the_length_does_not_change_with_the_prompts_of_an_evaluation(prepared_case: MakeCase, tmp_path: Path) -> None:
    """Also where the fewer structures a slice shows, the longer its text."""
    heart = Atlas("heart", tuple(Structure(n, "part", i) for i, n in enumerate(("LV", "RV", "MYO"), 1)))
    case = prepared_case("shown", [(3,), (1,), ()])

    def speak(visibility: Visibility) -> Prompts:
        gone = [name for name in heart.names if name not in visibility.visible]
        return Prompts(f"a heart without {gone}", ("",) * 3)

    asked: tuple[set[Source], ...] = ({"template"}, {"template", "interactive"}, {"template", "ground_truth"})
    lengths = {
        build_text(
            [(case, sources)], speak, Letters(), heart, generator_name="speak", cache=tmp_path
        ).table.tokens.shape[1]
        for sources in asked
    }
    assert lengths == {len("a heart without ['LV', 'RV', 'MYO']")}


def test_a_template_may_keep_silent_about_the_place_of_a_slice(
    cases: list[PreparedCase], small_atlas: Atlas, speak: PromptGenerator
) -> None:
    knowledge = Knowledge(template_position=False)
    prompts = slice_prompts(cases[0], "template", speak, small_atlas, knowledge)
    assert len(prompts) == 5
    assert {(prompt.visibility.slice_index, prompt.visibility.slice_count) for prompt in prompts} == {(None, None)}
    assert len({prompt.holistic for prompt in prompts}) == 1
    others = slice_prompts(cases[0], "ground_truth", speak, small_atlas, knowledge)
    assert [prompt.visibility.slice_index for prompt in others] == list(range(5))


def test_the_simulated_person_miscounts_as_often_as_the_recipe_says(prepared_case: MakeCase) -> None:
    names = tuple(f"L{i}" for i in range(1, 8))
    atlas = Atlas("row", tuple(Structure(name, "vertebra", i) for i, name in enumerate(names, 1)), names)
    speak = SequencePrompts(atlas)
    many = [prepared_case(f"case{number}", [(3, 4, 5)]) for number in range(200)]

    def said(error: float, seed: int = 1) -> list[tuple[str, ...]]:
        knowledge = Knowledge(interactive_error=error, seed=seed)
        return [slice_prompts(c, "interactive", speak, atlas, knowledge)[0].visibility.visible for c in many]

    right, up, down = ("L3", "L4", "L5"), ("L2", "L3", "L4"), ("L4", "L5", "L6")
    assert set(said(0.0)) == {right}
    assert set(said(1.0)) == {up, down}
    third = said(0.3)
    assert 40 <= sum(visible != right for visible in third) <= 80  # binomial(200, 0.3) to three deviations
    assert 10 <= third.count(up) <= 50
    assert said(0.3) == third != said(0.3, seed=2)
    upper = [prepared_case(f"upper{number}", [(1, 2)]) for number in range(20)]
    knowledge = Knowledge(interactive_error=1.0)
    visible = {slice_prompts(c, "interactive", speak, atlas, knowledge)[0].visibility.visible for c in upper}
    assert visible == {("L2", "L3")}  # nothing is above L1, so that the error goes down
    everything = replace(upper[0], present=(tuple(range(1, 8)),))
    assert slice_prompts(everything, "interactive", speak, atlas, knowledge)[0].visibility.visible == names
    named = Knowledge(interactive_error=1.0, named={"case0": "L1:L2"})
    assert slice_prompts(many[0], "interactive", speak, atlas, named)[0].visibility.visible == ("L1", "L2")


def test_a_table_for_predicted_prompts_can_say_whatever_a_first_pass_finds(
    cases: list[PreparedCase], small_atlas: Atlas, speak: PromptGenerator, tmp_path: Path
) -> None:
    needed = [(case, {"predicted", "template"}) for case in cases]
    text = build_text(needed, speak, Letters(), small_atlas, generator_name="speak", cache=tmp_path)  # type: ignore[arg-type]
    assert {row.source for row in text.rows} == {"predicted", "template"}
    for case in cases:
        for visibility in predicted_visibilities(small_atlas, case.case.facts):
            features = text.stating(case, visibility).features([case.slice_count - 1], ["predicted"])
            wanted = speak(visibility.at(case.slice_count - 1, case.slice_count)).holistic
            assert "".join(chr(int(letter)) for letter in features.tokens[0, features.mask[0], 0]) == wanted
            assert features.present[0].tolist() == [name in visibility.visible for name in small_atlas.names]
    with pytest.raises(PromptError, match="is not among the"):
        text.stating(cases[0], Visibility(("L1",), "predicted", "volume"))  # without the canal no stretch says it


def test_facts_count_towards_the_longest_text(prepared_case: MakeCase, small_atlas: Atlas, tmp_path: Path) -> None:
    generator = SequencePrompts(small_atlas, facts=("sequence",))
    case = prepared_case("a", [(1,)], "T2 SPACE")
    text = build_text([(case, {"template"})], generator, Letters(), small_atlas, generator_name="g", cache=tmp_path)
    everything = template_visibility(small_atlas, {"sequence": "T2 SPACE"})
    longest = max(len(generator(everything.at(index, 3)).holistic) for index in range(3))
    assert text.table.tokens.shape[1] == longest
