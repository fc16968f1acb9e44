from __future__ import annotations

import inspect
from typing import Literal

import pytest

from textseg.contracts import Atlas, Structure
from textseg.text.prompts import SequencePrompts
from textseg.text.reading import interactive_visibility
from textseg.text.visibility import template_visibility
from textseg_atmnet.atpg_lumbar import ATPGLumbar

SEQUENCE = ("T10", "T10/T11", "T11", "T12", "L1", "L5", "L5/S", "S")


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    def family(name: str) -> str:
        if "/" in name:
            return "intervertebral disc"
        return {"L": "lumbar vertebra", "T": "thoracic vertebra"}.get(name[0], "sacrum")

    structures = [Structure(name, family(name), index) for index, name in enumerate(reversed(SEQUENCE), start=1)]
    structures.append(Structure("SC", "spinal canal", len(structures) + 1))
    return Atlas("lumbar", tuple(structures), SEQUENCE)


def test_the_sentence_of_the_paper_with_the_right_families(atlas: Atlas) -> None:
    prompts = ATPGLumbar(atlas)(template_visibility(atlas).at(7, 15))
    assert prompts.holistic == (
        "The sagittal MRI of the lumbar spine demonstrates the anatomy in the true mid-sagittal plane, which, from "
        "superior to inferior, encompasses thoracic vertebra T10, intervertebral disc T10/T11, thoracic vertebra T11, "
        "thoracic vertebra T12, lumbar vertebra L1, lumbar vertebra L5, intervertebral disc L5/S, sacrum S and spinal "
        "canal SC."
    )
    assert prompts.classwise[3] == "It contains lumbar vertebra L1."


def test_the_wording_of_the_paper_swaps_the_families(atlas: Atlas) -> None:
    visibility = interactive_visibility(atlas, "T10:L1").at(7, 15)
    prompts = ATPGLumbar(atlas, wording="paper")(visibility)
    assert prompts.holistic == (
        "The sagittal MRI of the lumbar spine demonstrates the anatomy in the true mid-sagittal plane, which, from "
        "superior to inferior, encompasses lumbar vertebra T10, intervertebral disc T10/T11, lumbar vertebra T11, "
        "lumbar vertebra T12, thoracic vertebra L1 and spinal canal SC."
    )
    assert prompts.classwise[3] == "It contains thoracic vertebra L1."
    assert prompts.classwise[2] == "It does not contain thoracic vertebra L5."
    assert ATPGLumbar(atlas)(visibility) != prompts


@pytest.mark.parametrize(
    ("granularity", "holistic"),
    [
        (1, "The sagittal MRI of the lumbar spine."),
        (2, "The sagittal MRI of the lumbar spine demonstrates lumbar vertebra L5 and intervertebral disc L5/S."),
        (
            3,
            (
                "The sagittal MRI of the lumbar spine demonstrates the anatomy in the right third of the slices, "
                "which, from superior to inferior, encompasses lumbar vertebra L5 and intervertebral disc L5/S."
            ),
        ),
    ],
)
def test_granularity(atlas: Atlas, granularity: Literal[1, 2, 3], holistic: str) -> None:
    visibility = interactive_visibility(atlas, ["L5/S", "L5"]).at(14, 15)
    assert ATPGLumbar(atlas, granularity=granularity)(visibility).holistic == holistic


def test_every_visibility_of_the_atlas_gives_a_text_of_its_own(atlas: Atlas) -> None:
    visibilities = {visibility.visible: visibility for visibility in atlas.visibilities()}
    assert len({ATPGLumbar(atlas)(visibility) for visibility in visibilities.values()}) == len(visibilities)


def test_settings_are_those_of_every_sequence() -> None:
    ours, theirs = (inspect.signature(builder, eval_str=True) for builder in (ATPGLumbar, SequencePrompts))
    assert ours.parameters == theirs.parameters
    assert ours.parameters["granularity"].annotation == Literal[1, 2, 3]
