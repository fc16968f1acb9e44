"""Score masks of another tool, with the same code and the same policy as predictions of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from textseg.contracts import IGNORED, Atlas, Case, Dataset, LabelMap, Source
from textseg.data.preparation import map_labels
from textseg.errors import DataError, one_line
from textseg.evaluation.scoring import score_maps
from textseg.inference.files import find_inputs
from textseg.levels.level_naming import LevelNaming, compare_names, write_level_naming
from textseg.levels.obedience import ComparedPicture, as_json, obedience, shows_landmark, write_obedience
from textseg.metrics.definitions import recorded_kernel
from textseg.metrics.named import build_metrics
from textseg.metrics.scores import Score, write_scores
from textseg.recipe.schema import EvaluationSettings
from textseg.runs.folder import RunFolder
from textseg.runs.saved_predictions import keeping
from textseg.system.files import content_hash
from textseg.volumes.files import READABLE, Volume, file_hash, is_named, read_labels, stem
from textseg.volumes.label_tables import PART, has_changed, own_case, own_statement, sidecar_of, value_names
from textseg.volumes.labels import without_ignored
from textseg.volumes.pictures import SUFFIX as PNG

LISTED = 5  # files that a message names


@dataclass(frozen=True)
class ScoredMasks:
    """The scores of the masks in a folder."""

    scores: list[Score]
    missing: list[str]  # cases without a mask
    extra: list[str]  # files that belong to no case
    failed: Mapping[str, str]  # cases in no score, each with the reason


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
) -> ScoredMasks:
    """Score the masks in `predictions` against those of a data set, and write scores.csv and run.json into `output`.

    A mask is named by the id of its case, in upper or lower case, or by its sidecar. Its values are those that its
    sidecar or the table in its header names, else those of the data set. A case without a mask counts as an empty
    prediction: every structure is missed. A case whose mask or reference can't be read, lies on another grid or has an
    unknown value is in no score. With `patients`, only the cases of these patients are scored. The obedience of
    `compared` pictures, from `compare_moved_masks`, is written, too.

    Raises DataError if no file belongs to a case, if no case can be scored, and if `output` is the folder of a run.
    """
    if settings.space != "native":
        raise DataError("evaluation.space: masks of another tool are scored in their own grid; write 'native'.")
    folder = RunFolder(output)
    if folder.record.exists() and not folder.read().get("predictions"):
        raise DataError(f"'{output}' is the folder of a run. Name another one.")
    metrics = build_metrics(settings.metrics, dimensions=3 if settings.per == "volume" else 2, kernel=settings.kernel)
    cases, files, extra = _choose(predictions, dataset, patients)
    missing = [case.id for case in cases if _key(case.id) not in files]
    scores, group_scores, names, contents = list[Score](), list[Score](), dict[str, LevelNaming](), []
    failed, named, sources = dict[str, str](), dict[str, str](), set[str]()
    with keeping(folder, dataset.atlas) as keep:
        for done, case in enumerate(cases, start=1):
            progress(done, len(cases))
            path = files.get(_key(case.id))
            try:
                labels = read_labels(case.mask or "", dataset.atlas.plane)
                reference = map_labels(labels, dataset.label_map(case), case)
                prediction = np.zeros_like(reference) if path is None else _read(path, labels, dataset, case)
            except Exception as error:  # whatever a damaged file does to a library: the others are scored all the same
                failed[case.id] = one_line(error, f"'{path or case.mask}' can't be scored")
                continue
            keep(case, prediction, labels.geometry, dataset.label_map(case))
            reference, prediction = without_ignored(reference, prediction)
            maps, spacing = (prediction, reference), labels.spacing_mm
            statement = {} if path is None else own_statement(path)
            source = str(statement["source"]) if statement.get("source") in get_args(Source) else "none"
            sources.add(source)
            if source == "interactive":
                named[case.id] = str(statement.get("visible", ""))
            rows, merged = score_maps(settings, dataset.atlas, case, maps, spacing, source=source, metrics=metrics)
            scores += rows
            group_scores += merged
            names[case.id] = compare_names(*maps, dataset.atlas)
            contents.append([case.id, file_hash(case.mask or ""), sorted(dataset.label_map(case).items())])
        if len(failed) == len(cases):
            raise DataError(next(iter(failed.values())))
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
        failed=failed,
        hashes={"data": content_hash(contents), "split": split, "preparation": "none: masks of another tool"},
        evaluation={**settings.model_dump(mode="json"), "prompts": "+".join(sorted(sources))},
        named=named or None,
        obedience=as_json(compared) if compared else None,
        metrics={metric.name: asdict(metric.facts(settings.unit)) for metric in metrics},
        metrics_kernel=recorded_kernel(settings.kernel),
        enumeration=write_level_naming(folder.enumeration, names),
        structures_in_training=[structure for structure in dataset.atlas.names if structure in shown],
        groups={name: list(members) for name, members in dataset.atlas.groups.items()},
    )
    return ScoredMasks(scores, missing, extra, failed)


def compare_moved_masks(
    right: Path,
    moved: Path,
    dataset: Dataset,
    levels: int,
    *,
    patients: Collection[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[ComparedPicture], list[str], dict[str, str]]:
    """Return the obedience of the masks in `moved`, and the cases without it.

    These are the cases of which a folder has no mask, and those that can't be compared, each with the reason.

    The masks in `right` were made under a right text, those in `moved` under that text moved by `levels`, downwards
    positive. Names, values and geometry are as for `evaluate_masks`; the annotation only says which pictures show a
    landmark.

    Raises DataError for a data set without an order of levels, and if the folders have no case in common.
    """
    atlas = dataset.atlas
    if not levels:
        raise DataError("--levels: a text that is moved by 0 levels is the right one. Write 1 (down) or -1 (up).")
    if not atlas.ordered:
        raise DataError(f"--moved: atlas '{atlas.name}' has no order of levels, so no text can be moved by levels.")
    cases, files, _ = _choose(right, dataset, patients)
    _, moved_files, _ = _choose(moved, dataset, patients)
    both = [case for case in cases if _key(case.id) in files.keys() & moved_files.keys()]
    if not both:
        raise DataError(f"'{right}' and '{moved}' have no case in common, so no two masks can be compared.")
    pictures, failed = list[ComparedPicture](), dict[str, str]()
    for done, case in enumerate(both, start=1):
        progress(done, len(both))
        try:
            labels = read_labels(case.mask or "", atlas.plane)
            masks = [_read(folder[_key(case.id)], labels, dataset, case) for folder in (files, moved_files)]
            reference, first, second = without_ignored(map_labels(labels, dataset.label_map(case), case), *masks)
            landmark = shows_landmark(reference, atlas)
        except Exception as error:
            failed[case.id] = one_line(error, f"the masks of '{case.id}' can't be compared")
            continue
        pictures.append(ComparedPicture(case.id, case.patient, landmark, obedience(first, second, atlas, levels)))
    return pictures, [case.id for case in cases if case not in both], failed


def _choose(
    folder: Path, dataset: Dataset, patients: Collection[str] | None
) -> tuple[list[Case], dict[str, Path], list[str]]:
    """Return the annotated cases of some patients, the files of a folder by lower-case case id, and further files.

    Raises DataError if no file belongs to a case.
    """
    known = [case for case in dataset.cases() if case.mask is not None]
    cases = [case for case in known if patients is None or case.patient in patients]
    files = _files(folder)
    if not any(_key(case.id) in files for case in cases):
        names = ", ".join(case.id for case in cases[:LISTED])
        raise DataError(f"No file in '{folder}' bears the name of a case; these are {names} and so on.")
    return cases, files, sorted(str(files[stem]) for stem in files.keys() - {_key(case.id) for case in known})


def _key(name: str) -> str:
    """Return the name of a case as masks bear it, whether in subfolders or with these in their names."""
    return name.replace("/", "_").lower()


def _files(folder: Path) -> dict[str, Path]:
    """Return the masks of a folder and its subfolders by their cases in lower case.

    A case is that of a mask's sidecar, else the name of the file; subfolders stand before it, as in the ids of cases.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder '{folder}'.")
    files: dict[str, Path] = {}
    for path in find_inputs([str(folder)], masks=True):
        if isinstance(path, Path) and is_named(path, READABLE):
            relative = path.relative_to(folder)
            name = own_case(path) or relative.with_name(stem(path)).as_posix()
            if (first := files.setdefault(_key(name), path)) is not path:
                raise DataError(f"'{first}' and '{path}' are masks of the same case. Keep one.")
    return files


def _read(
    path: Path, reference: Volume, dataset: Dataset, case: Case
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return the class indices of a prediction, in which values that the data set ignores are background.

    Raises DataError if it lies on another grid than its reference.
    """
    labels = read_labels(path, dataset.atlas.plane)
    placed = labels.geometry
    if is_named(path, (PNG,)):  # it says only how many pixels it has
        placed = replace(reference.geometry, size=placed.size, flat=placed.flat)
    if differences := placed.grid_differences(reference.geometry):
        raise DataError(
            f"'{path}' does not lie on its reference '{case.mask}': {'; '.join(differences)}. Resample it with "
            "nearest neighbours; textseg moves no voxel of a mask that it scores."
        )
    label_map = _named(path, labels, dataset.label_map(case), dataset.atlas)
    classes = {value: 0 if index == IGNORED else index for value, index in label_map.items()}
    return map_labels(labels, classes, replace(case, mask=path))


def _named(path: Path, labels: Volume, label_map: LabelMap, atlas: Atlas) -> LabelMap:
    """Return the class indices of the values by the names that the mask gives them; `label_map` where it gives none.

    Raises DataError for a value whose name the atlas lacks, unless it is background in the data set, too.
    """
    names = value_names(path)
    known = {value: structure.index for value, name in names.items() if (structure := atlas.find(name))}
    if not known or all(label_map.get(value) == index for value, index in known.items()):
        return label_map  # names such as "Segment_1" say nothing
    if has_changed(path):
        raise DataError(
            f"'{path}' has changed since '{sidecar_of(path).name}' was written beside it, so it is not known what its "
            "values mean. Predict it again; or move the JSON file away if the mask has the values of the data set."
        )
    for value in np.unique(labels.array).tolist():
        if value and value not in known:
            name = names.get(value)
            whole = atlas.find((name or "").removesuffix(PART))
            by_rule = label_map.get(value)  # of the data set
            if name is not None and by_rule is not None and by_rule in (0, IGNORED, whole and whole.index):
                known[value] = by_rule
                continue
            called = f"'{name}', which atlas '{atlas.name}' lacks" if name else "nothing"
            raise DataError(f"'{path}': it calls its value {value} {called}. Convert it to values of the data set.")
    return {0: 0, **known}
