from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from textseg.contracts import Atlas, Prompts, Structure, Visibility
from textseg.errors import PromptError
from textseg.text.prompts import RegionPrompts, SequencePrompts, generate, require_region
from textseg.text.reading import interactive_visibility
from textseg.text.visibility import (
    ground_truth_visibility,
    template_visibility,
)


def heart() -> Atlas:
    return Atlas("heart", (Structure("LV", "ventricle", 1), Structure("myocardium", "myocardium", 2)))


def test_granularity_1_names_the_image_only(small_atlas: Atlas) -> None:
    prompts = SequencePrompts(small_atlas, granularity=1)(template_visibility(small_atlas).at(0, 9))
    assert prompts.holistic == "The sagittal MRI of the spine."
    assert prompts.classwise[0] == "It contains lumbar vertebra L2."


def test_granularity_2_lists_from_superior_to_inferior_and_the_canal_last(small_atlas: Atlas) -> None:
    prompts = SequencePrompts(small_atlas, granularity=2)(template_visibility(small_atlas).at(0, 9))
    assert prompts.holistic == (
        "The sagittal MRI of the spine demonstrates lumbar vertebra L1, intervertebral disc L1/L2, lumbar vertebra L2 "
        "and spinal canal SC."
    )


def test_granularity_3_adds_position_and_relation(small_atlas: Atlas) -> None:
    prompts = SequencePrompts(small_atlas)(interactive_visibility(small_atlas, ["L2", "L1"]).at(4, 9))
    assert prompts.holistic == (
        "The sagittal MRI of the spine demonstrates the anatomy in the true mid-sagittal plane, which, from superior "
        "to inferior, encompasses lumbar vertebra L1 and lumbar vertebra L2."
    )
    assert prompts.classwise == (
        "It contains lumbar vertebra L2.",
        "It contains lumbar vertebra L1.",
        "It does not contain intervertebral disc L1/L2.",
        "It does not contain spinal canal SC.",
    )


def test_unknown_position_is_left_out(small_atlas: Atlas) -> None:
    holistic = SequencePrompts(small_atlas)(interactive_visibility(small_atlas, "L1")).holistic
    assert holistic == (
        "The sagittal MRI of the spine demonstrates the anatomy, which, from superior to inferior, encompasses lumbar "
        "vertebra L1."
    )


@pytest.mark.parametrize(
    ("slice_count", "expected"),
    [(1, "m"), (2, "lr"), (3, "lmr"), (4, "lmmr"), (5, "llmrr"), (9, "lllmmmrrr"), (15, "lllllmmmmmrrrrr")],
)
def test_thirds_of_the_stack(small_atlas: Atlas, slice_count: int, expected: str) -> None:
    generator, visibility = SequencePrompts(small_atlas), template_visibility(small_atlas)
    letters = {"left third of the slices": "l", "true mid-sagittal plane": "m", "right third of the slices": "r"}
    thirds = ""
    for slice_index in range(slice_count):
        holistic = generator(visibility.at(slice_index, slice_count)).holistic
        thirds += "".join(letter for third, letter in letters.items() if f"the anatomy in the {third}," in holistic)
    assert thirds == expected


def test_a_slice_that_shows_nothing_says_so(small_atlas: Atlas) -> None:
    empty = ground_truth_visibility(small_atlas, [0]).at(0, 9)
    assert SequencePrompts(small_atlas, granularity=2)(empty).holistic == (
        "The sagittal MRI of the spine demonstrates none of the structures to segment."
    )
    assert SequencePrompts(small_atlas)(empty).holistic == (
        "The sagittal MRI of the spine demonstrates the anatomy in the left third of the slices, which encompasses "
        "none of the structures to segment."
    )


def test_absent_structures_may_be_passed_over_in_silence(small_atlas: Atlas) -> None:
    prompts = SequencePrompts(small_atlas, absence="silent")(interactive_visibility(small_atlas, "L1"))
    assert prompts.classwise == ("", "It contains lumbar vertebra L1.", "", "")


def test_same_visibility_same_text_and_the_source_does_not_show(small_atlas: Atlas) -> None:
    generator = SequencePrompts(small_atlas)
    named = interactive_visibility(small_atlas, "L1:L2", {"sequence": "T2"}).at(2, 9)
    seen = ground_truth_visibility(small_atlas, [4, 1, 3, 2]).at(2, 9)
    first = generator(named)
    generator(template_visibility(small_atlas).at(8, 9))
    assert generator(named) == first == generator(seen)


def test_a_family_of_one_name_is_said_once() -> None:
    atlas = Atlas("neck", (Structure("C1", "vertebra", 1), Structure("spinal cord", "spinal cord", 2)), ("C1",))
    assert SequencePrompts(atlas)(template_visibility(atlas)).classwise == (
        "It contains vertebra C1.",
        "It contains spinal cord.",
    )


def test_atlas_without_order_and_unpublished_wording_are_refused(small_atlas: Atlas) -> None:
    with pytest.raises(PromptError, match="atlas 'heart' has no order"):
        SequencePrompts(heart())
    with pytest.raises(PromptError, match="use wording 'corrected'"):
        SequencePrompts(small_atlas, wording="paper")


def test_unknown_visible_structure_is_refused(small_atlas: Atlas) -> None:
    with pytest.raises(PromptError, match="has no structure 'L9'"):
        SequencePrompts(small_atlas)(Visibility(("L9",), "predicted", "volume"))


class FootPrompts(RegionPrompts):
    image = "sagittal MRI of the foot"


def test_prompts_of_another_region_are_refused(small_atlas: Atlas) -> None:
    lumbar = replace(small_atlas, region="Lumbar spine")
    with pytest.raises(
        PromptError, match="'foot_prompts' writes about the foot, and atlas 'small' is of the Lumbar sp"
    ):
        require_region(FootPrompts(lumbar), lumbar, "foot_prompts")
    require_region(SequencePrompts(lumbar), lumbar, "of the spine")  # a wider region
    require_region(FootPrompts(small_atlas), small_atlas, "an atlas of no region")
    require_region(RegionPrompts(lumbar), lumbar, "a medical image of anything")
    require_region(lambda _: Prompts("A spine.", ("",) * 4), lumbar, "a generator of no region")


def test_generate_checks_what_a_generator_gives(small_atlas: Atlas) -> None:
    visibility = template_visibility(small_atlas)
    generator = SequencePrompts(small_atlas)
    assert generate(generator, small_atlas, visibility) == generator(visibility)
    with pytest.raises(PromptError, match="empty holistic prompt"):
        generate(lambda _: Prompts(" ", ("",) * 4), small_atlas, visibility)
    with pytest.raises(PromptError, match="gave 3 class-wise prompts for atlas 'small'; it must give one for each of"):
        generate(lambda _: Prompts("A spine.", ("",) * 3), small_atlas, visibility)


def test_importing_stays_light() -> None:
    code = (
        "import sys, textseg.text.prompts, textseg.text.visibility, textseg.text.embeddings; "
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_facts_end_the_holistic_prompt_where_they_are_known(small_atlas: Atlas) -> None:
    generator = SequencePrompts(small_atlas, granularity=1, facts=("sequence", "sex", "view"))
    prompts = generator(template_visibility(small_atlas, {"sex": "female", "sequence": "T2", "scanner": "Avanto"}))
    assert prompts.holistic == "The sagittal MRI of the spine. The sequence is T2. The patient is female."
    plain = SequencePrompts(small_atlas, facts=("sex",))(template_visibility(small_atlas))
    assert plain == SequencePrompts(small_atlas)(template_visibility(small_atlas))
