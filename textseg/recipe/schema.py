"""The schema of a recipe: its keys, their possible values and their defaults."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from textseg.contracts import Source
from textseg.errors import shortened
from textseg.system.commands import shell
from textseg.system.files import file_name

NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
SUMS = ("loss", "gradient")  # names of numbers of a step beside the terms of its loss


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Remove keys without a value from a dump."""
        return {key: value for key, value in handler(self).items() if value is not None}


class ComponentSpec(BaseModel):
    """A component by name; every other key is one of its settings."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    use: str

    @property
    def name(self) -> str:
        """The name without that of a distribution, which `use: distribution/name` may put before it."""
        return self.use.rpartition("/")[2]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as they are in the recipe; the registry converts them to their types."""
        return dict(self.model_extra or {})


class NamedComponent(ComponentSpec):
    """A component that a recipe may also name by a plain text: `adamw` for `{use: adamw}`."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"use": given} if isinstance(given, str) else given

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any] | str:
        return handler(self) if self.settings else self.use

    def __str__(self) -> str:
        return self.use


class WeightedComponent(ComponentSpec):
    """A component whose result is multiplied by `weight`."""

    weight: NonNegative


class TransformSpec(NamedComponent):
    """An item of the list of transforms: a component, applied with `probability`, in the place `on`."""

    probability: Probability = 1.0
    on: Literal["workers", "device"] = "workers"

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        return written


class MetricSpec(NamedComponent):
    """A metric; `column` is its name in tables if it differs from that of the component."""

    column: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] | None = None

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any] | str:
        kept = {key: value for key, value in handler(self).items() if value is not None}
        return self.use if kept.keys() == {"use"} else kept


def _form_of_augmentation(given: Any) -> str:
    """Return the name of the form that a person wants to write; a component outside a list is a mistake in a list."""
    listed = isinstance(given, list | tuple | str) or (isinstance(given, dict) and "use" in given)
    return f"augmentation[{'list' if listed else 'fixed order'}]"


class SplitSettings(_Section):
    """The split of the patients: one of `fractions`, `official`, `folds` with `fold`, and `file` (with `fold`)."""

    fractions: tuple[Probability, Probability, Probability] | None = None  # training, validation, test
    official: Literal[True] | None = None
    folds: Annotated[int, Field(ge=2, le=1000)] | None = None
    fold: Annotated[int, Field(ge=0)] | None = None  # 0-based
    file: Path | None = None  # with `fold`: a splits_final.json of nnU-Net
    validation: Share = 0.1  # of the training patients, for `official` and each `fold`
    stratify: bool = False  # by sequences and visible levels, so that the parts resemble each other
    seed: Annotated[int, Field(ge=0)] = 2025  # not the seed of the run: all its seeds have one split

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = [key for key in ("fractions", "official", "folds", "file") if getattr(self, key) is not None]
        if self.fold is not None and self.folds is None and self.file is None:
            raise ValueError("'fold' needs 'folds', {folds: 5, fold: 0}, or the 'file' of nnU-Net's folds.")
        if len(forms) != 1:
            given = ", ".join(forms) or "none of them"
            raise ValueError(f"give exactly one of fractions, official, folds and file, not {given}.")
        if self.fractions and not (math.isclose(sum(self.fractions), 1, abs_tol=1e-6) and self.fractions[0]):
            total = f"fractions {list(self.fractions)} sum to {sum(self.fractions):g}"
            raise ValueError(f"{total}; training (above 0), validation and test must sum to 1.")
        if self.folds is not None and (self.fold is None or self.fold >= self.folds):
            raise ValueError(f"'folds: {self.folds}' needs a 'fold' from 0 to {self.folds - 1}, not {self.fold}.")
        if "validation" in self.model_fields_set and not self._draws_validation:
            raise ValueError(f"'validation' goes with official and folds; {forms[0]} already says it.")
        if (
            self.file is not None
            and self.fold is None
            and (drawn := sorted({"seed", "stratify"} & self.model_fields_set))
        ):
            raise ValueError(f"'{drawn[0]}' goes with fractions, official and folds; in a file nothing is drawn.")
        return self

    @property
    def _draws_validation(self) -> bool:
        return bool(self.official) or self.fold is not None

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        kept = {key: value for key, value in handler(self).items() if value is not None}
        if not self._draws_validation:
            del kept["validation"]
        if self.file is not None and self.fold is None:
            del kept["seed"], kept["stratify"]
        return kept


class PreparationSettings(_Section):
    """The preparation of slices from volumes."""

    size: tuple[PositiveInt, PositiveInt]  # H, W in pixels
    intensity: Literal["percentiles", "zscore"] = "percentiles"
    crop: Literal["body", "none"] = "body"
    resample_channels: bool = False  # onto the grid of the first channel; otherwise they must lie on it


class FieldOfViewSettings(_Section):
    """Windows in training: some slices show only a part of the rows and columns of the scan."""

    probability: Probability
    height: tuple[Share | Literal[1], Share | Literal[1]] = (0.45, 0.95)  # least and greatest share of the rows
    width: tuple[Share | Literal[1], Share | Literal[1]] = (0.7, 1)  # and of the columns

    @field_validator("height", "width")
    @classmethod
    def _ascending(cls, shares: tuple[float, float]) -> tuple[float, float]:
        if shares[0] > shares[1]:
            raise ValueError(f"the least share, {shares[0]:g}, is above the greatest, {shares[1]:g}. Exchange them.")
        return shares


class AugmentationSettings(_Section):
    """The random distortions of training slices; the defaults distort nothing."""

    field_of_view: FieldOfViewSettings | None = None

    distortion: Probability = 0.0  # probability, per slice, of the settings from here to `elastic_pixels`
    rotation_degrees: NonNegative = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0  # relative: 0.1 is 0.9 to 1.1
    translation: Probability = 0.0  # of the side
    elastic_pixels: NonNegative = 0.0
    gamma: NonNegative = 0.0
    noise: NonNegative = 0.0
    contrast: NonNegative = 0.0
    bias: NonNegative = 0.0
    blur_pixels: NonNegative = 0.0
    low_resolution: Annotated[float, Field(ge=1)] | None = None  # times the size of a pixel
    flip: Literal["none", "horizontal", "vertical", "both"] = "none"
    on: Literal["workers", "device"] = "workers"


class RenumberingSettings(_Section):
    """Renumbering in training: names in the mask and in the text are moved together, so that the text is needed."""

    probability: Probability  # of a draw whose text names the levels of its picture
    levels: PositiveInt = 2  # at most, in both directions
    where: Literal["without_landmark", "anywhere"] = "without_landmark"


class ReportSettings(_Section):
    """Words that come with a case: columns of the data set's own table, or of a file."""

    file: Path | None = None  # CSV or JSON lines with `case`; without it, the facts of the data set
    visible: str | None = None  # the column that says what is visible
    facts: tuple[str, ...] = ()  # columns that the prompt generator states
    sentences: str | None = None  # the column whose text the model reads as it is

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, each once."""
        return tuple(dict.fromkeys(column for column in (self.visible, *self.facts, self.sentences) if column))

    @field_validator("visible", "sentences")
    @classmethod
    def _folded(cls, column: str | None) -> str | None:
        return column and column.strip().casefold()

    @field_validator("facts")
    @classmethod
    def _all_folded(cls, facts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(column.strip().casefold() for column in facts)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if not self.columns:
            raise ValueError("name a column: 'visible', 'facts' or 'sentences'.")
        if self.sentences and (self.visible or self.facts):
            raise ValueError(
                "'sentences' are the whole text of a slice, so 'visible' and 'facts' can't be stated beside them. Give "
                "either sentences, or visible and facts."
            )
        return self


class PromptSettings(_Section):
    """The prompt generator, the text encoder, and the sources of the prompts in training and in evaluation."""

    generator: ComponentSpec
    text_encoder: ComponentSpec
    template: Literal["listed", "uncounted"] = "listed"  # it lists every structure, or says that nobody counted them
    renumbering: RenumberingSettings | None = None
    report: ReportSettings | None = None
    training: Mapping[Literal["template", "interactive", "report", "ground_truth"], Probability] = {"ground_truth": 1.0}
    evaluation: Source | Literal["none"] = "template"  # "none": text serves the training alone
    also_evaluate: tuple[Source, ...] = ()  # sources of further evaluations, each in a folder of its own
    template_position: bool = True  # True if the template states the position of a slice in the stack
    interactive_error: Probability = 0.0  # that a simulated person miscounts a volume by one level
    predicted_threshold: Share = 0.5  # confidence above which a first pass has found a structure

    @field_validator("training")
    @classmethod
    def _certain(cls, training: Mapping[str, float]) -> Mapping[str, float]:
        if not math.isclose(sum(training.values()), 1, abs_tol=1e-6):
            raise ValueError(f"the probabilities sum to {sum(training.values()):g}; they must sum to 1.")
        return training

    @model_validator(mode="after")
    def _renumbered(self) -> Self:
        if self.renumbering and not self.names_levels_in_training:
            raise ValueError(
                "'renumbering' moves names that the text states, and no text of 'training' names what its picture "
                "shows. Add interactive, ground_truth or a report with 'visible', or remove 'renumbering'."
            )
        return self

    @property
    def names_levels_in_training(self) -> bool:
        """True if a text of the generator that training may draw names what its picture shows."""
        sources = {source for source, chance in self.training.items() if chance}
        reads_report = self.report is not None and self.report.visible is not None
        return bool(sources & {"interactive", "ground_truth"}) or ("report" in sources and reads_report)

    @model_validator(mode="after")
    def _reported(self) -> Self:
        trained = bool(self.training.get("report"))
        if self.report is None and (trained or self.evaluation == "report"):
            key = "training" if trained else "evaluation"
            raise ValueError(
                f"'{key}' names the source report, and there is no key 'report'. Say which columns hold the words of "
                "each case, such as report: {visible: levels, facts: [history]}."
            )
        if self.report is not None and self.report.sentences and self.evaluation == "report" and not trained:
            raise ValueError(
                "'evaluation' gives the model sentences as they are, and 'training' has none, so no effect of theirs "
                "is known. Add report to 'training', or name the column as report.visible, which is read."
            )
        return self

    @field_validator("evaluation")
    @classmethod
    def _honest(cls, evaluation: str) -> str:
        if evaluation not in ("none", "template", "report", "predicted"):
            raise ValueError(
                f"'{evaluation}' prompts are read off the annotation of the test cases; a recipe can't ask for them. "
                f"Write 'template', 'report' or 'predicted' here, also_evaluate: [{evaluation}] for scores apart, or "
                f"after a run: {shell('textseg', 'evaluate', 'RUN', '--prompts', evaluation)}"
            )
        return evaluation

    @field_validator("also_evaluate")
    @classmethod
    def _further(cls, sources: tuple[Source, ...], others: ValidationInfo) -> tuple[Source, ...]:
        own = others.data.get("evaluation")
        if own == "none" and sources:
            raise ValueError("with 'evaluation: none' the model reads no text, so there is no other text to give it.")
        if len({*sources, own}) <= len(sources):
            raise ValueError("a source is listed more than once, or is that of 'evaluation'. Keep one of each.")
        return sources


class ModelSettings(_Section):
    """Either a vision encoder and a fusion, or a whole network."""

    vision_encoder: ComponentSpec | None = None
    fusion: ComponentSpec | None = None
    network: ComponentSpec | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        parts = {"vision_encoder": self.vision_encoder, "fusion": self.fusion}
        given = [key for key, part in parts.items() if part]
        if self.network and given:
            raise ValueError(f"give either network, or vision_encoder and fusion, not network with {given[0]}.")
        if not self.network and len(given) != 2:
            missing = " and ".join(key for key in parts if key not in given)
            raise ValueError(f"{missing}{'' if given else ', or network'} must be given.")
        return self


class LossTerm(WeightedComponent):
    """A term of the segmentation loss."""

    weight: NonNegative = 1.0


def written_out(terms: Any) -> Any:
    """Return the terms of a segmentation loss in full; Dice and focal for none.

    A number is a weight, and a term is the component of its own name unless it names another one with `use`.
    """
    if not isinstance(terms, dict):
        return terms
    given = {name: term for name, term in terms.items() if name != "focal_gamma"} or {"dice": 1.0, "focal": 1.0}
    whole = {name: _term(name, term) for name, term in given.items()}
    if "focal_gamma" in terms and isinstance(focal := whole.get("focal"), dict):  # the key of recipes before `gamma`
        whole["focal"] = {"gamma": terms["focal_gamma"], **focal}
    return whole


def _term(name: Any, term: Any) -> Any:
    if isinstance(term, int | float):
        term = {"weight": term}
    if isinstance(term, str):
        term = {"use": term}
    return {"use": name, **term} if isinstance(term, dict) else term


class TrainingSettings(_Section):
    """The training: optimizer, schedule, precision, processes and checkpoints."""

    steps: PositiveInt | None = None  # of the optimizer; the run ends with the epoch that reaches it
    epochs: Annotated[PositiveInt | None, Field(validate_default=True)] = None  # instead of `steps`
    batch_size: PositiveInt = 8
    foreground_share: Share | None = None  # of each batch that must show a structure
    optimizer: NamedComponent = NamedComponent(use="adamw")
    schedule: NamedComponent = NamedComponent(use="cosine")
    learning_rate: PositiveFloat = 1e-4
    final_learning_rate: NonNegative | None = None  # of a schedule that has this setting
    weight_decay: NonNegative | None = None  # of an optimizer that has this setting
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None  # the same
    gradient_clip: PositiveFloat | None = None  # norm
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "16-mixed"
    validate_every: PositiveInt = 1  # epochs
    checkpoint_every: PositiveInt = 1  # epochs
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None  # of each process
    devices: PositiveInt = 1  # on each node; each has a process and a part of every batch
    nodes: PositiveInt = 1
    deterministic: bool = False
    compile: bool = False
    initialize_from: str | None = None
    average_decay: Share | None = None  # of the moving average of the weights that validation and evaluation use
    patience: PositiveInt | None = None  # number of validations without improvement after which the run is finished
    overlay_every: PositiveInt | None = None  # epochs
    loggers: tuple[NamedComponent, ...] = (NamedComponent(use="tensorboard"),)

    @field_validator("epochs")
    @classmethod
    def _one_length(cls, epochs: int | None, others: ValidationInfo) -> int | None:
        if "steps" in others.data and (epochs is None) == (others.data["steps"] is None):
            raise ValueError(f"give either epochs or steps, {'not both' if epochs else 'such as epochs: 100'}.")
        return epochs

    def epochs_of(self, steps_per_epoch: int) -> int:
        """Return the number of epochs: that of the recipe, or the fewest that have its `steps`."""
        return self.epochs or math.ceil((self.steps or 0) / steps_per_epoch)


class EvaluationSettings(_Section):
    """The evaluation: metrics, per slice or per volume, their grid and their unit."""

    metrics: Annotated[tuple[MetricSpec, ...], Field(min_length=1)] = tuple(
        MetricSpec(use=name) for name in ("dsc", "jaccard", "hd95", "asd")
    )
    per: Literal["volume", "slice"] = "volume"
    space: Literal["native", "prepared"] = "native"
    unit: Literal["mm", "pixel"] = "mm"
    kernel: Literal["textseg", "medpy"] = "textseg"  # who computes: equal numbers, medpy for the metrics that it has
    fields_of_view: Annotated[tuple[Share, ...], Field(min_length=1)] | None = None  # shares of the rows of the file
    checkpoint: Literal["best", "last"] = "best"  # by validation, or of the last epoch
    mirroring: Literal["none", "horizontal", "vertical", "both"] = "none"  # views whose mean logits are the prediction

    @field_validator("fields_of_view")
    @classmethod
    def _distinct(cls, fields_of_view: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if fields_of_view and len(set(fields_of_view)) < len(fields_of_view):
            raise ValueError("a share is listed more than once. Keep one of each, such as [0.7, 0.5].")
        return fields_of_view


class Recipe(_Section):
    """A recipe: one experiment."""

    format: Literal[1]
    name: str
    reference: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 2025
    dataset: ComponentSpec
    leave_out: tuple[str, ...] = ()  # ids of cases
    split: SplitSettings
    preparation: PreparationSettings
    augmentation: Annotated[
        Annotated[AugmentationSettings, Tag("augmentation[fixed order]")]
        | Annotated[tuple[TransformSpec, ...], Tag("augmentation[list]")],
        Discriminator(_form_of_augmentation),
    ] = AugmentationSettings()
    prompts: PromptSettings | None = None
    model: ModelSettings
    segmentation_loss: Annotated[dict[str, LossTerm], BeforeValidator(written_out)]
    auxiliary_losses: tuple[WeightedComponent, ...] = ()
    training: TrainingSettings
    evaluation: EvaluationSettings

    @property
    def prompts_read(self) -> PromptSettings | None:
        """The prompts that the model reads when it predicts; None for text that serves the training alone."""
        return None if self.prompts is None or self.prompts.evaluation == "none" else self.prompts

    @field_validator("name")
    @classmethod
    def _is_a_folder(cls, name: str) -> str:
        if file_name(name) != name:
            possible = file_name(name)
            raise ValueError(f"'{shortened(name)}' must also be the name of a folder; '{possible}' would be possible.")
        return name

    @field_validator("segmentation_loss")
    @classmethod
    def _learns(cls, terms: dict[str, LossTerm]) -> dict[str, LossTerm]:
        if unfit := [name for name in terms if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in SUMS]:
            raise ValueError(
                f"'{shortened(unfit[0])}' can't name a term: a name is made of letters without accents, digits, '_' "
                f"and '-', and is none of {', '.join(SUMS)}."
            )
        if not any(term.weight for term in terms.values()):
            raise ValueError(f"the weight of {' and '.join(terms)} is 0, so nothing would be learned. Raise it.")
        return terms

    @field_serializer("segmentation_loss")
    def _short_terms(self, terms: dict[str, LossTerm]) -> dict[str, Any]:
        """Write a term as its weight if it has no settings, and without `use` if that is its name."""
        written = {name: term.model_dump(mode="json") for name, term in terms.items()}
        for name, term in written.items():
            if term["use"] == name:
                del term["use"]
        return {name: term["weight"] if term.keys() == {"weight"} else term for name, term in written.items()}

    @field_validator("format", mode="before")
    @classmethod
    def _known_format(cls, given: Any) -> Any:
        if type(given) is int and given > 1:
            raise ValueError(f"this version of textseg reads format 1; a recipe of format {given} needs a newer one.")
        return given
