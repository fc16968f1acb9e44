"""The kinds of component: whatever lists, builds, checks or describes components reads this table.

A new kind is one row here, its Protocol in `textseg.contracts`, its key in the schema of recipes, its checks in
`textseg.testing`, its templates in `textseg/cli/plugins/templates`, and its page in `docs/how_to`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from textseg.errors import PluginError, suggestion

Use = Literal["everywhere", "training", "evaluation", "scoring", "logging"]


@dataclass(frozen=True)
class Kind:
    """A kind of component.

    Args:
        name: its name, such as "fusion": `register.fusion(name, builder)`.
        parameters: the positional parameters that the core hands to a builder.
        contract: the Protocol or class of what a builder returns, as "module:name".
        checks: the module of `textseg.testing` whose `CHECKS` test a component of this kind.
        keys: where a recipe names components of this kind; "*" is each item of a list, "{}" each value of a
            mapping.
        summary: the content of the module of a component, in a few words.
        own_keys: the keys beside a component that are no settings of its builder.
        used_in: where the component is needed: only "everywhere" is needed to predict, "scoring" changes scores and no
            weights, and "logging" changes no number.
    """

    name: str
    parameters: tuple[str, ...]
    contract: str
    checks: str
    keys: tuple[str, ...]
    summary: str
    own_keys: tuple[str, ...] = ("use",)
    used_in: Use = "everywhere"

    @property
    def page(self) -> str:
        """The page that shows how to write a component of this kind."""
        return f"docs/how_to/add_{'an' if self.name[0] in 'aeiou' else 'a'}_{self.name}.md"


_ROWS = (
    Kind("atlas", (), "textseg.contracts:Atlas", "textseg.testing.atlases", (), "the structures"),
    Kind("dataset", (), "textseg.contracts:Dataset", "textseg.testing.datasets", ("dataset",), "the reader"),
    Kind(
        "prompt_generator",
        ("atlas",),
        "textseg.contracts:PromptGenerator",
        "textseg.testing.prompt_generators",
        ("prompts.generator",),
        "the sentences",
    ),
    Kind(
        "text_encoder",
        (),
        "textseg.contracts:TextEncoder",
        "textseg.testing.text_encoders",
        ("prompts.text_encoder",),
        "the encoder",
    ),
    Kind(
        "vision_encoder",
        ("task",),
        "textseg.contracts:VisionEncoder",
        "textseg.testing.modules",
        ("model.vision_encoder",),
        "the pyramid",
    ),
    Kind(
        "fusion",
        ("task", "features"),
        "textseg.contracts:Fusion",
        "textseg.testing.modules",
        ("model.fusion",),
        "where text meets image",
    ),
    Kind(
        "network",
        ("task",),
        "textseg.contracts:Network",
        "textseg.testing.modules",
        ("model.network",),
        "the network",
    ),
    Kind(
        "segmentation_loss",
        ("task",),
        "textseg.contracts:SegmentationLoss",
        "textseg.testing.losses",
        ("segmentation_loss.{}",),
        "the loss",
        own_keys=("use", "weight"),
        used_in="training",
    ),
    Kind(
        "auxiliary_loss",
        ("task", "features"),
        "textseg.contracts:AuxiliaryLoss",
        "textseg.testing.losses",
        ("auxiliary_losses.*",),
        "the loss",
        own_keys=("use", "weight"),
        used_in="training",
    ),
    Kind(
        "augmentation",
        (),
        "textseg.contracts:Augmentation",
        "textseg.testing.augmentations",
        ("augmentation.*",),
        "the transform",
        own_keys=("use", "probability", "on"),
        used_in="evaluation",  # the texts of an experiment depend on it
    ),
    Kind(
        "optimizer",
        ("parameters", "learning_rate"),
        "textseg.contracts:Optimizer",
        "textseg.testing.optimizers",
        ("training.optimizer",),
        "the optimizer",
        used_in="training",
    ),
    Kind(
        "schedule",
        ("learning_rate", "steps"),
        "textseg.contracts:Schedule",
        "textseg.testing.schedules",
        ("training.schedule",),
        "the learning rate of each step",
        used_in="training",
    ),
    Kind(
        "metric",
        (),
        "textseg.contracts:Metric",
        "textseg.testing.metrics",
        ("evaluation.metrics.*",),
        "the score",
        own_keys=("use", "column"),
        used_in="scoring",
    ),
    Kind(
        "logger",
        ("run", "step"),
        "textseg.contracts:Logger",
        "textseg.testing.loggers",
        ("training.loggers.*",),
        "the logger",
        used_in="logging",
    ),
)

KINDS: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in _ROWS})
"""Each kind of component by its name, in the order of lists."""

TO_PREDICT = frozenset(kind.name for kind in _ROWS if kind.used_in == "everywhere")
"""The kinds that a trained model is made of."""

SCORING = frozenset(kind.name for kind in _ROWS if kind.used_in == "scoring")
"""The kinds that change scores and no weights."""

TO_EVALUATE = TO_PREDICT | SCORING | {kind.name for kind in _ROWS if kind.used_in == "evaluation"}
"""The kinds that scores are made with."""

OF_NUMBERS = frozenset(kind.name for kind in _ROWS if kind.used_in != "logging")
"""The kinds that can change a number."""


class UnknownKindError(PluginError, AttributeError):
    """A kind of component that textseg does not have; an AttributeError too, so that `hasattr` works on a Register."""

    def __init__(self, kind: str) -> None:
        super().__init__(
            f"There is no kind of component '{kind}'.{suggestion(kind, KINDS)} What is none of them may be a hook, or "
            "closed to plug-ins: docs/reference/public_interface.md#open-and-closed."
        )


def kind_of(name: str) -> Kind:
    """Return the kind of this name. Raises UnknownKindError, a PluginError."""
    if name not in KINDS:
        raise UnknownKindError(name)
    return KINDS[name]
