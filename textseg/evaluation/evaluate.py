"""From a checkpoint to scores: one row per case (or slice), structure and metric."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

from textseg.contracts import Source, Visibility
from textseg.data.preparation import PreparedCase
from textseg.drawing.pictures import OverlayPicture, fullest_slice
from textseg.drawing.side_by_side import best_median_worst
from textseg.errors import RunError, suggestion
from textseg.evaluation.scoring import label_maps, score_case
from textseg.inference.slices import CasePrediction, predict_case
from textseg.inference.structure_finder import told_slices, write_visible
from textseg.levels.level_naming import Enumeration, enumerate_structures, write_enumeration
from textseg.metrics.definitions import fastest_kernel, score
from textseg.metrics.scores import Score, Told, summarise, write_scores
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_recipe
from textseg.reports.run_report import write_report
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder, first_line
from textseg.runs.saved_predictions import Keep, keeping
from textseg.runs.task_record import write_task
from textseg.system import distributed
from textseg.system.messages import counted
from textseg.system.progress import counting, progress_bar
from textseg.text.embeddings import write_prompt_table
from textseg.volumes.files import read_labels, read_volume

ALWAYS_EQUAL = ("data", "split", "preparation")  # hashes of what a run must be evaluated on


@dataclass(frozen=True)
class CaseResult:
    """A test case with what was predicted, and its mean DSC over the structures that it shows."""

    prepared: PreparedCase
    prediction: CasePrediction
    dsc: float
    said: Visibility | None = None  # by the prompts, of the whole volume


_Scored = tuple[CasePrediction, Visibility | None, list[Score], list[Score], Enumeration]


@dataclass(frozen=True)
class Validation:
    """How a model does on the validation cases while it is trained."""

    dsc: float  # mean over structures
    groups: Mapping[str, float] = field(default_factory=dict)  # the same over the structures of each group
    pictures: Sequence[OverlayPicture] = ()


def evaluate(
    experiment: Experiment,
    segmenter: Segmenter,
    folder: RunFolder,
    target: RunFolder,
    *,
    source: Source | None,
    device: torch.device,
    named: str | None = None,
) -> list[Score]:
    """Score the test cases with the prompts of `source`; write scores.csv, run.json and report.html into `target`.

    `target` is the run's own `folder`, or one below it for another source of prompts. `named` is what a person named
    for `interactive` prompts; without it the rows say `simulated`. Of several processes, each predicts and scores its
    part of the cases, and the first one writes; the others get no scores.
    """
    told = told_by(source, named)
    settings = experiment.recipe.evaluation
    cases = experiment.cases["test"]
    scores: list[Score] = []
    group_scores: list[Score] = []
    results: dict[str, CaseResult] = {}
    names: dict[str, Enumeration] = {}
    segmenter.eval()

    def scored(prepared: PreparedCase) -> _Scored:
        prediction, said = _predict(experiment, segmenter, prepared, source, device)
        # The pictures are chosen by DSC, also where the recipe doesn't ask for it.
        rows, merged = score_case(experiment, prepared, prediction, told, ("dsc", *settings.metrics))
        maps, _ = label_maps(experiment, prepared, prediction)
        return prediction, said, rows, merged, enumerate_structures(*maps, experiment.atlas)

    in_turns = distributed.in_turns(cases, scored)
    if distributed.rank():
        deque(in_turns, maxlen=0)
        return []
    with progress_bar() as bar, keeping(target, experiment.atlas) as keep:
        for prepared in bar.track(cases, description="evaluating"):
            prediction, said, rows, merged, names[prepared.case.id] = next(in_turns)
            _keep(keep, experiment, prepared, prediction)
            dsc = [row.value for row in rows if row.metric == "dsc" and row.status in ("ok", "missed")]
            results[prepared.case.id] = CaseResult(prepared, prediction, float(np.mean(dsc)) if dsc else 0.0, said)
            scores += [row for row in rows if row.metric in settings.metrics]
            group_scores += [row for row in merged if row.metric in settings.metrics]
    write_scores(target.scores, scores)
    write_scores(target.group_scores, group_scores)
    overall = summarise(scores, structures=experiment.structures_in_training).overall
    facts = {
        **folder.read(),
        "evaluation": {**settings.model_dump(mode="json"), "prompts": told or "none"},
        "metrics_kernel": fastest_kernel(),
        "structures_in_training": experiment.structures_in_training,
        "groups": {name: list(members) for name, members in experiment.atlas.groups.items()},
        "enumeration": write_enumeration(target.enumeration, names),
        "test": {metric: mean.value if mean.n else None for metric, mean in overall.items()},
    }
    if named:
        facts["named"] = named
    if source in ("interactive", "predicted"):
        of_volumes = [(result.prepared, result.said) for result in results.values() if result.said is not None]
        facts["visible"] = write_visible(target.visible, experiment.atlas, of_volumes)
    record = target.update(**facts)
    if target.path != folder.path and experiment.text is not None:
        write_prompt_table(
            target.prompts, [replace(row, source=told) for row in experiment.text.rows if told and row.source == source]
        )
    typical = best_median_worst({case: result.dsc for case, result in results.items()})
    write_report(
        target.path,
        run=record,
        scores=scores,
        group_scores=group_scores,
        overlays=[_overlay(experiment, name, results[case]) for case, name in typical.items()],
        prompts=_prompt_examples(experiment, told),
        history=folder.read_history(),
        further=experiment.registry.report_sections(experiment.run(target.path, record)),
    )
    return scores


def evaluate_run(run: Path, *, prompts: str | None = None, visible: str | None = None) -> Path:
    """Evaluate a finished run again, with the prompts of another source where one is named.

    The scores of another source stand below the run, in a folder of their own that `compare` reads like a run.
    `visible` is what a person named for `interactive` prompts: see `textseg.text.visibility.read_statements`. Raises
    RunError for a source that there is not, and for data that are not those of the training.
    """
    folder = RunFolder.existing(run)
    recipe = load_recipe(folder.recipe)
    if prompts is not None and prompts not in get_args(Source):
        raise RunError(f"--prompts: there is no source '{prompts}'.{suggestion(prompts, get_args(Source))}")
    if prompts is not None and recipe.prompts is None:
        raise RunError(f"'{folder.path}' reads no text, so there are no '{prompts}' prompts to give it.")
    source = cast("Source | None", prompts or (recipe.prompts.evaluation if recipe.prompts else None))
    if visible is not None and source != "interactive":
        raise RunError(f"--visible goes with --prompts interactive; '{source}' prompts ask nobody.")
    with counting("preparing slices") as report:
        experiment = build(recipe, also=[source] if source else [], named=visible, progress=report)
    check_data(experiment, folder)
    write_task(folder.task, experiment.record)  # of a run that stems from a version without it
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    segmenter = load_segmenter(experiment, folder).to(device)
    told = told_by(source, visible)
    target = folder if source == experiment.evaluation_source else folder.evaluation(told)
    with target.lock():
        scores = evaluate(experiment, segmenter, folder, target, source=source, device=device, named=visible)
    print(headline(scores, experiment.structures_in_training, told))
    print(f"report: {target.report}")
    return target.path


def told_by(source: Source | None, named: str | None) -> Told | None:
    """What scores say of their prompts: the source, but `simulated` where nobody named what is visible."""
    return "simulated" if source == "interactive" and not named else source


def check_data(experiment: Experiment, folder: RunFolder) -> None:
    """Other data would be split anew, and patients of the training could then be tested on."""
    before, now = folder.read().get("hashes", {}), experiment.hashes()
    if changed := [key for key in ALWAYS_EQUAL if before.get(key) != now[key]]:
        raise RunError(
            f"'{folder.path}' was trained on other data than those at hand: {', '.join(changed)} changed, so patients "
            f"of the training may be among the test. Restore the data of '{experiment.recipe.dataset.use}', or train "
            "again: textseg run RECIPE --fresh"
        )


def load_segmenter(experiment: Experiment, folder: RunFolder, name: str = "best") -> Segmenter:
    """The model of a run with its weights, in evaluation mode; raises RunError for a checkpoint of another model."""
    state = folder.load_checkpoint(name)
    segmenter = experiment.segmenter()
    try:
        segmenter.load_state_dict(state["model"])
    except (KeyError, RuntimeError) as error:
        raise RunError(
            f"'{folder.checkpoint(name)}' does not fit the model of '{folder.recipe}': {first_line(error)} It comes "
            "from another version of a plug-in, or from another run: train again with `textseg run RECIPE --fresh`."
        ) from error
    return segmenter.eval()


def headline(
    scores: Sequence[Score], structures: Sequence[str], told: Told | None, *, of: str = "seen in training"
) -> str:
    """One line for the terminal; `of` says which structures these are."""
    overall = summarise(scores, structures=structures).overall
    means = ", ".join(
        f"{metric} {mean.value:.4f}" if not mean.unit else f"{metric} {mean.value:.2f} {mean.unit}"
        for metric, mean in overall.items()
    )
    first = next(iter(overall.values()))
    cases = len({row.case for row in scores})
    mark = {
        "ground_truth": " ORACLE (prompts from the annotation)",
        "simulated": " SIMULATED (first and last structure from the annotation)",
    }.get(told or "", "")
    return (
        f"test: {means}; mean over {counted(first.n, 'structure')} {of}, {counted(cases, 'case')}, "
        f"{first.missed} missed, {first.spurious} spurious; prompts: {told or 'none'}{mark}"
    )


def validate(
    experiment: Experiment, segmenter: Segmenter, part: str, device: torch.device, *, pictures: int = 0
) -> Validation:
    """Mean DSC over cases and structures, per volume at the prepared size: what chooses the best checkpoint.

    Of the first `pictures` cases, the slice that shows most is kept to be drawn.
    """
    cases, per_structure, drawn = experiment.cases[part], dict[str, list[float]](), list[OverlayPicture]()

    def validated(prepared: PreparedCase) -> tuple[dict[str, float], CasePrediction]:
        prediction, _ = _predict(experiment, segmenter, prepared, experiment.evaluation_source, device, native=False)
        shown = sorted({index for plane in prepared.present for index in plane})
        maps = prediction.prepared, np.asarray(prepared.mask)
        result = score(*maps, spacing=prepared.spacing_mm, structures=shown, metrics=["dsc"])
        return {experiment.atlas.names[i - 1]: found.values["dsc"] for i, found in result.items()}, prediction

    for prepared, (dsc, prediction) in zip(cases, distributed.in_turns(cases, validated), strict=True):
        for name, value in dsc.items():
            per_structure.setdefault(name, []).append(value)
        if len(drawn) < pictures:
            drawn.append(_prepared_overlay(experiment, prepared, prediction, float(np.mean([*dsc.values()] or 0.0))))
    means = {name: float(np.mean(values)) for name, values in per_structure.items()}
    members = experiment.atlas.groups.items()
    within = {group: [means[name] for name in names if name in means] for group, names in members}
    return Validation(
        dsc=float(np.mean(list(means.values()))) if means else 0.0,
        groups={group: float(np.mean(values)) for group, values in within.items() if values},
        pictures=drawn,
    )


def _prepared_overlay(
    experiment: Experiment, prepared: PreparedCase, prediction: CasePrediction, dsc: float
) -> OverlayPicture:
    """The slice that shows most, at the prepared size."""
    reference = np.asarray(prepared.mask)
    index = fullest_slice(reference)
    return OverlayPicture(
        title=f"case {prepared.case.id}, slice {index + 1} of {len(reference)}, mean DSC {dsc:.3f}",
        image=np.asarray(prepared.image[index], np.float32),
        reference=reference[index],
        prediction=prediction.prepared[index],
        names={structure.index: structure.name for structure in experiment.atlas.structures},
        pixel_aspect=prepared.spacing_mm[1] / prepared.spacing_mm[2],
    )


def _predict(
    experiment: Experiment,
    segmenter: Segmenter,
    prepared: PreparedCase,
    source: Source | None,
    device: torch.device,
    *,
    native: bool = True,
) -> tuple[CasePrediction, Visibility | None]:
    slices, said = told_slices(experiment, segmenter, prepared, source, device)
    batch_size = experiment.recipe.training.batch_size
    return predict_case(segmenter, prepared, slices, device=device, batch_size=batch_size, native=native), said


def _keep(keep: Keep, experiment: Experiment, prepared: PreparedCase, prediction: CasePrediction) -> None:
    case = prepared.case
    assert case.mask_path is not None
    assert prediction.native is not None
    geometry = read_labels(case.mask_path, prepared.plane).geometry
    keep(case, prediction.native, geometry, experiment.dataset.label_map(case))


def _overlay(experiment: Experiment, rank: str, result: CaseResult) -> OverlayPicture:
    """The slice that shows most, at the file's own size."""
    prepared = result.prepared
    assert result.prediction.native is not None
    reference = prepared.native_mask(experiment.dataset.label_map(prepared.case))
    index = fullest_slice(reference)
    spacing = prepared.native_spacing_mm
    return OverlayPicture(
        title=f"{rank}: case {prepared.case.id}, slice {index + 1} of {len(reference)}, mean DSC {result.dsc:.3f}",
        image=read_volume(prepared.case.image_path, prepared.plane).array[index],
        reference=reference[index],
        prediction=result.prediction.native[index],
        names={structure.index: structure.name for structure in experiment.atlas.structures},
        pixel_aspect=spacing[1] / spacing[2],
    )


def _prompt_examples(experiment: Experiment, told: Told | None) -> list[dict[str, Any]]:
    if experiment.text is None or told is None:
        return []
    rows = [asdict(row) for row in experiment.text.rows]
    return [{**row, "source": told} if told == "simulated" and row["source"] == "interactive" else row for row in rows]
