"""Effect of right and wrong texts on synthetic patients, in whom the names of the levels are known.

    python benchmarks/phantom_text.py RUN... [--cases 12] [--smallest]

The runs or bundles read the atlas `lumbar_spider`; nothing is trained. The patients are drawn by `lumbar_phantom` with
the settings of the run, if it was trained on it, and another seed. Some pictures end above L4 and show no landmark, and
some patients have four or six lumbar vertebrae, so that a person or a model that counts from the sacrum is wrong.

The right text is what a person says who knows the names: the first and the last structure with at least 30 % of its
voxels in the picture, as `textseg predict --visible FIRST:LAST`. The wrong texts are the same, one level up or down; a
picture in which a name has no successor in the atlas has no wrong text in this direction. DSC is the mean over the
structures that the person names, then over pictures, then over patients. Obedience compares with the masks of the
right text. "14 % errors" is the DSC if the person errs by one level in 14 % of the pictures. "Renamed" is the control:
the levels take their names afterwards from the same statement (`--ordered`), also for a model that reads no text.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import textseg
from textseg.contracts import Atlas, Case
from textseg.data.field_of_view import named_structures
from textseg.data.preparation import map_labels
from textseg.inference.predictor import Predictor
from textseg.levels.level_naming import compare_names
from textseg.levels.obedience import ComparedPicture, obedience, shows_landmark, summarise
from textseg.metrics.definitions import score
from textseg.metrics.statistics import Interval, macro_mean_interval
from textseg.recipe.loading import load_recipe
from textseg.runs.folder import RunFolder
from textseg.text.visibility import shifted
from textseg.volumes import read_labels
from textseg_spine.lumbar_phantom import LumbarPhantom

Labels = NDArray[np.integer[Any]]  # [S, H, W] class indices
PICTURES: dict[str, dict[str, Any]] = {
    "whole": {},
    "end above L4": {"ends_above": "L4"},
    "L2 to L4 alone": {"begins_below": "L1", "ends_above": "L5"},
    "six lumbar vertebrae": {"lumbar_vertebrae": 6},
    "six, end above L4": {"lumbar_vertebrae": 6, "ends_above": "L4"},
    "four lumbar vertebrae": {"lumbar_vertebrae": 4},
}
TEXTS = {"right": 0, "one level up": -1, "one level down": 1}
WRONG = tuple(text for text, levels in TEXTS.items() if levels)
ERRORS = 0.14  # share of patients whose lumbar levels were numbered wrongly (Korean J Radiol 2014)
COLUMNS = (
    "run",
    "pictures",
    "text",
    "patients",
    "DSC (95 %)",
    "without names",
    "shifted",
    "obedience (95 %)",
    "renamed: DSC (95 %)",
)


@dataclass(frozen=True)
class Picture:
    """A synthetic picture, its class indices, and the structures of the sequence that a person names in it."""

    case: Case
    reference: NDArray[np.uint8]
    spacing: tuple[float, ...]
    named: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs or bundles")
    parser.add_argument("--cases", type=int, default=12, help="pictures of each kind")
    parser.add_argument("--seed", type=int, default=1000, help="of the patients")
    parser.add_argument("--smallest", action="store_true", help="to try it: one picture of each kind")
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for path in options.runs:
        model = textseg.load(path, device="cpu")
        settings = {**drawn_for(path), "cases": 1 if options.smallest else options.cases, "seed": options.seed}
        for kind, cut in PICTURES.items():
            with tempfile.TemporaryDirectory() as folder:
                pictures = list(drawn({**settings, "folder": folder}, cut))
                for row in measured(model, pictures):
                    print(f"| {' | '.join((path.parent.name or path.name, kind, *row))} |", flush=True)


def drawn_for(path: Path) -> dict[str, Any]:
    """Return size and upper end of the pictures that a run was trained on; empty for other data and for a bundle."""
    if not (path / "run.json").is_file():
        return {}
    dataset = load_recipe(RunFolder.existing(path).recipe).dataset
    kept = ("slices", "size", "spacing_mm", "begins_below") if dataset.use == "lumbar_phantom" else ()
    return {key: value for key, value in dataset.settings.items() if key in kept}


def drawn(settings: Mapping[str, Any], cut: Mapping[str, Any]) -> Iterator[Picture]:
    """Draw pictures of one kind; what a person names in them follows from the whole pictures of the same patients."""
    phantom = LumbarPhantom(**{**settings, **cut})
    ends = {key: value for key, value in cut.items() if key not in ("begins_below", "ends_above")}
    whole = LumbarPhantom(**{**settings, **ends, "begins_below": None})
    for case, uncut in zip(phantom.cases(), whole.cases(), strict=True):
        reference, spacing = read_classes(phantom, case)
        before, after = (sizes(classes) for classes in (read_classes(whole, uncut)[0], reference))
        named = named_structures(phantom.atlas, before, after)
        yield Picture(case, reference, spacing, tuple(name for name in phantom.atlas.sequence if name in named))


def read_classes(phantom: LumbarPhantom, case: Case) -> tuple[NDArray[np.uint8], tuple[float, ...]]:
    """Return the class indices [S, H, W] and the spacing of a mask."""
    assert case.mask is not None
    labels = read_labels(case.mask, phantom.atlas.plane)
    return map_labels(labels, phantom.label_map(case), case), labels.geometry.spacing_mm


def sizes(classes: NDArray[np.uint8]) -> dict[int, float]:
    """Return the voxels of each class."""
    return dict(enumerate(np.bincount(classes.ravel()).astype(float).tolist()))


def measured(model: Predictor, pictures: list[Picture]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of one kind of pictures, without run and kind."""
    masks: Mapping[str, Labels] = {p.case.id: model(p.case.image).array for p in pictures}
    yield ("template" if model.reads_text else "none", *cells(model.atlas, pictures, masks), "", "")
    right: Mapping[str, Labels] = {}
    plain: dict[str, dict[str, float]] = {}
    renamed: dict[str, dict[str, float]] = {}
    for text, levels in TEXTS.items():
        stated = {
            picture.case.id: (picture, statement)
            for picture in pictures
            if (statement := shifted(model.atlas, picture.named[0], picture.named[-1], levels))
        }
        if not stated:
            continue
        chosen = [picture for picture, _ in stated.values()]
        control = {
            name: model(picture.case.image, visible=statement, ordered=True).array
            for name, (picture, statement) in stated.items()
        }
        renamed[text] = dsc_of(model.atlas, chosen, control)
        last = mean_dsc(chosen, renamed[text])
        if not model.reads_text:
            yield text, str(len(patients(chosen))), "", "", "", "", last
            continue
        masks = {
            name: model(picture.case.image, visible=statement).array for name, (picture, statement) in stated.items()
        }
        right = right or masks
        plain[text] = dsc_of(model.atlas, chosen, masks)
        obeyed = obedience_of(model.atlas, chosen, right, masks, levels) if levels else ""
        yield text, *cells(model.atlas, chosen, masks), obeyed, last
    erring = [picture for picture in pictures if any(picture.case.id in renamed.get(text, ()) for text in WRONG)]
    if erring:
        expected = [mean_dsc(erring, with_errors(erring, dsc)) if dsc else "" for dsc in (plain, renamed)]
        yield "14 % errors", str(len(patients(erring))), expected[0], "", "", "", expected[1]


def cells(atlas: Atlas, pictures: list[Picture], masks: Mapping[str, Labels]) -> tuple[str, ...]:
    """Return the number of patients, the DSC, the DSC without names and the level-shift rate."""
    namings = [compare_names(masks[picture.case.id], picture.reference, atlas) for picture in pictures]
    without_names = float(np.mean([naming.dsc_without_names for naming in namings]))
    shifts = float(np.mean([naming.shift != 0 for naming in namings]))
    dsc = mean_dsc(pictures, dsc_of(atlas, pictures, masks))
    return str(len(patients(pictures))), dsc, f"{without_names:.3f}", f"{shifts:.2f}"


def dsc_of(atlas: Atlas, pictures: list[Picture], masks: Mapping[str, Labels]) -> dict[str, float]:
    """Return the mean DSC of each picture over the structures that a person names in it."""
    dsc = {}
    for picture in pictures:
        name, reference = picture.case.id, picture.reference
        structures = [index for index in (atlas[named].index for named in picture.named) if (reference == index).any()]
        scores = score(masks[name], reference, spacing=picture.spacing, structures=structures, metrics=["dsc"])
        dsc[name] = float(np.mean([result.values["dsc"] for result in scores.values()]))
    return dsc


def obedience_of(
    atlas: Atlas, pictures: list[Picture], right: Mapping[str, Labels], moved: Mapping[str, Labels], levels: int
) -> str:
    """Return the obedience to a text that was moved by some levels, with its interval."""
    compared = [
        ComparedPicture(
            picture.case.id,
            picture.case.patient,
            shows_landmark(picture.reference, atlas),
            obedience(right[picture.case.id], moved[picture.case.id], atlas, levels),
        )
        for picture in pictures
    ]
    return in_words(summarise(compared)[0].interval)


def with_errors(pictures: list[Picture], dsc: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the expected DSC of each picture, from those of each text, if the person sometimes errs by one level."""
    expected = {}
    for picture in pictures:
        name = picture.case.id
        wrong = float(np.mean([dsc[text][name] for text in WRONG if name in dsc.get(text, ())]))
        expected[name] = (1 - ERRORS) * dsc["right"][name] + ERRORS * wrong
    return expected


def patients(pictures: list[Picture]) -> set[str]:
    """Return the patients of pictures."""
    return {picture.case.patient for picture in pictures}


def mean_dsc(pictures: list[Picture], dsc: Mapping[str, float]) -> str:
    """Return the mean over pictures, then over patients, with its interval."""
    by_patient: dict[str, list[float]] = defaultdict(list)
    for picture in pictures:
        by_patient[picture.case.patient].append(dsc[picture.case.id])
    means = np.array([np.mean(values) for values in by_patient.values()]).reshape(-1, 1)
    return in_words(macro_mean_interval(means, np.ones_like(means)))


def in_words(interval: Interval) -> str:
    """Return a mean and its interval, which a single patient does not have."""
    bounds = "" if math.isnan(interval.low) else f" ({interval.low:.3f} to {interval.high:.3f})"
    return f"{interval.value:.3f}{bounds}"


if __name__ == "__main__":
    main()
