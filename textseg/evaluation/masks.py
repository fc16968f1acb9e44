"""Score masks of another tool, with the same code and the same policy as predictions of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from textseg.contracts import Case, Dataset
from textseg.data.preparation import map_labels
from textseg.errors import DataError
from textseg.evaluation.scoring import score_maps
from textseg.levels.level_naming import LevelNaming, compare_names, write_level_naming
from textseg.levels.obedience import ComparedPicture, as_json, obedience, shows_landmark, write_obedience
from textseg.metrics.definitions import fastest_kernel
from textseg.metrics.scores import Score, write_scores
from textseg.recipe.schema import EvaluationSettings
from textseg.runs.folder import RunFolder
from textseg.runs.saved_predictions import keeping
from textseg.system.files import content_hash
from textseg.volumes.files import SUFFIXES, Volume, file_hash, read_labels

LISTED = 5  # files that a message names


def evaluate_masks(
    predictions: Path,
    dataset: Dataset,
    name: str,
    settings: EvaluationSettings,
    output: Path,
    *,
    patients: Collection[str] | None = None,
    compared: Sequence[ComparedPicture] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Score], list[str], list[str]]:
    """Score the masks in `predictions` against those of a data set, and write scores.csv and run.json into `output`.

    A mask is named by the id of its case, in upper or lower case, and has the label values of the data set. A case
    without a mask counts as an empty prediction: every structure is missed. With `patients`, only the cases of these
    patients are scored. The obedience of `compared` pictures, from `compare_moved_masks`, is written, too. Returns the
    scores, the cases without a mask, and the files that belong to no case.

    Raises DataError if no file belongs to a case, if a mask differs from its reference in geometry or has an unknown
    value, and if `output` is the folder of a run.
    """
    if settings.space != "native":
        raise DataError("evaluation.space: masks of another tool are scored in their own grid; write 'native'.")
    folder = RunFolder(output)
    if folder.record.exists() and not folder.read().get("predictions"):
        raise DataError(f"'{output}' is the folder of a run. Name another one.")
    cases, files, extra = _choose(predictions, dataset, patients)
    missing = [case.id for case in cases if case.id.lower() not in files]
    scores, group_scores, names, contents = list[Score](), list[Score](), dict[str, LevelNaming](), []
    with keeping(folder, dataset.atlas) as keep:
        for done, case in enumerate(cases, start=1):
            labels = read_labels(case.mask_path or "", dataset.atlas.plane)
            reference = map_labels(labels, dataset.label_map(case), case)
            path = files.get(case.id.lower())
            prediction = np.zeros_like(reference) if path is None else _read(path, labels, dataset, case)
            keep(case, prediction, labels.geometry, dataset.label_map(case))
            maps, spacing, metrics = (prediction, reference), labels.spacing_mm, settings.metrics
            rows, merged = score_maps(settings, dataset.atlas, case, maps, spacing, source="none", metrics=metrics)
            scores += rows
            group_scores += merged
            names[case.id] = compare_names(*maps, dataset.atlas)
            contents.append([case.id, file_hash(case.mask_path or ""), sorted(dataset.label_map(case).items())])
            progress(done, len(cases))
    write_scores(folder.scores, scores)
    write_scores(folder.group_scores, group_scores)
    if compared:
        write_obedience(folder.obedience, compared)
    else:  # an earlier score of this folder may have left the file
        folder.obedience.unlink(missing_ok=True)
    shown = {row.structure for row in scores if row.status in ("ok", "missed")}
    split = content_hash(sorted({case.patient for case in cases}))
    folder.update(
        name=name,
        dataset=type(dataset).__name__,
        predictions=str(predictions),
        missing_files=missing,
        hashes={"data": content_hash(contents), "split": split, "preparation": "none: masks of another tool"},
        evaluation={**settings.model_dump(mode="json"), "prompts": "none"},
        obedience=as_json(compared) if compared else None,
        metrics_kernel=fastest_kernel(),
        enumeration=write_level_naming(folder.enumeration, names),
        structures_in_training=[structure for structure in dataset.atlas.names if structure in shown],
        groups={name: list(members) for name, members in dataset.atlas.groups.items()},
    )
    return scores, missing, extra


def compare_moved_masks(
    right: Path,
    moved: Path,
    dataset: Dataset,
    levels: int,
    *,
    patients: Collection[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[ComparedPicture], list[str]]:
    """Return the obedience of the masks in `moved`, and the cases that are left out since a folder has no mask of them.

    The masks in `right` were made under a right text, those in `moved` under that text moved by `levels`, downwards
    positive. Names, values and geometry are as for `evaluate_masks`; the annotation only says which pictures show a
    landmark.

    Raises DataError for a data set without an order of levels, if the folders have no case in common, and for a mask
    that `evaluate_masks` would refuse.
    """
    atlas = dataset.atlas
    if not levels:
        raise DataError("--levels: a text that is moved by 0 levels is the right one. Write 1 (down) or -1 (up).")
    if not atlas.ordered:
        raise DataError(f"--moved: atlas '{atlas.name}' has no order of levels, so no text can be moved by levels.")
    cases, files, _ = _choose(right, dataset, patients)
    _, moved_files, _ = _choose(moved, dataset, patients)
    both = [case for case in cases if case.id.lower() in files.keys() & moved_files.keys()]
    if not both:
        raise DataError(f"'{right}' and '{moved}' have no case in common, so no two masks can be compared.")
    pictures = []
    for done, case in enumerate(both, start=1):
        labels = read_labels(case.mask_path or "", atlas.plane)
        first, second = (_read(folder[case.id.lower()], labels, dataset, case) for folder in (files, moved_files))
        picture = obedience(first, second, atlas, levels)
        landmark = shows_landmark(map_labels(labels, dataset.label_map(case), case), atlas)
        pictures.append(ComparedPicture(case.id, case.patient, landmark, picture))
        progress(done, len(both))
    return pictures, [case.id for case in cases if case not in both]


def _choose(
    folder: Path, dataset: Dataset, patients: Collection[str] | None
) -> tuple[list[Case], dict[str, Path], list[str]]:
    """Return the annotated cases of some patients, the files of a folder by lower-case case id, and further files.

    Raises DataError if no file belongs to a case.
    """
    known = [case for case in dataset.cases() if case.mask_path is not None]
    cases = [case for case in known if patients is None or case.patient in patients]
    files = _files(folder)
    if not any(case.id.lower() in files for case in cases):
        names = ", ".join(case.id for case in cases[:LISTED])
        raise DataError(f"No file in '{folder}' bears the name of a case; these are {names} and so on.")
    return cases, files, sorted(str(files[stem]) for stem in files.keys() - {case.id.lower() for case in known})


def _files(folder: Path) -> dict[str, Path]:
    """Return the volumes of a folder by the lower-case stem of their names."""
    if not folder.is_dir():
        raise DataError(f"There is no folder '{folder}'.")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
        stem = path.name.lower().removesuffix(suffix)
        if suffix and not path.name.startswith(".") and (first := files.setdefault(stem, path)) is not path:
            raise DataError(f"'{first}' and '{path}' are masks of the same case. Keep one.")
    return files


def _read(
    path: Path, reference: Volume, dataset: Dataset, case: Case
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return the class indices of a prediction; raises DataError if its geometry differs from its reference."""
    labels = read_labels(path, dataset.atlas.plane)
    if differences := labels.geometry.differences(reference.geometry):
        raise DataError(
            f"'{path}' does not lie on its reference '{case.mask_path}': {'; '.join(differences)}. Resample it with "
            "nearest neighbours; textseg moves no voxel of a mask that it scores."
        )
    return map_labels(labels, dataset.label_map(case), replace(case, mask_path=path))
