from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from textseg.contracts import Atlas, Prompts, Visibility
from textseg.testing import ConformanceError, Subject, check_prompt_generator, checks


class Short:
    """Names what is visible: keeps every promise."""

    def __init__(self, atlas: Atlas, *, region: str = "lumbar spine") -> None:
        self.atlas, self.region = atlas, region

    def __call__(self, visibility: Visibility) -> Prompts:
        seen = ", ".join(visibility.visible) or "nothing"
        if not visibility.counted:
            return Prompts(f"MRI of the {self.region}.", tuple(f"It may show {n}." for n in self.atlas.names))
        return Prompts(f"MRI of the {self.region}: {seen}.", tuple(f"It shows {n}." for n in self.atlas.names))


class Imaged(Short):
    """Wants an image."""

    def __call__(self, visibility: Visibility, image: Any) -> Prompts:  # type: ignore[override]
        return super().__call__(visibility)


class Plain(Short):
    """Gives a text alone."""

    def __call__(self, visibility: Visibility) -> Any:
        return super().__call__(visibility).holistic


class Reading(Short):
    """Reads its words at each call."""

    def __call__(self, visibility: Visibility) -> Prompts:
        return replace(super().__call__(visibility), holistic=(Path(__file__).parents[2] / "LICENSE").read_text())


class Drawing(Short):
    """Chooses its words."""

    def __call__(self, visibility: Visibility) -> Prompts:
        return replace(super().__call__(visibility), holistic=random.choice(["It shows", "One sees"]))


class Noisy(Short):
    """Draws from torch."""

    def __call__(self, visibility: Visibility) -> Prompts:
        torch.rand(1)
        return super().__call__(visibility)


class Counting(Short):
    """Counts its calls."""

    calls = itertools.count()

    def __call__(self, visibility: Visibility) -> Prompts:
        prompts = super().__call__(visibility)
        return replace(prompts, holistic=f"{next(self.calls)}: {prompts.holistic}")


class Mute(Short):
    """Says nothing where nothing is visible."""

    def __call__(self, visibility: Visibility) -> Prompts:
        prompts = super().__call__(visibility)
        return prompts if visibility.visible else replace(prompts, holistic="")


class Few(Short):
    """A text for each visible structure alone."""

    def __call__(self, visibility: Visibility) -> Prompts:
        return replace(super().__call__(visibility), classwise=visibility.visible)


class Listing(Short):
    """A list of texts."""

    def __call__(self, visibility: Visibility) -> Any:
        return replace(super().__call__(visibility), classwise=["It is."] * len(self.atlas.names))  # type: ignore[arg-type]


class Factual(Short):
    """Needs a fact."""

    def __call__(self, visibility: Visibility) -> Prompts:
        return replace(super().__call__(visibility), holistic=visibility.facts["sequence"])


class Same(Short):
    """The same words for every structure."""

    def __call__(self, visibility: Visibility) -> Prompts:
        return replace(super().__call__(visibility), classwise=("It shows a vertebra.",) * len(self.atlas.names))


class Blank(Short):
    """No words for one of them."""

    def __call__(self, visibility: Visibility) -> Prompts:
        prompts = super().__call__(visibility)
        return replace(prompts, classwise=("", *prompts.classwise[1:]))


class Constant(Short):
    """Always the template."""

    def __call__(self, visibility: Visibility) -> Prompts:
        return super().__call__(replace(visibility, visible=self.atlas.names))


class Certain(Short):
    """Names every structure where nobody has looked."""

    def __call__(self, visibility: Visibility) -> Prompts:
        return super().__call__(replace(visibility, counted=True))


class CertainOfOne(Short):
    """States a structure where nobody has looked."""

    def __call__(self, visibility: Visibility) -> Prompts:
        prompts = super().__call__(visibility)
        return replace(prompts, classwise=(f"It shows {self.atlas.names[0]}.", *prompts.classwise[1:]))


class Local(Short):
    """Can't reach another process."""

    def __init__(self, atlas: Atlas) -> None:
        super().__init__(atlas)
        self.join = lambda names: ", ".join(names)


def test_what_keeps_every_promise_passes() -> None:
    check_prompt_generator(Short)
    check_prompt_generator(Short, settings={"region": "neck"}, atlas="lumbar_mrspineseg")
    check_prompt_generator("atpg_lumbar", settings={"granularity": 2, "wording": "paper", "absence": "silent"})


def test_an_atlas_that_it_was_not_made_for() -> None:
    alone = Atlas("alone", ())
    with pytest.raises(ConformanceError, match="prompt_generator 'atpg_lumbar' breaks 'construction': .*has no order"):
        check_prompt_generator("atpg_lumbar", atlas=alone)


@pytest.mark.parametrize(
    ("wrong", "broken", "message"),
    [
        (Imaged, "construction", "missing 1 required positional argument: 'image'"),
        (Plain, "construction", "expected textseg.contracts.Prompts, came str"),
        (Reading, "surroundings", "a call that touches no file, process and network, came reading '"),
        (Drawing, "surroundings", "another state of the module random"),
        (Noisy, "surroundings", "no random numbers, came a change of torch's random state"),
        (Counting, "pure", "the same text again, in another order for Visibility("),
        (Mute, "prompts", "Prompt generator 'Mute' gave an empty holistic prompt for ()"),
        (Few, "prompts", "Prompt generator 'Few' gave 2 class-wise prompts for atlas 'example'"),
        (Listing, "prompts", "class-wise prompts in a tuple, came list"),
        (Factual, "construction", "expected no error, came KeyError: 'sequence'"),
        (Same, "names", "a text of its own for each visible structure, came 'It shows a vertebra.' for 'L2' and 'L1'"),
        (Blank, "names", "a text for 'L2' where it is visible, came an empty one"),
        (Constant, "names", "another text where 'L2' is not visible, came the same"),
        (Certain, "uncounted", "a text of its own where Visibility.counted is False"),
        (CertainOfOne, "uncounted", "(see `prompts.template: uncounted`) for 'L2', too, came that of ("),
        (Local, "pure", "expected no error, came"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_wrong_is_caught(wrong: Any, broken: str, message: str) -> None:
    (check,) = [check for check in checks("prompt_generator") if check.name == broken]
    with pytest.raises(ConformanceError) as caught:
        check(Subject.of("prompt_generator", wrong))
    assert str(caught.value).startswith(f"prompt_generator '{wrong.__name__}' breaks '{broken}': expected ")
    assert message in str(caught.value)
