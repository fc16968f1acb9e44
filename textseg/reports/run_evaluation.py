"""Evaluate a run and write the results into its folder: masks, scores, run.json and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch

from textseg.contracts import Source
from textseg.drawing.side_by_side import best_median_worst
from textseg.errors import RunError, suggestion
from textseg.evaluation.evaluate import (
    CaseResult,
    EvaluationResult,
    evaluate,
    headline,
    load_segmenter,
    rebuild,
    stated_source,
)
from textseg.evaluation.fields_of_view import WindowEvaluation, evaluate_windows
from textseg.inference.structure_finder import write_visible
from textseg.levels.level_naming import write_level_naming
from textseg.metrics.definitions import recorded_kernel
from textseg.metrics.scores import Score, StatedSource, summarise, write_scores
from textseg.metrics.window_scores import WindowMeans, means_as_json, summarise_windows, write_window_scores
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import dump, load_trained_recipe
from textseg.reports.run_report import example_picture, window_picture, write_report
from textseg.runs.experiment import Experiment
from textseg.runs.folder import RunFolder
from textseg.runs.identity import changed_facts
from textseg.runs.saved_predictions import keeping
from textseg.runs.task_record import read_task, write_task
from textseg.system import distributed
from textseg.system.devices import chosen_device
from textseg.system.files import write_atomically
from textseg.system.progress import counting, progress_bar
from textseg.text.embeddings import write_prompt_table
from textseg.text.reading import read_cases, readings, unstated


def evaluate_and_write(
    experiment: Experiment,
    segmenter: Segmenter,
    folder: RunFolder,
    target: RunFolder,
    *,
    source: Source | None,
    device: torch.device,
    named: str | None = None,
) -> list[Score]:
    """Score the test cases with the prompts of `source`, and write masks, scores.csv, run.json and report.html.

    `target` is the `folder` of the run, or a folder below it for another source of prompts. `named` contains the
    structures that a person named for `interactive` prompts. Several processes share the cases. Only the first process
    writes, and the others return no scores.
    """
    # Scores in windows have their own texts, so another source of prompts would only repeat them.
    windowed = bool(experiment.recipe.evaluation.fields_of_view) and target.path == folder.path
    if distributed.rank():
        evaluate(experiment, segmenter, source=source, device=device, named=named)
        if windowed:
            evaluate_windows(experiment, segmenter, device=device)
        return []
    count = len(experiment.cases["test"])
    with progress_bar() as bar, keeping(target, experiment.atlas) as keep:
        task = bar.add_task("evaluating", total=count)

        def on_case(result: CaseResult) -> None:
            case = result.prepared.case
            keep(case, result.prediction, result.geometry, experiment.dataset.label_map(case))
            bar.update(task, advance=1)

        result = evaluate(experiment, segmenter, source=source, device=device, named=named, on_case=on_case)
    windows = None
    if windowed:
        with counting("evaluating fields of view") as report:
            windows = evaluate_windows(experiment, segmenter, device=device, progress=report)
    means, window_pictures = [], []
    if windows is not None:
        means = summarise_windows(windows.scores, experiment.structures_in_training)
        ranked = best_median_worst({case: example.dsc for case, example in windows.examples.items()})
        window_pictures = [
            window_picture(windows.examples[case], experiment.atlas, rank) for case, rank in ranked.items()
        ]
    record = _write_numbers(result, windows, means, experiment, folder, target, source=source, named=named)
    typical = best_median_worst({case: example.dsc for case, example in result.examples.items()})
    # The report is written last: if it exists, the scores are complete.
    write_report(
        target.path,
        run=record,
        scores=result.scores,
        group_scores=result.group_scores,
        overlays=[example_picture(result.examples[case], experiment.atlas, rank) for case, rank in typical.items()],
        prompts=_prompt_examples(experiment, result.prompts),
        history=folder.read_history(),
        windows=means,
        window_pictures=window_pictures,
        further=experiment.registry.report_sections(experiment.run(target.path, record)),
    )
    run = experiment.run(target.path, record)
    experiment.registry.notify("textseg_evaluated", run, scores=tuple(result.scores))
    return result.scores


def _write_numbers(
    result: EvaluationResult,
    windows: WindowEvaluation | None,
    window_means: Sequence[WindowMeans],
    experiment: Experiment,
    folder: RunFolder,
    target: RunFolder,
    *,
    source: Source | None,
    named: str | None,
) -> dict[str, Any]:
    """Write the tables of an evaluation and its part of run.json; returns the record."""
    write_scores(target.scores, result.scores)
    write_scores(target.group_scores, result.group_scores)
    settings, trained = experiment.recipe.evaluation, experiment.structures_in_training
    overall = summarise(result.scores, structures=trained).overall
    trained_by = folder.read()
    if target.path != folder.path:
        trained_by.pop("further_evaluations", None)
    facts = {
        **trained_by,
        "scored_with": changed_facts(trained_by, experiment.component_facts()),
        "evaluation": {**settings.model_dump(mode="json"), "prompts": result.prompts or "none"},
        "metrics": {metric.name: asdict(metric.facts(settings.unit)) for metric in experiment.metrics},
        "metrics_kernel": recorded_kernel(settings.kernel),
        "structures_in_training": trained,
        "groups": {name: list(members) for name, members in experiment.atlas.groups.items()},
        "enumeration": write_level_naming(target.enumeration, result.naming),
        "test": {metric: mean.value if mean.n else None for metric, mean in overall.items()},
    }
    if windows is not None:
        write_window_scores(target.fields_of_view, windows.scores)
        facts["fields_of_view"] = means_as_json(window_means)
    else:  # an earlier evaluation with other settings may have left its windows
        target.fields_of_view.unlink(missing_ok=True)
        facts |= {"fields_of_view": None} if facts.get("fields_of_view") else {}
    if named:
        facts["named"] = named
    if experiment.reports and source == "report":
        facts["reports"] = experiment.report_counts
    stated = [(prepared, v) for prepared, v in result.visibilities if v.source == source and v.counted]
    if source in ("interactive", "predicted", "report") and stated:
        facts["visible"] = write_visible(target.visible, experiment.atlas, stated)
    record = target.update(**facts)
    if target.path != folder.path and experiment.text is not None and (prompts := result.prompts) is not None:
        # A case without a report or a statement got the template.
        used = {source, *(visibility.source for _, visibility in result.visibilities)}
        rows = [
            row if row.source != source else replace(row, source=prompts)
            for row in experiment.text.rows
            if row.source in used
        ]
        write_prompt_table(target.prompts, rows)
    return record


def evaluate_run(
    run: Path,
    *,
    prompts: str | None = None,
    visible: str | None = None,
    fields_of_view: Sequence[float] | None = None,
    overrides: Sequence[str] = (),
    trust_code: bool = False,
) -> Path:
    """Evaluate a finished run again, with the prompts of its recipe or of another source.

    The scores of another source are written to a folder below the run, which `compare` reads like a run. `visible`
    contains the structures that a person named for `interactive` prompts; see `textseg.text.reading.read_cases`.
    `fields_of_view` and `overrides` replace settings of the recipe, also in the run's recipe.yaml if its own scores are
    written. `trust_code` lets the recipe run code of a model. Raises RunError for an unknown source, and for data that
    differ from those of the training.
    """
    folder = RunFolder.existing(run)
    overrides = [*overrides, *_overrides(fields_of_view)]
    recipe = load_trained_recipe(folder.recipe, overrides, trust_code=trust_code)
    if prompts is not None and prompts not in get_args(Source):
        raise RunError(f"--prompts: there is no source '{prompts}'.{suggestion(prompts, get_args(Source))}")
    if prompts is not None and recipe.prompts_read is None:
        raise RunError(f"'{folder.path}' reads no text, so there are no '{prompts}' prompts to give it.")
    source = cast("Source | None", prompts or (recipe.prompts_read.evaluation if recipe.prompts_read else None))
    if fields_of_view is not None and recipe.prompts_read is not None and source != recipe.prompts_read.evaluation:
        raise RunError(
            f"--fields-of-view has its own texts, so it goes with no --prompts {source}. Leave out one of them."
        )
    if visible is not None and source != "interactive":
        raise RunError(f"--visible goes with --prompts interactive; '{source}' prompts need no person.")
    with counting("preparing slices") as report:
        experiment = rebuild(recipe, folder, also=[source] if source else [], named=visible, progress=report)
    if source == "report":
        _check_length(experiment, folder)
        print(experiment.report_line)
    if visible is not None:
        test_cases = [prepared.case.id for prepared in experiment.cases["test"]]
        read = read_cases(experiment.atlas, visible, test_cases)
        print(*readings(experiment.atlas, read), *unstated(test_cases, read, "template"), sep="\n")
    write_task(folder.task, experiment.record)  # runs of an earlier version lack it
    device = chosen_device()
    segmenter = load_segmenter(experiment, folder).to(device)
    stated = stated_source(source, visible)
    target = folder if source == experiment.evaluation_source else folder.evaluation(stated)
    with target.lock():
        earlier, before = folder.recipe.read_bytes(), _written(target)
        if overrides and target is folder:  # the recipe says how the scores beside it were made
            write_atomically(folder.recipe, dump(recipe))
        try:
            scores = evaluate_and_write(
                experiment, segmenter, folder, target, source=source, device=device, named=visible
            )
        except BaseException:
            if _written(target) == before:
                write_atomically(folder.recipe, earlier)
            raise
    print(headline(scores, experiment.structures_in_training, stated))
    print(f"report: {target.report}")
    return target.path


def _written(target: RunFolder) -> int | None:
    """Return the time at which the scores of a folder were written, in nanoseconds."""
    return target.scores.stat().st_mtime_ns if target.scores.exists() else None


def _check_length(experiment: Experiment, folder: RunFolder) -> None:
    """Raise RunError for reports that are longer than the texts that a model was built for."""
    trained, needed = read_task(folder.task).task.text_length, experiment.task.text_length
    if trained is not None and needed is not None and needed > trained:
        raise RunError(
            f"With these reports the longest text has {needed} tokens, and '{folder.path}' was trained on texts of at "
            f"most {trained}. Shorten the reports, or train a run with them."
        )


def _overrides(fields_of_view: Sequence[float] | None) -> list[str]:
    if fields_of_view is None:
        return []
    return [f"evaluation.fields_of_view=[{', '.join(map(str, fields_of_view))}]"]


def _prompt_examples(experiment: Experiment, prompts: StatedSource | None) -> list[dict[str, Any]]:
    """Return the rows of the prompt table; `interactive` becomes `simulated` if no person named the structures."""
    if experiment.text is None or prompts is None:
        return []
    rows = [asdict(row) for row in experiment.text.rows]
    return [
        {**row, "source": prompts} if prompts == "simulated" and row["source"] == "interactive" else row for row in rows
    ]
