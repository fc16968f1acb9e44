"""From a recipe to data, text, model and losses: the only wiring."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from textseg.contracts import Atlas, AuxiliaryLoss, Case, Dataset, Source, Task, Visibility
from textseg.data.augmentation import Augmentation
from textseg.data.preparation import LISTED, PreparedCase, prepare
from textseg.data.slices import Slices, SliceStack
from textseg.data.splits import PARTS, Split, make_split
from textseg.errors import DataError, RecipeError, suggestion
from textseg.hookspecs import Run
from textseg.models.losses import SegmentationLoss
from textseg.models.segmenter import Segmenter, TextGuidedNetwork
from textseg.recipe.loading import Recipe, required_components
from textseg.registry.discovery import Component, Registry, installed_registry
from textseg.runs.task_record import TaskRecord
from textseg.system.files import cache_folder, content_hash
from textseg.text.slice_text import Knowledge, Text, build_text
from textseg.text.visibility import read_statements

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Experiment:
    """A recipe with its data in place."""

    recipe: Recipe
    registry: Registry
    dataset: Dataset
    split: Split
    cases: Mapping[str, Sequence[PreparedCase]]  # by part of the split
    text: Text | None
    task: Task

    @property
    def atlas(self) -> Atlas:
        return self.dataset.atlas

    @property
    def evaluation_source(self) -> Source | None:
        """What prompts know at test time; None without text."""
        return self.recipe.prompts.evaluation if self.recipe.prompts else None

    @property
    def structures_in_training(self) -> list[str]:
        """Structures that some training slice shows, in class order."""
        shown = {index for case in self.cases["train"] for plane in case.present for index in plane}
        return [structure.name for structure in self.atlas.structures if structure.index in shown]

    @property
    def record(self) -> TaskRecord:
        """What of the experiment a trained model needs where the data are not."""
        parts = {"validation": "validation", "train": "training"}
        seen = {case.image_hash: f"{parts[part]} case {case.case.id}" for part in parts for case in self.cases[part]}
        return TaskRecord(self.task, seen)

    @property
    def components(self) -> list[Component]:
        return [self.registry.component(kind, spec.use) for kind, spec in required_components(self.recipe)]

    def run(self, folder: Path, record: Mapping[str, Any]) -> Run:
        """The run of this experiment in a folder, as hooks see it."""
        return Run(folder, self.recipe.model_dump(mode="json"), record)

    def training_slices(self) -> Slices:
        """Return the training slices with the prompt sources of the recipe, distorted unless the device does that."""
        recipe, cases, mixture = self.recipe, self.cases["train"], _mixture(self.recipe)
        by_workers = recipe.augmentation.on == "workers"
        augmentation = Augmentation(recipe.augmentation, recipe.seed) if by_workers else None
        text = self.text.of(cases, mixture) if self.text else None
        return Slices(cases, text, mixture, augmentation, recipe.seed)

    def slices(self, prepared: PreparedCase, source: Source | None) -> SliceStack:
        """Return the slices of one case without distortion, with the prompts of one source."""
        return SliceStack(prepared.image, self.text.of([prepared], [source]) if source and self.text else None)

    def slices_stating(self, prepared: PreparedCase, visibility: Visibility) -> SliceStack:
        """Return the slices of one case without distortion, with prompts that say `visibility`."""
        assert self.text is not None
        return SliceStack(prepared.image, self.text.stating(prepared, visibility))

    def segmenter(self) -> Segmenter:
        """The model, with fresh weights."""
        return build_segmenter(self.recipe, self.registry, self.task)

    def segmentation_loss(self) -> SegmentationLoss:
        return SegmentationLoss(**self.recipe.segmentation_loss.model_dump())

    def auxiliary_losses(self, segmenter: Segmenter) -> nn.ModuleDict:
        """The auxiliary losses by name, in the order of the recipe."""
        losses: dict[str, AuxiliaryLoss] = {}
        for spec in self.recipe.auxiliary_losses:
            features = segmenter.fused_features
            if features is None:
                raise RecipeError(_NO_FEATURES.format(spec.use))
            losses[spec.use] = self.registry.build(
                "auxiliary_loss", spec.use, self.task, features, settings=spec.settings
            )
        return nn.ModuleDict(cast(Mapping[str, nn.Module], losses))

    def hashes(self) -> dict[str, str | None]:
        """What makes two runs comparable, and a run resumable."""
        keys = sorted(case.key for part in PARTS for case in self.cases[part])
        return {
            "data": content_hash(keys),
            "split": self.split.hash,
            "preparation": content_hash(self.recipe.preparation.model_dump(mode="json")),
            "prompts": self.text.table.fingerprint if self.text else None,
        }


def build_segmenter(recipe: Recipe, registry: Registry, task: Task) -> Segmenter:
    """The model of a recipe, with fresh weights, for a task whose data need not be at hand."""
    model, build = recipe.model, registry.build
    if model.network is not None:
        network = build("network", model.network.use, task, settings=model.network.settings)
        _check_text(recipe, uses_text=network.uses_text)
        return Segmenter(network)
    assert model.vision_encoder is not None
    assert model.fusion is not None  # the schema asks for both or neither
    encoder = build("vision_encoder", model.vision_encoder.use, task, settings=model.vision_encoder.settings)
    fusion = build("fusion", model.fusion.use, task, encoder.features, settings=model.fusion.settings)
    return Segmenter(TextGuidedNetwork(task, encoder, fusion))


def build(
    recipe: Recipe,
    *,
    also: Sequence[Source] = (),
    named: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Experiment:
    """Find, prepare and split the cases; write and encode the prompts of every source that the run needs.

    Args:
        recipe: checked.
        also: prompt sources beyond those of the recipe.
        named: what a person says is visible in the test cases, for `interactive` prompts: see `read_statements`;
            without it the person is simulated.
        progress: told how many cases of how many are prepared.

    Raises a TextsegError, before anything is prepared where that is possible, for a recipe whose parts don't go
    together, and for data that are missing or damaged.
    """
    registry, cache = installed_registry(), cache_folder()
    _check_parts(recipe, registry)
    dataset = registry.build("dataset", recipe.dataset.use, settings=recipe.dataset.settings)
    cases = [case for case in _kept(dataset, recipe.leave_out) if case.mask_path is not None]
    if not cases:
        raise DataError(f"dataset: '{recipe.dataset.use}' has no case with a mask: nothing to train or test on.")
    _check_cases(recipe.dataset.use, dataset, cases)
    store, strata = functools.partial(prepare, plane=dataset.atlas.plane, progress=progress), None
    if recipe.split.stratify:  # by what the masks show, so all of them first
        everything = store(cases, dataset.label_map, recipe.preparation, cache)
        strata = _strata(everything, dataset.atlas)
    split = make_split(recipe.split, (case.patient for case in cases), dataset.official_split(), strata)
    used = {patient: part for part in PARTS for patient in getattr(split, part)}
    prepared = (
        [case for case in everything if case.case.patient in used]
        if recipe.split.stratify
        else store([case for case in cases if case.patient in used], dataset.label_map, recipe.preparation, cache)
    )
    by_part = {part: [case for case in prepared if used[case.case.patient] == part] for part in PARTS}
    text = _text(recipe, registry, dataset.atlas, by_part, also, named)
    task = Task(
        image_channels=1,
        image_size=recipe.preparation.size,
        class_count=dataset.atlas.class_count,
        atlas=dataset.atlas,
        text_size=text.table.tokens.shape[2] if text else None,
        text_length=text.table.tokens.shape[1] if text else None,
        fingerprint=_fingerprint(by_part["train"]),
    )
    return Experiment(recipe, registry, dataset, split, by_part, text, task)


def _kept(dataset: Dataset, left_out: Sequence[str]) -> list[Case]:
    cases = dataset.cases()
    if unknown := [case_id for case_id in left_out if case_id not in {case.id for case in cases}]:
        raise DataError(f"leave_out: there is no case '{unknown[0]}'.{suggestion(unknown[0], [c.id for c in cases])}")
    return [case for case in cases if case.id not in left_out]


def _strata(cases: Sequence[PreparedCase], atlas: Atlas) -> dict[str, str]:
    """Of each patient: the sequences of its series, the first and the last level of the row that one of them shows."""
    patients: dict[str, list[PreparedCase]] = {}
    for case in cases:
        patients.setdefault(case.case.patient, []).append(case)
    strata = {}
    for patient, series in patients.items():
        shown = {index for case in series for plane in case.present for index in plane}
        row = [name for name in atlas.sequence if atlas[name].index in shown]
        levels = [*row[:1], *row[-1:]] if row else [atlas.names[index - 1] for index in sorted(shown)]
        strata[patient] = " ".join([*sorted({case.case.facts.get("sequence", "") for case in series}), *levels])
    return strata


def _check_cases(name: str, dataset: Dataset, cases: Sequence[Case]) -> None:
    """What would otherwise be found only when the training is over, or by a crash inside it."""
    ids = Counter(case.id for case in cases)
    if twice := [case_id for case_id, count in ids.items() if count > 1]:
        raise DataError(
            f"dataset: '{name}' has more than one case called {', '.join(twice[:LISTED])}; its scores could not be "
            "told apart. Give each series an id of its own."
        )
    classes = dataset.atlas.class_count
    for case in cases:
        if beyond := sorted({index for index in dataset.label_map(case).values() if not 0 <= index < classes}):
            raise DataError(
                f"dataset: '{name}' maps labels of case '{case.id}' to {', '.join(map(str, beyond))}, and the classes "
                f"of atlas '{dataset.atlas.name}' are 0 to {classes - 1}. Correct its label map."
            )


_NO_FEATURES = (
    "auxiliary_losses: '{}' needs the fused features of a vision encoder and a fusion, and model.network gives none. "
    "Remove it, or use another model."
)


def _check_parts(recipe: Recipe, registry: Registry) -> None:
    """What can be known of the parts before hours of preparation."""
    losses = [loss.use for loss in recipe.auxiliary_losses]
    if twice := sorted({name for name in losses if losses.count(name) > 1}):
        raise RecipeError(f"auxiliary_losses: {', '.join(twice)} stands there more than once. Keep one of each.")
    if recipe.model.network is None:
        return
    if losses:
        raise RecipeError(_NO_FEATURES.format(losses[0]))
    uses_text = getattr(registry.component("network", recipe.model.network.use).load(), "uses_text", None)
    if isinstance(uses_text, bool):  # else only the built network knows
        _check_text(recipe, uses_text=uses_text)


def _check_text(recipe: Recipe, *, uses_text: bool) -> None:
    assert recipe.model.network is not None
    name = recipe.model.network.use
    if uses_text and recipe.prompts is None:
        raise RecipeError(f"model.network: '{name}' reads text, and the recipe has no prompts. Add the section.")
    if not uses_text and recipe.prompts is not None:
        raise RecipeError(
            f"prompts: model.network '{name}' reads no text, and its results would look as if it did. Remove the "
            "section, or use another model."
        )


def _text(
    recipe: Recipe,
    registry: Registry,
    atlas: Atlas,
    cases: Mapping[str, Sequence[PreparedCase]],
    also: Sequence[Source],
    named: str | None,
) -> Text | None:
    settings = recipe.prompts
    if settings is None:
        return None
    needed: dict[str, set[Source]] = {
        "train": set(_mixture(recipe)),
        "validation": {settings.evaluation},
        "test": {settings.evaluation, *also},
    }
    for sources in needed.values():
        if "predicted" in sources:  # what a first pass finds, it finds with the template
            sources.add("template")
    return build_text(
        [(prepared, needed[part]) for part in PARTS for prepared in cases[part]],
        registry.build("prompt_generator", settings.generator.use, atlas, settings=settings.generator.settings),
        registry.build("text_encoder", settings.text_encoder.use, settings=settings.text_encoder.settings),
        atlas,
        generator_name=settings.generator.use,
        cache=cache_folder() / "text",
        knowledge=Knowledge(
            template_position=settings.template_position,
            interactive_error=settings.interactive_error,
            seed=recipe.seed,
            named=read_statements(named, [case.case.id for case in cases["test"]]) if named else {},
        ),
    )


def _mixture(recipe: Recipe) -> dict[Source, float]:
    """The prompt sources of training that have a chance at all; none without text."""
    mixture = recipe.prompts.training if recipe.prompts else {}
    return {source: chance for source, chance in mixture.items() if chance}


def _fingerprint(cases: Sequence[PreparedCase]) -> dict[str, Any]:
    """Of the training cases, for networks that plan themselves and for the check of unlike volumes."""
    return {
        "native_sizes": [(case.slice_count, *case.slice_geometry.native_size) for case in cases],
        "native_spacings_mm": [case.native_spacing_mm for case in cases],
        "spacings_mm": [case.spacing_mm for case in cases],
        "intensities": [case.intensities for case in cases],
    }
