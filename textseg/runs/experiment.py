"""An experiment: data, text, model and losses, built from a recipe. Only this file connects them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from textseg.contracts import (
    IGNORED,
    Atlas,
    AuxiliaryLoss,
    Batch,
    Case,
    Dataset,
    Features,
    Schedule,
    Source,
    Task,
    TextEncoder,
    Visibility,
)
from textseg.data.augmentation import Augmentation, FixedOrder, Transform, TransformList
from textseg.data.preparation import LISTED, PreparedCase, missing_channels, prepare
from textseg.data.slices import Foreground, ShuffledBatches, Slices, SliceStack, training_loader
from textseg.data.splits import PARTS, Split, make_split
from textseg.errors import DataError, RecipeError, suggestion
from textseg.hookspecs import Run
from textseg.metrics.named import NamedMetric, build_metrics
from textseg.models.losses import SegmentationTerms, segmentation_loss
from textseg.models.segmenter import Segmenter, TextGuidedNetwork
from textseg.recipe.loading import load_recipe, required_components, settings_with_training
from textseg.recipe.schema import AugmentationSettings, ComponentSpec, PromptSettings, Recipe
from textseg.registry.component import Component
from textseg.registry.discovery import LocalCode, Registry, installed_registry
from textseg.registry.kinds import KINDS
from textseg.registry.local_code import local_code_of
from textseg.runs.identity import component_facts
from textseg.runs.task_record import TaskRecord
from textseg.system.files import cache_folder, content_hash
from textseg.text.drawn_text import DrawnText, Statements
from textseg.text.prompts import require_region
from textseg.text.reading import read_cases
from textseg.text.reports import Report, read_reports, require_plain_facts, require_stated, stated_facts
from textseg.text.slice_text import Knowledge, Text, build_text, require_levels
from textseg.text.visibility import statement
from textseg.volumes.label_tables import require_names

Progress = Callable[[int, int], None]
MIRRORS = {"none": (), "horizontal": ((-1,),), "vertical": ((-2,),), "both": ((-1,), (-2,), (-2, -1))}  # axes of each


@dataclass(frozen=True)
class Experiment:
    """A recipe with its data prepared; it builds the model and the losses."""

    recipe: Recipe
    registry: Registry
    dataset: Dataset
    split: Split
    cases: Mapping[str, Sequence[PreparedCase]]  # by part of the split
    text: Text | None
    task: Task
    statements: Statements | None = None  # the texts that training draws
    reports: Mapping[str, Report] = field(default_factory=dict)  # by case id

    @property
    def atlas(self) -> Atlas:
        """The atlas of the data set."""
        return self.dataset.atlas

    @property
    def evaluation_source(self) -> Source | None:
        """The prompt source of the evaluation; None for a model that reads no text when it predicts."""
        return cast(Source, self.recipe.prompts_read.evaluation) if self.recipe.prompts_read else None

    @property
    def text_read(self) -> Text | None:
        """The prompts that the model reads when it predicts."""
        return self.text if self.recipe.prompts_read else None

    @property
    def further_sources(self) -> tuple[Source, ...]:
        """The prompt sources of further evaluations."""
        return self.recipe.prompts.also_evaluate if self.recipe.prompts else ()

    @property
    def ignores(self) -> bool:
        """True if the masks of the training may have ignored pixels."""
        return any(IGNORED in self.dataset.label_map(case.case).values() for case in self.cases["train"])

    @property
    def structures_in_training(self) -> list[str]:
        """Structures that some training slice shows, in class order."""
        shown = {index for case in self.cases["train"] for plane in case.present for index in plane}
        return [structure.name for structure in self.atlas.structures if structure.index in shown]

    @property
    def record(self) -> TaskRecord:
        """The facts that a trained model needs when its data set is absent."""
        parts = {"validation": "validation", "train": "training"}
        seen = {case.image_hash: f"{parts[part]} case {case.case.id}" for part in parts for case in self.cases[part]}
        known: list[dict[str, str]] = []
        if self.text is not None:
            known = stated_facts(self.text.generator, self.atlas, [case.case.facts for case in self.cases["train"]])
        return TaskRecord(self.task, seen, tuple(known) if any(known) else ())

    @property
    def report_counts(self) -> dict[str, list[int]]:
        """The number of cases with a report, and of all cases, in each part; empty for a recipe without reports."""
        has_report = {part: sum(case.case.id in self.reports for case in cases) for part, cases in self.cases.items()}
        return {part: [has_report[part], len(cases)] for part, cases in self.cases.items()} if self.reports else {}

    @property
    def report_line(self) -> str:
        """The number of cases with a report in each part, as a sentence for a terminal."""
        parts = ", ".join(f"{have} of {every} in {part}" for part, (have, every) in self.report_counts.items())
        return f"cases with a report: {parts}; the others get the template"

    @property
    def components(self) -> list[Component]:
        """The components that the recipe uses."""
        return [self.registry.component(kind, spec.use) for kind, spec in required_components(self.recipe)]

    @property
    def local_code(self) -> list[LocalCode]:
        """The files outside of installed packages that the run executes: of its components, and those with hooks."""
        used = required_components(self.recipe, KINDS)
        return local_code_of(self.registry, [self.registry.component(kind, spec.use) for kind, spec in used])

    def component_facts(self) -> dict[str, Any]:
        """Return distribution, version and code of each component, and the fingerprint of the text encoder."""
        prompts, text, weights = self.recipe.prompts, self.text, {}
        if prompts is not None and text is not None:
            weights[f"text_encoder {prompts.text_encoder.name}"] = text.rows[0].encoder_fingerprint
        return component_facts(self.components, weights)

    @cached_property
    def metrics(self) -> tuple[NamedMetric, ...]:
        """The metrics of the evaluation."""
        return _metrics(self.recipe, self.registry)

    def run(self, folder: Path, record: Mapping[str, Any]) -> Run:
        """Return the `Run` of this experiment in a folder, for hooks."""
        return Run(folder, self.recipe.model_dump(mode="json"), record)

    def training_slices(self, context: int = 1) -> Slices:
        """Return the training slices with the augmentation and the prompts of the recipe, and with their neighbours."""
        recipe, cases = self.recipe, self.cases["train"]
        text = DrawnText(self.statements, self.text.table) if self.statements and self.text else None
        crops = recipe.preparation.crop == "body"
        slices = Slices(cases, text, _mixture(recipe), self.augmentation, recipe.seed, crops=crops, context=context)
        if isinstance(self.augmentation, TransformList):  # in a worker, the reason would be hard to read
            self.augmentation.try_out(*slices.plain(0))
        return slices

    @cached_property
    def augmentation(self) -> Augmentation:
        """The random changes of training slices."""
        return build_augmentation(self.recipe, self.registry)

    def batches(self, epoch: int = 0, *, workers: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0, as one process trains on them, on the CPU."""
        slices = self.training_slices()
        order = self.order(len(slices), self.recipe.training.batch_size, epoch)
        for packed in training_loader(slices, order, workers=workers, pin_memory=False):
            yield slices.unpack(packed)

    def order(
        self, count: int, batch_size: int, epoch: int, *, start: int = 0, share: tuple[int, int] = (0, 1)
    ) -> ShuffledBatches:
        """Return the batches of an epoch of so many training slices, or cases; see `ShuffledBatches`."""
        seed, foreground = self.recipe.seed, self.foreground
        return ShuffledBatches(
            count, batch_size, seed=seed, epoch=epoch, start=start, share=share, foreground=foreground
        )

    @cached_property
    def foreground(self) -> Foreground | None:
        """The training slices that show structures; None where no batch needs any."""
        share = self.recipe.training.foreground_share
        return Foreground.of(self.cases["train"], share) if share else None

    def slices(self, prepared: PreparedCase, source: Source | None) -> SliceStack:
        """Return the slices of one case without distortion, with the prompts of one source."""
        text = self.text.of([prepared], [source]) if source and self.text else None
        return SliceStack(prepared.image, text, prepared.spacing_mm)

    def slices_stating(self, prepared: PreparedCase, visibility: Visibility) -> SliceStack:
        """Return the slices of one case without distortion, with prompts that state `visibility`."""
        assert self.text is not None
        return SliceStack(prepared.image, self.text.stating(prepared, visibility), prepared.spacing_mm)

    def segmenter(self) -> Segmenter:
        """Return the model with new weights."""
        return build_segmenter(self.recipe, self.registry, self.task)

    def segmentation_loss(self) -> SegmentationTerms:
        """Return the segmentation loss of the recipe."""
        return segmentation_loss(self.recipe.segmentation_loss, self.task, self.registry, ignores=self.ignores)

    def optimizer(self, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
        """Return the optimizer of the recipe for parameters by name."""
        return build_optimizer(self.recipe, self.registry, parameters)

    def schedule(self, steps: int) -> Schedule:
        """Return the learning rate of each of a number of steps."""
        return build_schedule(self.recipe, self.registry, steps)

    def auxiliary_losses(self, segmenter: Segmenter) -> nn.ModuleDict:
        """Return the auxiliary losses by name, in the order of the recipe."""
        losses: dict[str, AuxiliaryLoss] = {}
        for spec in self.recipe.auxiliary_losses:
            features = segmenter.fused_features
            if features is None:
                raise RecipeError(_NO_FEATURES.format(spec.use))
            losses[spec.name] = _module(self.registry, "auxiliary_loss", spec, self.task, features)
        return nn.ModuleDict(cast(Mapping[str, nn.Module], losses))

    @property
    def words(self) -> list[Any]:
        """The words of all reports, in the order of the cases."""
        return sorted((case, r.visible, sorted(r.facts.items()), r.sentence) for case, r in self.reports.items())

    def hashes(self) -> dict[str, str | None]:
        """Return the hashes that must be equal in comparable runs, and in the parts of a resumed run."""
        keys = sorted(case.key for part in PARTS for case in self.cases[part])
        text = self.text.table.fingerprint if self.text else None
        if self.reports:  # the same words may belong to other cases
            text = content_hash([text, self.words])
        return {
            "data": content_hash(keys),
            "split": self.split.hash,
            "preparation": content_hash(self.recipe.preparation.model_dump(mode="json")),
            "prompts": text,
        }


def build(
    recipe: Recipe | Path | str,
    *,
    also: Sequence[Source] = (),
    named: str | None = None,
    progress: Progress = lambda *_: None,
) -> Experiment:
    """Find, prepare and split the cases; write and encode the prompts of every source that the run needs.

    Args:
        recipe: what `load_recipe` returns, or what it reads: a file, a name or a text.
        also: prompt sources beyond those of the recipe.
        named: the structures that a person names in the test cases, for `interactive` prompts: see `read_cases`;
            without it the person is simulated.
        progress: called with the number of prepared cases and of all cases.

    Raises a TextsegError, if possible before the preparation, for a recipe whose parts do not fit together, and for
    missing or damaged data.
    """
    registry = installed_registry()
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    also = (*also, *recipe.prompts.also_evaluate) if recipe.prompts else also
    # 1. Check that the parts of the recipe fit together, before hours of preparation.
    _check_parts(recipe, registry)
    augmentation = build_augmentation(recipe, registry)
    # 2. The cases of the data set.
    dataset = registry.build("dataset", recipe.dataset.use, settings=recipe.dataset.settings)
    _check_order(recipe, dataset.atlas)
    if recipe.prompts is not None:
        spec = recipe.prompts.generator
        generator = registry.build("prompt_generator", spec.use, dataset.atlas, settings=spec.settings)
        require_region(generator, dataset.atlas, spec.use)
    _check_memory(recipe, dataset.atlas.class_count)
    if recipe.prompts is not None:  # an encoder whose package or files are missing raises here
        _ = _text_encoder(recipe.prompts, registry).max_tokens
    _check_training(recipe, registry, dataset.atlas)
    if recipe.model.fusion is not None and (recipe.prompts_read is None or recipe.prompts_read.renumbering):
        _check_fusion(recipe, registry, dataset.atlas)
    _check_weights(recipe, registry, dataset.atlas)
    cases = _usable_cases(recipe, dataset)
    reports: Mapping[str, Report] = {}
    if recipe.prompts is not None:
        if recipe.prompts.report is not None:
            cases, reports = read_reports(dataset.atlas, recipe.prompts.report, cases)
            require_stated(generator, dataset.atlas, reports, recipe.prompts.report, recipe.prompts.generator.use)
            _check_sentences(recipe.prompts, also)
        elif "report" in also:
            raise RecipeError(_NO_REPORTS)
        require_plain_facts(generator, dataset.atlas, cases)
    # 3. Their slices, and the part of the split that each belongs to.
    split, prepared = _prepare_and_split(recipe, dataset, cases, progress)
    # 4. Prompts, written and encoded; none for a recipe without text.
    text, statements = None, None
    if recipe.prompts is not None:
        text, statements = _text(recipe, registry, augmentation, dataset.atlas, prepared, also, named, reports)
    # 5. The task that models are built for.
    length, size = text.table.tokens.shape[1:] if text else (None, None)
    atlas, names = dataset.atlas, prepared["train"][0].channel_names
    task = Task(
        image_channels=len(names),
        image_size=recipe.preparation.size,
        class_count=atlas.class_count,
        atlas=atlas,
        text_size=size,
        text_length=length,
        fingerprint=fingerprint_of(prepared["train"]),
        channel_names=names,
    )
    return Experiment(recipe, registry, dataset, split, prepared, text, task, statements, reports)


def _metrics(recipe: Recipe, registry: Registry) -> tuple[NamedMetric, ...]:
    settings = recipe.evaluation
    dimensions = 3 if settings.per == "volume" else 2
    return build_metrics(settings.metrics, registry, dimensions=dimensions, kernel=settings.kernel)


def _check_parts(recipe: Recipe, registry: Registry) -> None:
    """Raise RecipeError or PluginError for mistakes in the parts of a recipe that can be detected without data."""
    _metrics(recipe, registry)
    losses = [loss.name for loss in recipe.auxiliary_losses]
    if twice := sorted({name for name in losses if losses.count(name) > 1}):
        raise RecipeError(f"auxiliary_losses: {', '.join(twice)} is listed more than once. Keep one of each.")
    if recipe.model.network is None:
        return
    if losses:
        raise RecipeError(_NO_FEATURES.format(losses[0]))
    uses_text = getattr(registry.component("network", recipe.model.network.use).load(), "uses_text", None)
    if isinstance(uses_text, bool):  # otherwise only the built network knows it; see `build_segmenter`
        _check_text(recipe, uses_text=uses_text)


def build_augmentation(recipe: Recipe, registry: Registry) -> Augmentation:
    """Return the random changes of training slices. Raises RecipeError for a list whose items do not fit together."""
    if isinstance(recipe.augmentation, AugmentationSettings):
        return FixedOrder(recipe.augmentation, recipe.seed)
    transforms = []
    for spec in recipe.augmentation:
        built = registry.build("augmentation", spec.use, settings=spec.settings)
        component = registry.component("augmentation", spec.use)
        if not isinstance(geometric := getattr(built, "geometric", None), bool):
            raise component.refused("an attribute `geometric` that is True or False", repr(geometric))
        transforms.append(Transform(component, built, spec.probability, spec.on))
    return TransformList(transforms, recipe.seed)


def _check_sentences(prompts: PromptSettings, also: Sequence[Source]) -> None:
    """Raise RecipeError if an evaluation would give a model sentences that its training had none of."""
    assert prompts.report is not None
    if "report" in also and prompts.report.sentences and not prompts.training.get("report"):
        raise RecipeError(
            f"prompts.report.sentences: the model reads '{prompts.report.sentences}' as it is, and was trained on no "
            "sentence. Train it with report in prompts.training."
        )


def _check_order(recipe: Recipe, atlas: Atlas) -> None:
    """Raise RecipeError for a renumbering of structures that have no order."""
    if recipe.prompts is not None and recipe.prompts.renumbering and not atlas.ordered:
        raise RecipeError(
            f"prompts.renumbering: the structures of atlas '{atlas.name}' have no order, so their names can't be moved "
            "by levels. Remove 'renumbering'."
        )


def _check_training(recipe: Recipe, registry: Registry, atlas: Atlas) -> None:
    """Raise the errors of a segmentation loss, an optimizer and a schedule that can't be built, on a small example."""
    segmentation_loss(recipe.segmentation_loss, Task(1, recipe.preparation.size, atlas.class_count, atlas), registry)
    build_optimizer(recipe, registry, {"example": nn.Parameter(torch.zeros(2, 2))})
    build_schedule(recipe, registry, 1000)


def _check_memory(recipe: Recipe, classes: int) -> None:
    """Raise RecipeError for slices whose logits, probabilities and gradients no batch of this machine can hold."""
    height, width = recipe.preparation.size
    needed, available = 3 * 4 * height * width * classes, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        raise RecipeError(
            f"preparation.size: the outputs for one slice of {height} x {width} pixels and {classes} classes take "
            f"{needed / 1e9:,.0f} GB in training, and this machine has {available / 1e9:,.0f} GB. Lower it."
        )


def _usable_cases(recipe: Recipe, dataset: Dataset) -> list[Case]:
    """Return the cases with a mask that the recipe does not leave out; raises DataError for no case or ambiguous cases.

    Without these checks, the mistake would appear after the training, or as a crash inside it.
    """
    name, cases = recipe.dataset.use, dataset.cases()
    known = [case.id for case in cases]
    if unknown := [case_id for case_id in recipe.leave_out if case_id not in known]:
        raise DataError(f"leave_out: there is no case '{unknown[0]}'.{suggestion(unknown[0], known)}")
    cases = [case for case in cases if case.id not in recipe.leave_out and case.mask is not None]
    if not cases:
        raise DataError(f"dataset: '{name}' has no case with a mask: nothing to train or test on.")
    if faults := missing_channels({case.id: tuple(case.channels) for case in cases}):
        more = [f"and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        remedy = "Add the files, or list the cases in leave_out."
        raise DataError("\n  ".join(["dataset: channels are missing.", *list(faults.values())[:LISTED], *more, remedy]))
    ids = Counter(case.id for case in cases)
    if twice := [case_id for case_id, count in ids.items() if count > 1]:
        raise DataError(
            f"dataset: '{name}' has more than one case called {', '.join(twice[:LISTED])}; its scores could not be "
            "told apart. Give each series an id of its own."
        )
    classes = dataset.atlas.class_count
    for case in cases:
        if any("\ud800" <= character <= "\udfff" for character in case.id + case.patient):
            raise DataError(f"dataset: the id {case.id!a} of a case is no UTF-8. Rename its files.")
        if beyond := sorted({*dataset.label_map(case).values()} - {*range(classes), IGNORED}):
            raise DataError(
                f"dataset: '{name}' maps labels of case '{case.id}' to {', '.join(map(str, beyond))}, and the classes "
                f"of atlas '{dataset.atlas.name}' are 0 to {classes - 1}. Correct its label map."
            )
        if case.mask is not None:
            classes_of = dataset.label_map(case).items()
            own = {value: dataset.atlas.names[i - 1] for value, i in classes_of if i not in (0, IGNORED)}
            require_names(case.mask, own, own, "the labels of the data set", dataset.atlas)
    return cases


def _prepare_and_split(
    recipe: Recipe, dataset: Dataset, cases: Sequence[Case], progress: Progress
) -> tuple[Split, dict[str, list[PreparedCase]]]:
    """Return the split and the prepared cases of each part; other cases are prepared only for a stratified split."""
    atlas, patients = dataset.atlas, {case.id: case.patient for case in cases}

    def stored(some: Sequence[Case]) -> list[PreparedCase]:
        cache = cache_folder()
        return prepare(some, dataset.label_map, recipe.preparation, cache, plane=atlas.plane, progress=progress)

    if recipe.split.stratify:  # strata depend on the masks, so all cases are prepared first
        prepared = stored(cases)
        strata = _strata(prepared, atlas)
        split = make_split(recipe.split, patients.values(), dataset.official_split(), strata, cases=patients)
    else:
        split = make_split(recipe.split, patients.values(), dataset.official_split(), cases=patients)
        used = {patient for part in PARTS for patient in getattr(split, part)}
        prepared = stored([case for case in cases if case.patient in used])
    return split, {part: [case for case in prepared if case.case.patient in getattr(split, part)] for part in PARTS}


def _strata(cases: Sequence[PreparedCase], atlas: Atlas) -> dict[str, str]:
    """Return the stratum of each patient: the sequences of its series, and their first and last visible level."""
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


def _text(
    recipe: Recipe,
    registry: Registry,
    augmentation: Augmentation,
    atlas: Atlas,
    cases: Mapping[str, Sequence[PreparedCase]],
    also: Sequence[Source],
    named: str | None,
    reports: Mapping[str, Report],
) -> tuple[Text, Statements]:
    """Write and encode the prompts that training draws, and those of the sources that evaluation needs."""
    settings = recipe.prompts
    assert settings is not None
    own: set[Source] = set() if settings.evaluation == "none" else {settings.evaluation}
    needed: dict[str, set[Source]] = {"train": set(), "validation": own.copy(), "test": own | {*also}}
    for sources in needed.values():
        if sources & {"predicted", "report"}:  # a first pass gets the template, and so does a case without a report
            sources.add("template")
    read = {} if named is None else read_cases(atlas, named, [case.case.id for case in cases["test"]])
    persons = {case_id: statement(atlas, visibility.visible) for case_id, visibility in read.items()}
    generator = registry.build("prompt_generator", settings.generator.use, atlas, settings=settings.generator.settings)
    if settings.renumbering is not None:
        require_levels(generator, atlas)
    if settings.training.get("report") and not any(case.case.id in reports for case in cases["train"]):
        raise RecipeError("prompts.training: no training case has a report. Remove report, or name other columns.")
    statements = Statements(
        cases["train"],
        _mixture(recipe),
        generator,
        atlas,
        counted=settings.template == "listed",
        template_position=settings.template_position,
        renumbering=settings.renumbering,
        interactive_error=settings.interactive_error,
        seed=recipe.seed,
        reports=reports,
        moves=augmentation.moves,
    )
    text = build_text(
        [(prepared, needed[part]) for part in PARTS for prepared in cases[part]],
        generator,
        _text_encoder(settings, registry),
        atlas,
        generator_name=settings.generator.use,
        cache=cache_folder() / "text",
        knowledge=Knowledge(
            template_position=settings.template_position,
            counted=settings.template == "listed",
            interactive_error=settings.interactive_error,
            seed=recipe.seed,
            named=persons,
            reports=reports,
        ),
        drawn=statements.prompts,
        # What a window of these cases shows is known only after it is cut.
        stated=[case.case.id for case in cases["validation"]] if augmentation.windows else [],
    )
    return text, statements


def _text_encoder(settings: PromptSettings, registry: Registry) -> TextEncoder:
    encoder: TextEncoder = registry.build(
        "text_encoder", settings.text_encoder.use, settings=settings.text_encoder.settings
    )
    return encoder


def _mixture(recipe: Recipe) -> dict[Source, float]:
    """Return the prompt sources of training with a probability above 0; none without text."""
    mixture = recipe.prompts.training if recipe.prompts else {}
    return {source: chance for source, chance in mixture.items() if chance}


def fingerprint_of(cases: Sequence[PreparedCase]) -> dict[str, Any]:
    """Return facts of the training cases, for networks with a plan and for the check of the training domain."""
    return {
        "native_sizes": [(case.slice_count, *case.slice_geometry.native_size) for case in cases],
        "native_spacings_mm": [case.native_spacing_mm for case in cases],
        "spacings_mm": [case.spacing_mm for case in cases],
        "intensities": [case.intensities for case in cases],
    }


def build_segmenter(recipe: Recipe, registry: Registry, task: Task) -> Segmenter:
    """Return the model of a recipe with new weights; the data of the task need not be present."""
    model, mirrors = recipe.model, MIRRORS[recipe.evaluation.mirroring]
    if model.network is not None:
        network = _module(registry, "network", model.network, task, uses_text=bool, size_multiple=int)
        _check_text(recipe, uses_text=network.uses_text)
        return _with_neighbours(Segmenter(network, mirrors), registry.component("network", model.network.use))
    assert model.vision_encoder is not None
    assert model.fusion is not None  # the schema requires both or neither
    encoder = _module(registry, "vision_encoder", model.vision_encoder, task, features=Features, size_multiple=int)
    fusion = _module(registry, "fusion", model.fusion, task, encoder.features, features=Features)
    if recipe.prompts_read is not None and not getattr(fusion, "uses_text", True):
        raise RecipeError(
            f"prompts.evaluation: '{model.fusion.use}' with these settings reads no text, and its results would look "
            "as if it did. Write `evaluation: none` for text that serves an auxiliary loss alone, or remove `prompts`."
        )
    segmenter = Segmenter(TextGuidedNetwork(task, encoder, fusion), mirrors)
    return _with_neighbours(segmenter, registry.component("vision_encoder", model.vision_encoder.use))


def _with_neighbours(segmenter: Segmenter, component: Component) -> Segmenter:
    """Return a model whose number of neighbouring slices is possible. Raises PluginError."""
    count: object = segmenter.context_slices
    if not isinstance(count, int) or count < 1 or count % 2 == 0:
        raise component.refused("an odd number of `context_slices`: a slice and as many on both sides", count)
    if count > 1 and segmenter.batching == "volume":
        raise component.refused('no `context_slices` beside `batching = "volume"`, which gives every slice', count)
    return segmenter


def _module(registry: Registry, kind: str, spec: ComponentSpec, *wired: Any, **attributes: type) -> Any:
    """Return the module that a component builds. Raises PluginError if it lacks what the core reads."""
    module = registry.build(kind, spec.use, *wired, settings=spec.settings)
    component = registry.component(kind, spec.use)
    if not isinstance(module, nn.Module):
        raise component.refused("an nn.Module", f"a {type(module).__name__}")
    for name, wanted in attributes.items():
        if not isinstance(value := getattr(module, name, None), wanted):
            raise component.refused(f"an attribute `{name}`, {wanted.__name__}", repr(value))
    return module


def build_optimizer(recipe: Recipe, registry: Registry, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
    """Return the optimizer of a recipe. Raises PluginError for what is no optimizer of PyTorch."""
    spec, rate = recipe.training.optimizer, recipe.training.learning_rate
    settings = settings_with_training(recipe, "optimizer", spec, registry)
    optimizer = registry.build("optimizer", spec.use, parameters, rate, settings=settings)
    if not isinstance(optimizer, Optimizer) or any("lr" not in group for group in optimizer.param_groups):
        wanted = "a torch.optim.Optimizer whose groups of parameters have an 'lr'"
        raise registry.component("optimizer", spec.use).refused(wanted, f"a {type(optimizer).__name__}")
    return optimizer


def build_schedule(recipe: Recipe, registry: Registry, steps: int) -> Schedule:
    """Return the learning rate of each of a number of steps."""
    spec, rate = recipe.training.schedule, recipe.training.learning_rate
    settings = settings_with_training(recipe, "schedule", spec, registry)
    schedule: Schedule = registry.build("schedule", spec.use, rate, steps, settings=settings)
    component = registry.component("schedule", spec.use)
    if not callable(schedule):
        raise component.refused("a function of the step", f"a {type(schedule).__name__}")

    def checked(step: int) -> float:
        try:
            given: object = schedule(step)
        except Exception as error:
            raise component.failed(error, f"at step {step}") from error
        if not isinstance(given, float | int) or not 0 <= given < math.inf:
            raise component.refused("a finite number of at least 0 as the learning rate", f"{given!r} at step {step}")
        return float(given)

    checked(0)
    return checked


def _expected_task(recipe: Recipe, registry: Registry, atlas: Atlas) -> Task:
    """Return the task of a recipe as far as it is known before the preparation."""
    size, length = None, None  # only the built fusion knows if it reads text
    if recipe.prompts is not None:
        encoder = _text_encoder(recipe.prompts, registry)
        size, length = encoder.feature_size, encoder.max_tokens
    return Task(1, recipe.preparation.size, atlas.class_count, atlas, text_size=size, text_length=length)


def _check_weights(recipe: Recipe, registry: Registry, atlas: Atlas) -> None:
    """Raise the error of a network or a vision encoder whose pretrained weights have not been fetched."""
    for kind in ("network", "vision_encoder"):
        spec: ComponentSpec | None = getattr(recipe.model, kind)
        if spec is not None and hasattr(registry.component(kind, spec.use).load(), "fetch"):
            registry.build(kind, spec.use, _expected_task(recipe, registry, atlas), settings=spec.settings)


def _check_fusion(recipe: Recipe, registry: Registry, atlas: Atlas) -> None:
    """Raise RecipeError if a fusion reads text that is missing, or cannot read the names that renumbering moves."""
    task = _expected_task(recipe, registry, atlas)
    network = cast(TextGuidedNetwork, build_segmenter(recipe, registry, task).network)
    uses_text = getattr(network.fusion, "uses_text", True)
    if recipe.prompts and recipe.prompts.renumbering and recipe.model.fusion is not None and not uses_text:
        raise RecipeError(
            f"prompts.renumbering: '{recipe.model.fusion.use}' with these settings reads no text, so it could not know "
            "the new names. Remove 'renumbering', or let the fusion read the text."
        )
    if recipe.prompts is not None and recipe.prompts_read is None and uses_text:
        raise RecipeError(
            "prompts.evaluation: 'none' is for a model that reads no text when it predicts, and the fusion of this one "
            "reads it. Write template."
        )
    if recipe.prompts is None and uses_text:
        raise RecipeError(
            "prompts: required by vision_encoder and fusion but missing; give a generator and a text_encoder, or use "
            "a fusion that reads no text."
        )


def _check_text(recipe: Recipe, *, uses_text: bool) -> None:
    """Raise RecipeError for a network with text and a recipe without prompts, or the reverse."""
    assert recipe.model.network is not None
    name = recipe.model.network.use
    if uses_text and recipe.prompts is None:
        raise RecipeError(f"model.network: '{name}' reads text, and the recipe has no prompts. Add the section.")
    if not uses_text and recipe.prompts is not None:
        raise RecipeError(
            f"prompts: model.network '{name}' reads no text, and its results would look as if it did. Remove the "
            "section, or use another model."
        )


_NO_REPORTS = (
    "The recipe does not say where the reports of the cases are. Say which columns hold them: --set "
    "'prompts.report={visible: levels}'"
)
_NO_FEATURES = (
    "auxiliary_losses: '{}' needs the fused features of a vision encoder and a fusion, and model.network gives none. "
    "Remove it, or use another model."
)
