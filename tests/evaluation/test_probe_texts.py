from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from textseg.evaluation.probe_texts import CONDITIONS, Subject, probe_subject, used_conditions
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import Experiment, build
from textseg.text.reports import Report
from textseg.text.slice_text import slice_prompts

pytestmark = pytest.mark.usefixtures("stranger")


@pytest.fixture(scope="module")
def experiment(finished_run: Path) -> Experiment:
    return build(load_recipe(finished_run / "recipe.yaml"), also=["interactive", "ground_truth"])


@pytest.fixture
def tested(experiment: Experiment) -> Subject:
    assert experiment.text is not None
    prepared, generator, atlas = experiment.cases["test"][0], experiment.text.generator, experiment.atlas
    prompts = {
        source: slice_prompts(prepared, source, generator, atlas)  # type: ignore[arg-type]
        for source in ("template", "interactive", "ground_truth")
    }
    return Subject(prepared, prompts, prompts["template"], experiment, random.Random(1))  # type: ignore[arg-type]


def shown(experiment: Experiment, tested: Subject) -> set[str]:
    return {experiment.atlas.names[index - 1] for plane in tested.prepared.present for index in plane}


def test_claimed_and_denied_differ_from_the_truth_in_one_structure(experiment: Experiment, tested: Subject) -> None:
    writers = {item.name: item.write_prompts for item in CONDITIONS}
    truth = shown(experiment, tested)
    for name, more in (("claimed", 1), ("denied", -1)):
        condition = writers[name]
        assert condition is not None
        prompts = condition(tested)
        statements = {frozenset(prompt.visibility.visible) for prompt in prompts}
        assert len(statements) == 1
        visible = set(statements.pop())
        assert len(visible ^ truth) == 1
        assert len(visible) == len(truth) + more
        changed = (visible ^ truth).pop()
        sentence = prompts[0].classwise[experiment.atlas[changed].index - 1]
        assert sentence.startswith("It contains" if name == "claimed" else "It does not contain")


def test_reports_are_a_condition_of_recipes_that_have_any(experiment: Experiment, tested: Subject) -> None:
    assert "report" not in {condition.name for condition in used_conditions(experiment)}
    assert experiment.text is not None
    reports = {tested.prepared.case.id: Report(("L4", "L5"), {}, "")}
    text = replace(experiment.text, knowledge=replace(experiment.text.knowledge, reports=reports))
    reported = replace(experiment, reports=reports, text=text)
    (condition,) = (item for item in used_conditions(reported) if item.name == "report")
    assert condition.label == "report (report)"
    assert condition.write_prompts is not None
    prompts = condition.write_prompts(replace(tested, experiment=reported))
    assert prompts is not None
    assert {prompt.visibility.visible for prompt in prompts} == {("L4", "L5")}
    assert condition.write_prompts(replace(tested, experiment=replace(reported, reports={}))) is None


def test_shuffled_and_nonsense_keep_the_length_and_lose_the_meaning(tested: Subject) -> None:
    writers = {item.name: item.write_prompts for item in CONDITIONS}
    template = tested.prompts["template"]
    shuffled, nonsense, empty, paraphrased = (writers[n] for n in ("shuffled", "nonsense", "empty", "paraphrased"))
    assert shuffled
    assert nonsense
    assert empty
    assert paraphrased
    for prompts in (shuffled(tested), nonsense(tested), empty(tested), paraphrased(tested)):
        assert [prompt.visibility for prompt in prompts] == [prompt.visibility for prompt in template]
    assert sorted(shuffled(tested)[0].holistic.split()) == sorted(template[0].holistic.split())
    assert shuffled(tested)[0].holistic != template[0].holistic
    words = nonsense(tested)[0].holistic.split()
    assert len(words) == len(template[0].holistic.split())
    assert not set(words) & set(template[0].holistic.split())
    assert {prompt.holistic for prompt in empty(tested)} == {"."}
    assert all(name in paraphrased(tested)[0].holistic for name in template[0].visibility.visible)


def test_other_words_for_an_uncounted_template_name_no_visible_structure(tested: Subject) -> None:
    (write,) = (item.write_prompts for item in CONDITIONS if item.name == "paraphrased")
    assert write
    template = [
        replace(prompt, visibility=replace(prompt.visibility, counted=False)) for prompt in tested.prompts["template"]
    ]
    prompts = write(replace(tested, prompts={**tested.prompts, "template": template}))
    sentence = "In this picture nobody has said which structures one can make out."
    assert {prompt.holistic for prompt in prompts} == {sentence}
    assert all(text.startswith("Nobody has checked for ") for prompt in prompts for text in prompt.classwise)


def test_a_moved_list_is_one_level_off_or_left_out(experiment: Experiment) -> None:
    writers = {item.name: item.write_prompts for item in CONDITIONS}
    ends: dict[str, list[tuple[str, str] | None]] = {"interactive": [], "one_level_up": [], "one_level_down": []}
    for number in range(len(experiment.cases["test"])):
        subject = probe_subject(experiment, number)
        for name, stated in ends.items():
            write = writers[name]
            assert write is not None
            prompts = write(subject)
            visible = prompts[0].visibility.visible if prompts else ()
            stretch = [structure for structure in experiment.atlas.sequence if structure in visible]
            stated.append((stretch[0], stretch[-1]) if stretch else None)
    assert ends == {
        "interactive": [("T9", "L5/S"), ("T9", "L5/S"), ("T11", "L5/S")],
        "one_level_up": [None, None, ("T10", "L4/L5")],
        "one_level_down": [None, None, None],
    }
