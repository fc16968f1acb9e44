from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from textseg.contracts import Atlas, Task
from textseg.data.slices import Slices
from textseg.errors import DataError, PluginError, PromptError, RecipeError
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_recipe
from textseg.recipe.schema import NamedComponent, Recipe, TransformSpec
from textseg.registry.component import Component
from textseg.registry.discovery import Registry
from textseg.runs import experiment as module
from textseg.runs.experiment import Experiment, build, build_augmentation, build_schedule, build_segmenter
from textseg.text.slice_text import AVAILABLE
from textseg.training.record import bound, causes_of_changes
from textseg_atmnet.atpg_lumbar import ATPGLumbar
from textseg_atmnet.hasf import HASF

ONLY_TRUTH = ("prompts.training={ground_truth: 1.0}",)
WITHOUT_TEXT = ("prompts=null", "auxiliary_losses=[]", "model={network: {use: plain}}")

pytestmark = pytest.mark.usefixtures("stranger")


@pytest.fixture(scope="module")
def experiment(tiny_recipe: Path, stranger: None) -> Experiment:
    return build(load_recipe(tiny_recipe), also=["interactive"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (WITHOUT_TEXT[2:], "auxiliary_losses: 'ccae' needs the fused features of a vision encoder and a fusion"),
        (WITHOUT_TEXT[1:], "prompts: model.network 'plain' reads no text, and its results would look as if it did"),
        ((*WITHOUT_TEXT[:2], "model={network: {use: reader}}"), "'reader' reads text, and the recipe has no prompts"),
        (
            ("auxiliary_losses=[{use: ccae, weight: 1.0}, {use: ccae, weight: 0.5}]",),
            "auxiliary_losses: ccae is listed more than once",
        ),
        (WITHOUT_TEXT[:1], "hasf reads text, and the recipe has no prompts"),
        (
            ("model.fusion.stages=0", "prompts.evaluation=none", "prompts.renumbering={probability: 0.5}"),
            "prompts.renumbering: 'hasf' with these settings reads no text, so it could not know the new names",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused_before_preparation(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], message: str
) -> None:
    def called(*arguments: Any, **named: Any) -> None:
        raise AssertionError("cases were prepared")

    monkeypatch.setattr(module, "prepare", called)
    with pytest.raises(RecipeError, match=message):
        build(load_recipe(tiny_recipe, overrides))


@pytest.mark.parametrize(
    "model",
    [
        "{vision_encoder: {use: huggingface_vision, model: facebook/convnext-tiny-224}, fusion: {use: hasf}}",
        "{network: {use: h_sam, model: facebook/sam-vit-base}}",
    ],
)
def test_weights_that_nobody_fetched_are_named_before_preparation(
    tiny_recipe: Path, model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(module, "prepare", None)  # not reached
    text = ["prompts=null", "auxiliary_losses=[]"] if "network" in model else ["auxiliary_losses=[]"]
    with pytest.raises(RecipeError, match="textseg fetch RECIPE"):
        build(load_recipe(tiny_recipe, [*text, f"model={model}"]))


def test_prompts_of_another_region_are_refused_before_preparation(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*arguments: Any, **named: Any) -> None:
        raise AssertionError("cases were prepared")

    monkeypatch.setattr(module, "prepare", called)
    monkeypatch.setattr(ATPGLumbar, "region", "foot")
    with pytest.raises(
        PromptError, match="'atpg_lumbar' writes about the foot, and atlas 'lumbar_spider' is of the lumbar spine"
    ):
        build(load_recipe(tiny_recipe))


def test_names_without_an_order_cannot_be_moved(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*arguments: Any, **named: Any) -> None:
        raise AssertionError("cases were prepared")

    monkeypatch.setattr(module, "prepare", called)
    monkeypatch.setattr(Atlas, "ordered", False)
    with pytest.raises(RecipeError, match="prompts.renumbering: the structures of atlas 'lumbar_spider' have no order"):
        build(load_recipe(tiny_recipe, ["prompts.renumbering={probability: 0.5}"]))


def test_a_fusion_is_checked_with_the_size_of_the_text_that_it_will_read(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[Task] = []

    def recorded(recipe: Recipe, registry: Registry, task: Task) -> Segmenter:
        tasks.append(task)
        return build_segmenter(recipe, registry, task)

    monkeypatch.setattr(module, "build_segmenter", recorded)
    experiment = build(load_recipe(tiny_recipe, ["prompts.renumbering={probability: 0.5}"]))
    assert [task.text_size for task in tasks] == [experiment.task.text_size]


def test_a_fusion_needs_prompts_unless_it_says_that_it_reads_no_text(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(tiny_recipe, ["prompts=null", "auxiliary_losses=[]", "model.fusion.stages=0"])
    experiment = build(recipe)
    assert experiment.text is None
    assert not experiment.segmenter().uses_text
    monkeypatch.delattr(HASF, "uses_text")
    with pytest.raises(RecipeError, match="prompts: required by vision_encoder and fusion but missing"):
        build(recipe)


def test_a_network_that_only_knows_when_built_is_refused_then(tiny_recipe: Path, experiment: Experiment) -> None:
    recipe = load_recipe(tiny_recipe, [*WITHOUT_TEXT[:2], "model={network: {use: reader}}"])
    with pytest.raises(RecipeError, match="reads text, and the recipe has no prompts"):
        replace(experiment, recipe=recipe, text=None).segmenter()


def test_no_annotated_case(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.installed_registry().build

    def bare(kind: str, name: str, *wired: Any, settings: Any) -> Any:
        built = original(kind, name, *wired, settings=settings)
        if kind == "dataset":
            cases = [replace(case, mask=None) for case in built.cases()]
            monkeypatch.setattr(built, "cases", lambda: cases)
        return built

    monkeypatch.setattr(module.installed_registry(), "build", bare, raising=False)
    with pytest.raises(DataError, match="'lumbar_phantom' has no case with a mask"):
        build(load_recipe(tiny_recipe))


@pytest.mark.parametrize(
    ("attribute", "wrong", "message"),
    [
        (
            "cases",
            lambda cases: lambda: [replace(case, id="one") for case in cases()],
            "more than one case called one;",
        ),
        (
            "label_map",
            lambda label_map: lambda case: {**label_map(case), 77: 20},
            "maps labels of case '.*' to 20, and the classes of atlas '.*' are 0 to 19",
        ),
        (
            "cases",
            lambda cases: lambda: [replace(case, id=f"J\udcfc{case.id}") for case in cases()],
            r"the id 'J\\udcfc.*' of a case is no UTF-8",
        ),
        (
            "label_map",
            lambda label_map: lambda case: {**label_map(case), 1: 2, 2: 1},
            "itself names its value 1 'L5', and the labels of the data set call it 'L4'",
        ),
    ],
)
def test_cases_that_would_spoil_a_run_are_refused_before_preparation(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, attribute: str, wrong: Any, message: str
) -> None:
    original = module.installed_registry().build

    def spoilt(kind: str, name: str, *wired: Any, settings: Any) -> Any:
        built = original(kind, name, *wired, settings=settings)
        if kind == "dataset":
            monkeypatch.setattr(built, attribute, wrong(getattr(built, attribute)))
        return built

    monkeypatch.setattr(module.installed_registry(), "build", spoilt, raising=False)
    monkeypatch.setattr(module, "prepare", lambda *_, **__: pytest.fail("cases were prepared"))
    monkeypatch.setattr("textseg.volumes.label_tables.value_names", lambda path: {1: "L5"})
    with pytest.raises(DataError, match=message):
        build(load_recipe(tiny_recipe))


def test_patients_stand_on_one_side(experiment: Experiment) -> None:
    sides = {part: {case.case.patient for case in cases} for part, cases in experiment.cases.items()}
    assert sides == {part: set(getattr(experiment.split, part)) for part in ("train", "validation", "test")}
    assert len(set.union(*sides.values())) == sum(map(len, sides.values())) == 7
    assert sum(map(len, experiment.cases.values())) == 8


def test_the_task_is_that_of_the_data_and_the_text(experiment: Experiment) -> None:
    task = experiment.task
    assert (task.image_channels, task.image_size, task.class_count, task.text_size) == (1, (48, 40), 20, 16)
    assert experiment.text is not None
    assert task.text_length == experiment.text.table.tokens.shape[1] >= max(experiment.text.table.token_counts)
    assert len(task.fingerprint["native_sizes"]) == len(experiment.cases["train"])
    assert task.fingerprint["native_sizes"][0] == (5, 96, 80)


def test_the_text_is_as_long_as_any_that_can_be_said(experiment: Experiment) -> None:
    """Also where the scans at hand would not say it: T belongs to the model."""
    atlas = experiment.atlas
    everything = f"{atlas.sequence[0]}:{atlas.sequence[-1]}"
    assert experiment.task.text_length is not None
    generator = experiment.registry.build("prompt_generator", "atpg_lumbar", atlas, settings={})
    lengths = [
        len(generator(visibility.at(index, 9)).holistic.split())
        for visibility in atlas.visibilities()
        for index in range(9)
    ]
    assert experiment.task.text_length >= max(lengths), everything


def test_template_prompts_know_nothing_of_the_annotation(experiment: Experiment) -> None:
    assert experiment.text is not None
    texts_by_slice: dict[int, set[tuple[str, ...]]] = {}
    for prepared in experiment.cases["test"]:
        for index, prompt in enumerate(experiment.text.prompts[prepared.case.id]["template"]):
            texts_by_slice.setdefault(index, set()).add((prompt.holistic, *prompt.classwise))
            assert prompt.visibility.visible == experiment.atlas.names
    assert len(experiment.cases["test"]) > 1
    assert {index: len(texts) for index, texts in texts_by_slice.items()} == dict.fromkeys(range(5), 1)
    features = []
    for prepared in experiment.cases["test"]:
        ((_, text),) = experiment.slices(prepared, "template").batches(5)
        assert text is not None
        features.append(text.tokens)
    assert all(torch.equal(features[0], tokens) for tokens in features)


def test_ground_truth_prompts_name_what_the_slice_shows(tiny_recipe: Path, experiment: Experiment) -> None:
    assert experiment.text is not None
    assert experiment.statements is not None
    slices = build(load_recipe(tiny_recipe, ["augmentation.distortion=0", *ONLY_TRUTH])).training_slices()
    assert slices.text is not None
    for number in range(len(slices)):
        packed = slices.pack([slices[1, number]])
        (prepared, index), text = slices.positions[number], slices.unpack(packed).text
        assert text is not None
        shown = [structure.index in prepared.present[index] for structure in experiment.atlas.structures]
        assert text.present[0].tolist() == shown


def test_each_part_has_the_prompts_that_it_needs(experiment: Experiment) -> None:
    assert experiment.text is not None
    needed = {"train": set(), "validation": {"template"}, "test": {"template", "interactive"}}
    for part, cases in experiment.cases.items():
        for prepared in cases:
            assert set(experiment.text.prompts[prepared.case.id]) == needed[part]
    rows = experiment.text.rows
    assert {row.text for row in rows} == set(experiment.text.table.texts)
    assert {row.structure for row in rows if row.view == "holistic"} == {None}
    assert all(row.tokens == len(row.text.split()) for row in rows)


def sources_of(slices: Slices) -> list[str]:
    draws = [slices[epoch, number].draws for epoch in range(3) for number in range(len(slices))]
    return [AVAILABLE[int(draw.source[0])] for draw in draws if draw is not None]


def test_training_slices_are_distorted_and_mix_sources_and_others_are_not(experiment: Experiment) -> None:
    slices = experiment.training_slices()
    assert len(slices) == sum(case.slice_count for case in experiment.cases["train"])
    assert set(sources_of(slices)) == {"ground_truth", "template"}
    prepared = experiment.cases["test"][0]
    ((image, _),) = experiment.slices(prepared, "interactive").batches(5)
    np.testing.assert_array_equal(image.numpy(), np.asarray(prepared.image, np.float32))
    assert any(not torch.equal(slices[0, n].image, slices[1, n].image) for n in range(len(slices)))


def test_a_mixture_with_a_person_who_miscounts(tiny_recipe: Path, experiment: Experiment) -> None:
    mixture = ["prompts.training={interactive: 0.7, template: 0.3}", "prompts.interactive_error=1.0"]
    built = build(load_recipe(tiny_recipe, mixture))
    assert built.text is not None
    slices = built.training_slices()
    drawn = sources_of(slices)
    assert set(drawn) == {"interactive", "template"}
    assert drawn.count("interactive") > drawn.count("template")
    assert built.statements is not None
    assert set(built.statements.errors) <= {-1, 1}  # always miscounted; see tests/text/test_drawn_text.py


def test_reports_come_with_the_cases(tiny_recipe: Path, experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    shown = experiment.cases["train"][0]
    sentence = "The patient fell from a ladder " + "and fell again " * 40
    path.write_text(json.dumps({"case": shown.case.id, "findings": sentence}))
    report = f"prompts.report={{file: {path}, sentences: findings}}"
    spoken = build(load_recipe(tiny_recipe, [report, "prompts.training={template: 0.5, report: 0.5}"]))
    assert spoken.task.text_length == len(sentence.split()) > (experiment.task.text_length or 0)
    assert spoken.report_counts["train"] == [1, len(experiment.cases["train"])]
    assert spoken.text is not None
    assert {row.source for row in spoken.text.rows if row.text == " ".join(sentence.split())} == {"report"}
    assert spoken.hashes()["prompts"] != experiment.hashes()["prompts"]
    recorded, text = bound(spoken)["reports"], f"{sentence} again"
    path.write_text(json.dumps({"case": shown.case.id, "findings": text}))
    edited = build(load_recipe(tiny_recipe, [report, "prompts.training={template: 0.5, report: 0.5}"]))
    assert bound(edited)["reports"] != recorded
    assert causes_of_changes({}, edited)["reports"] == [f"prompts.report: the words of cases changed in '{path}'"]
    path.write_text(json.dumps({"case": experiment.cases["test"][0].case.id, "findings": sentence}))
    with pytest.raises(RecipeError, match="no training case has a report"):
        build(load_recipe(tiny_recipe, [report, "prompts.training={template: 0.5, report: 0.5}"]))


def test_the_record_of_the_task_has_the_facts_that_texts_stated(tiny_recipe: Path, experiment: Experiment) -> None:
    assert experiment.record.facts == ()
    stating = build(load_recipe(tiny_recipe, ["prompts.generator.facts=[sequence]"]))
    assert sorted(known["sequence"] for known in stating.record.facts) == ["T1", "T2", "T2 SPACE"]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("training={report: 1.0}", "'training' names the source report, and there is no key 'report'"),
        ("evaluation=report", "'evaluation' names the source report, and there is no key 'report'"),
        ("report={file: a.csv}", "name a column: 'visible', 'facts' or 'sentences'"),
        ("report={visible: a, sentences: b}", "'sentences' are the whole text of a slice"),
    ],
)
def test_mistakes_in_the_section_on_reports(tiny_recipe: Path, prompts: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(tiny_recipe, [f"prompts.{prompts}"])


def test_only_texts_that_name_the_picture_are_renumbered(tiny_recipe: Path) -> None:
    spoken = ["prompts.renumbering={probability: 0.5}", "prompts.training={template: 0.5, report: 0.5}"]
    load_recipe(tiny_recipe, [*spoken, "prompts.report={visible: levels}"])
    with pytest.raises(RecipeError, match="no text of 'training' names what its picture shows"):
        load_recipe(tiny_recipe, [*spoken, "prompts.report={sentences: findings}"])
    with pytest.raises(RecipeError, match="'training' has none, so no effect of theirs is known"):
        load_recipe(tiny_recipe, ["prompts.report={sentences: findings}", "prompts.evaluation=report"])


def test_structures_in_training(experiment: Experiment) -> None:
    shown = np.unique(np.concatenate([np.unique(case.mask) for case in experiment.cases["train"]]))
    assert experiment.structures_in_training == [experiment.atlas.names[index - 1] for index in shown if index]


def test_hashes_change_with_what_they_are_of(tiny_recipe: Path, experiment: Experiment) -> None:
    first = experiment.hashes()
    again = build(load_recipe(tiny_recipe), also=["interactive"]).hashes()
    assert again == first
    changed = build(load_recipe(tiny_recipe, ["split.seed=1", "prompts.generator.granularity=2"])).hashes()
    assert changed["preparation"] == first["preparation"]
    assert changed["data"] == first["data"]
    assert changed["split"] != first["split"]
    assert changed["prompts"] != first["prompts"]
    repeat = build(load_recipe(tiny_recipe, ["seed=1"]), also=["interactive"]).hashes()
    assert repeat == first  # runs with several seeds can be compared
    prepared = build(load_recipe(tiny_recipe, ["preparation.size=[40, 40]"])).hashes()
    assert prepared["split"] == first["split"]
    assert prepared["preparation"] != first["preparation"]
    assert prepared["data"] != first["data"]


def test_fresh_weights_follow_the_seed(experiment: Experiment) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return list(experiment.segmenter().parameters())

    assert all(torch.equal(a, b) for a, b in zip(weights(1), weights(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(1), weights(2), strict=True))


def test_components_of_the_recipe(experiment: Experiment) -> None:
    assert [f"{component.kind} {component.name}" for component in experiment.components] == [
        "dataset lumbar_phantom",
        "prompt_generator atpg_lumbar",
        "text_encoder hashed_words",
        "vision_encoder residual_convolutions",
        "fusion hasf",
        *("segmentation_loss dice", "segmentation_loss focal", "auxiliary_loss ccae"),
        *("optimizer adamw", "schedule cosine"),
        *("metric dsc", "metric jaccard", "metric hd95", "metric asd"),
    ]


def test_a_stratified_split_knows_sequences_and_visible_levels(tiny_recipe: Path) -> None:
    stratified = build(load_recipe(tiny_recipe, ["split.stratify=true"]))
    prepared = [case for cases in stratified.cases.values() for case in cases]
    strata = module._strata(prepared, stratified.atlas)
    assert set(strata) == {case.case.patient for case in prepared}
    for case in prepared:
        shown = {stratified.atlas.names[index - 1] for plane in case.present for index in plane}
        row = [name for name in stratified.atlas.sequence if name in shown]
        assert strata[case.case.patient].split()[-2:] == [row[0], row[-1]]


def test_every_mask_is_prepared_once_for_a_stratified_split(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, asked = module.prepare, []

    def counting(cases: Any, *arguments: Any, **named: Any) -> Any:
        asked.append(len(cases))
        return original(cases, *arguments, **named)

    monkeypatch.setattr(module, "prepare", counting)
    stratified = build(load_recipe(tiny_recipe, ["split.stratify=true"]))
    assert asked == [sum(map(len, stratified.cases.values()))]


def test_cases_that_are_left_out_are_nowhere(tiny_recipe: Path, experiment: Experiment) -> None:
    ids = [case.case.id for cases in experiment.cases.values() for case in cases]
    without = build(load_recipe(tiny_recipe, [f"leave_out=[{experiment.cases['train'][0].case.id}]"]))
    kept = [case.case.id for cases in without.cases.values() for case in cases]
    assert sorted([*kept, experiment.cases["train"][0].case.id]) == sorted(ids)
    with pytest.raises(DataError, match="leave_out: there is no case 'nobody'"):
        build(load_recipe(tiny_recipe, ["leave_out=[nobody]"]))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: 1 / 0, r"failed at step 3: ZeroDivisionError: division by zero \(.*test_experiment.py, line \d+\)"),
        (lambda: -1e-3, "expected a finite number of at least 0 as the learning rate, seen -0.001 at step 3"),
        (lambda: math.nan, "seen nan at step 3"),
        (lambda: None, "seen None at step 3"),
    ],
)
def test_a_schedule_that_fails_late_is_named(tiny_recipe: Path, answer: Callable[[], Any], message: str) -> None:
    def late(learning_rate: float, steps: int) -> Callable[[int], Any]:
        return lambda step: 1 if step < 3 else answer()

    schedule = Component("schedule", "late", late, "own", "textseg-own", "0.1")
    recipe = load_recipe(tiny_recipe)
    recipe = recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"schedule": NamedComponent(use="late")})}
    )
    rates = build_schedule(recipe, Registry([], [schedule]), 10)
    assert rates(2) == 1.0
    assert isinstance(rates(2), float)
    with pytest.raises(PluginError, match=r"^schedule 'late' of plug-in 'own' \(textseg-own 0.1\) .*" + message):
        rates(3)


def test_an_augmentation_says_if_it_is_geometric(tiny_recipe: Path) -> None:
    class Silent:
        def __call__(self, image: Any, mask: Any, generator: Any) -> Any:
            return image, mask

    silent = Component("augmentation", "silent", Silent, "own", "textseg-own", "0.1")
    recipe = load_recipe(tiny_recipe).model_copy(update={"augmentation": (TransformSpec(use="silent"),)})
    with pytest.raises(PluginError, match="'silent' of .* an attribute `geometric` that is True or False, seen None"):
        build_augmentation(recipe, Registry([], [silent]))
