"""Draw figures of finished runs: predictions, probabilities and features of the same slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textseg.contracts import IGNORED, SegmenterOutput, Source
from textseg.data.preparation import PreparedCase
from textseg.drawing.model_pictures import PixelPlaces, ProbabilityMaps, pixel_png, probability_png
from textseg.drawing.pictures import panels_png
from textseg.drawing.side_by_side import shared_slice, typical_cases
from textseg.errors import RunError, suggestion
from textseg.evaluation.evaluate import load_segmenter, rebuild
from textseg.inference.slices import slice_outputs
from textseg.inference.structure_finder import prompted_slices
from textseg.metrics.scores import read_scores
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_trained_recipe
from textseg.registry.discovery import installed_registry
from textseg.runs.experiment import Experiment
from textseg.runs.folder import RunFolder
from textseg.runs.saved_predictions import KeptPredictions, read_kept
from textseg.system.devices import chosen_device
from textseg.volumes.labels import fullest_slice

PIXELS = 1000  # in a map of features, an equal part for each structure
COLUMNS = 6  # panels in a line
SHOWN = 4  # structures in a figure of probabilities, unless they are named


@dataclass(frozen=True)
class Trained:
    """A run with its data, its best weights, and the prompts that its scores were made with."""

    label: str
    experiment: Experiment
    segmenter: Segmenter
    source: Source | None
    device: torch.device

    def case(self, wanted: str | None) -> PreparedCase:
        """Return a test case by its id, or the first one. Raises RunError for an unknown id."""
        cases = {prepared.case.id: prepared for prepared in self.experiment.cases["test"]}
        prepared = cases.get(wanted) if wanted is not None else next(iter(cases.values()))
        if prepared is None:
            raise RunError(f"'{self.label}' has no test case '{wanted}'.{suggestion(str(wanted), list(cases))}")
        return prepared

    def classes(self, structures: Sequence[str]) -> dict[str, int]:
        """Return the class indices of structures. Raises RunError for a structure that the atlas lacks."""
        atlas = self.experiment.atlas
        classes = {}
        for name in structures:
            if (structure := atlas.find(name)) is None:
                raise RunError(f"--structures: atlas '{atlas.name}' has no '{name}'.{suggestion(name, atlas.names)}")
            classes[structure.name] = structure.index
        return classes

    def outputs(self, prepared: PreparedCase) -> list[SegmenterOutput]:
        """Return the outputs of the model for every slice of a case, batch by batch."""
        slices, _ = prompted_slices(self.experiment, self.segmenter, prepared, self.source, self.device)
        size = self.experiment.recipe.training.batch_size
        return list(slice_outputs(self.segmenter, slices, device=self.device, batch_size=size))


def predictions_figure(
    runs: Sequence[Path],
    *,
    cases: Sequence[str] = (),
    slice_number: int | None = None,
    overrides: Sequence[str] = (),
) -> bytes:
    """Return a PNG of the same slices under every run: image, reference and each prediction.

    `cases` are by default the best, the median and the worst by the mean DSC of all runs, and the slice (0-based) is
    the one whose reference shows most. The predictions are those that the evaluations saved, so no model is loaded.
    Raises RunError for a run without saved predictions, and for runs, cases and slices that do not fit together.
    """
    folders = named(runs)
    kept = {label: _moved(read_kept(folder), folder, overrides) for label, folder in folders.items()}
    scores = {} if cases else {label: read_scores(folder.scores) for label, folder in folders.items()}
    chosen = dict.fromkeys(cases, "") or typical_cases(scores)
    panels = []
    for case, rank in chosen.items():
        shared = shared_slice(kept, case, slice_number)
        title = f"case {case}, slice {shared.index + 1} of {shared.count}"
        panels.append(shared.panels(f"{rank}: {title}" if rank else title))
    return panels_png(panels, columns=COLUMNS, panel_inches=2.6, paper="white")


def probabilities_figure(
    runs: Sequence[Path],
    *,
    case: str | None = None,
    slice_number: int | None = None,
    structures: Sequence[str] = (),
    overrides: Sequence[str] = (),
    trust_code: bool = False,
) -> bytes:
    """Return a PNG of softmax probabilities over one slice, at the prepared size, with a line for each run.

    By default it shows the first test case and the largest structures of the slice. Raises RunError for an unknown
    case, slice or structure, and for masks of another tool, which have no model.
    """
    lines, title = list[ProbabilityMaps](), ""
    for trained in trained_runs(runs, overrides, trust_code=trust_code):
        prepared = trained.case(case)
        mask = np.asarray(prepared.mask)
        if slice_number is not None and not 0 <= slice_number < len(mask):
            raise RunError(f"Case '{prepared.case.id}' has slices 1 to {len(mask)}, and no {slice_number + 1}.")
        index = fullest_slice(mask) if slice_number is None else slice_number
        if not structures:
            count = trained.experiment.atlas.class_count
            sizes = np.bincount(mask[index].ravel(), minlength=count)[1:count]
            largest = sorted(int(number) for number in np.argsort(-sizes, kind="stable")[:SHOWN])
            structures = [trained.experiment.atlas.structures[number].name for number in largest]
        classes = trained.classes(structures)
        logits = torch.cat([output.logits.float().cpu() for output in trained.outputs(prepared)])[index]
        probabilities = logits.softmax(0).numpy()
        image, aspect = (
            np.asarray(prepared.image[index, 0], np.float32),
            prepared.spacing_mm[1] / prepared.spacing_mm[2],
        )
        maps = {name: probabilities[number] for name, number in classes.items()}
        references = {name: mask[index] == number for name, number in classes.items()}
        lines.append(ProbabilityMaps(trained.label, image, maps, references, aspect))
        title = title or f"Probability in case {prepared.case.id}, slice {index + 1} of {len(mask)}"
    return probability_png(title, lines)


def features_figure(
    runs: Sequence[Path], *, cases: Sequence[str] = (), overrides: Sequence[str] = (), trust_code: bool = False
) -> bytes:
    """Return a PNG of pixels of the test cases in a plane, by t-SNE of their features, coloured by structure.

    The features are the finest fused ones, or the logits of a network without fused features. An equal number of
    pixels is drawn from each structure, the same pixels for runs of equal preparation. Raises RunError as
    `probabilities_figure` does, and without scikit-learn.
    """
    maps, names = list[PixelPlaces](), dict[int, str]()
    for trained in trained_runs(runs, overrides, trust_code=trust_code):
        chosen = [trained.case(case) for case in cases] or trained.experiment.cases["test"]
        draws = draw_pixels([np.asarray(prepared.mask) for prepared in chosen], PIXELS)
        features, description = [], ""
        for prepared, places in zip(chosen, draws, strict=True):
            values, description = _features(trained.outputs(prepared), places)
            features.append(values)
        classes = [np.asarray(prepared.mask)[tuple(places.T)] for prepared, places in zip(chosen, draws, strict=True)]
        maps.append(PixelPlaces(trained.label, description, _tsne(np.concatenate(features)), np.concatenate(classes)))
        names |= {structure.index: structure.name for structure in trained.experiment.atlas.structures}
    return pixel_png("Pixels of the test, by t-SNE of their features", maps, names)


def _moved(kept: KeptPredictions, folder: RunFolder, overrides: Sequence[str]) -> KeptPredictions:
    """Return saved predictions whose scans are those of the data set that `--set` values name."""
    if not overrides:
        return kept
    dataset = load_trained_recipe(folder.trained_in.recipe, overrides, builds=["dataset"]).dataset
    reader = installed_registry().build("dataset", dataset.use, settings=dataset.settings)
    cases = {case.id: case for case in reader.cases()}
    files = {
        name: replace(case, image=cases[name].first, mask=cases[name].mask or case.mask)
        for name, case in kept.cases.items()
        if name in cases
    }
    return replace(kept, cases={**kept.cases, **files})


def draw_pixels(masks: Sequence[NDArray[np.uint8]], count: int) -> list[NDArray[np.int64]]:
    """Return indices [N, 3] of pixels for each mask [S, H, W]: about `count` in all, an equal part for each class.

    Ignored pixels are left out.
    """
    indices = [np.argwhere(np.ones(mask.shape, bool)) for mask in masks]
    owner = np.repeat(np.arange(len(masks)), [len(pixels) for pixels in indices])
    everywhere = np.concatenate(indices)
    classes = np.concatenate([mask.ravel() for mask in masks])
    random, present = np.random.default_rng(0), np.unique(classes[classes != IGNORED])
    each = max(1, count // len(present))
    members = [np.flatnonzero(classes == index) for index in present]
    drawn = [random.choice(pixels, min(len(pixels), each), replace=False) for pixels in members]
    chosen = np.sort(np.concatenate(drawn))
    return [everywhere[chosen[owner[chosen] == number]] for number in range(len(masks))]


def _features(outputs: Sequence[SegmenterOutput], places: NDArray[np.int64]) -> tuple[NDArray[np.float64], str]:
    """Return features [N, C] at places [N, 3] of the prepared slices, and their description."""
    fused = bool(outputs[0].fused_features)
    maps: list[Tensor] = [output.fused_features[0] if fused else output.logits for output in outputs]
    values = torch.cat([level.float().cpu() for level in maps])  # [S, C, h, w]
    # Feature maps keep the padded size, and padding is at the bottom and to the right: strides are whole numbers.
    height, width = torch.cat([output.logits for output in outputs]).shape[-2:]
    strides = max(1, round(height / values.shape[-2])), max(1, round(width / values.shape[-1]))
    rows = np.minimum(places[:, 1] // strides[0], values.shape[-2] - 1)
    columns = np.minimum(places[:, 2] // strides[1], values.shape[-1] - 1)
    features = values[torch.from_numpy(places[:, 0]), :, torch.from_numpy(rows), torch.from_numpy(columns)]
    return features.double().numpy(), f"{values.shape[1]} {'fused features' if fused else 'logits'}"


def _tsne(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a place [N, 2] for each of the points [N, D], near those of its neighbours; equal points stay together."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        advice = "Install it with: pip install 'textseg[figures]'"
        raise RunError(f"--of features needs scikit-learn ({error}). {advice}") from None
    if len(points) < 4 or not np.ptp(points, axis=0).any():
        return np.zeros((len(points), 2))
    # From the principal components and without trees, so that the same run always gives the same picture.
    plane = TSNE(init="pca", method="exact", perplexity=min(30.0, (len(points) - 1) / 3), random_state=0)
    return np.asarray(plane.fit_transform(points), np.float64)


def named(runs: Sequence[Path]) -> dict[str, RunFolder]:
    """Return runs by distinct names; equal names get seed, fold, prompts or the folder added."""
    folders = list({folder.path.resolve(): folder for folder in map(RunFolder.existing, runs)}.values())
    facts = [folder.read() for folder in folders]
    sources = [_prompts(record) for record in facts]
    labels = [
        f"{record.get('name', folder.path.name)}{' ORACLE' if source == 'ground_truth' else ''}"
        for record, folder, source in zip(facts, folders, sources, strict=True)
    ]
    details = (
        [f"seed {record.get('seed')}" for record in facts],
        [f"fold {record.get('fold')}" for record in facts],
        [f"{source.replace('_', ' ')} prompts" for source in sources],
        [str(folder.path) for folder in folders],
    )
    for detail in details:
        pairs = list(zip(labels, detail, strict=True))
        variants = Counter(label for label, _ in set(pairs))
        labels = [f"{label}, {text}" if variants[label] > 1 else label for label, text in pairs]
    return dict(zip(labels, folders, strict=True))


def _prompts(record: Mapping[str, Any]) -> str:
    """Return the source of the prompts that run.json states."""
    return str((record.get("evaluation") or {}).get("prompts", "none"))


def trained_runs(runs: Sequence[Path], overrides: Sequence[str] = (), *, trust_code: bool = False) -> Iterator[Trained]:
    """Load one run after the other; raises RunError for masks of another tool, and for changed data."""
    device = chosen_device()
    for label, folder in named(runs).items():
        facts = folder.read()
        if facts.get("predictions"):
            raise RunError(f"'{folder.path}' holds masks of another tool: there is no model to look into.")
        prompts, home = _prompts(facts), folder.trained_in
        source = cast("Source | None", prompts if prompts in get_args(Source) else None)
        recipe = load_trained_recipe(home.recipe, overrides, trust_code=trust_code)
        experiment = rebuild(recipe, home, also=[source] if source else [])
        segmenter = load_segmenter(experiment, home).to(device)
        yield Trained(label, experiment, segmenter, source, device)
