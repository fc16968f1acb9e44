"""`run`: takes a recipe to its report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException

from textseg.data.slices import ShuffledBatches
from textseg.errors import RunError
from textseg.evaluation.evaluate import evaluate, headline, load_segmenter
from textseg.metrics.scores import Score, read_scores
from textseg.models.cost import cost_of_determinism, measure_cost
from textseg.models.segmenter import Segmenter
from textseg.models.stages import divide_epochs
from textseg.recipe.loading import Recipe, TrainingSettings, complete_settings, dump, load_recipe
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder, environment, first_line
from textseg.runs.task_record import write_task
from textseg.system import distributed as processes
from textseg.system.files import cache_folder, write_atomically
from textseg.system.messages import counted
from textseg.system.progress import counting
from textseg.text.embeddings import write_prompt_table
from textseg.training.launching import (
    launched,
    launched_by_textseg,
    launched_rank,
    one_of_several,
    run_command,
    run_together,
)
from textseg.training.loggers import check_loggers, peak_memory, watching
from textseg.training.loop import Training
from textseg.training.number_checks import deterministic, numeric_settings
from textseg.training.resources import told_what_ran_out

LOST_AFTER = timedelta(hours=2)  # how long a process waits for one that neither ends nor answers


def run(
    recipe: Path,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    output: Path = Path("runs"),
    fresh: bool = False,
    dry_run: bool = False,
) -> Path:
    """Take a recipe to its report: prepare, train (or go on), evaluate. Returns the run folder.

    With `training.devices` this waits for the processes that do it, or is one of those that torchrun or SLURM started.
    Raises a TextsegError for what the user can mend.
    """
    resolved = load_recipe(recipe, [*overrides, *([] if seed is None else [f"seed={seed}"])])
    check_loggers(resolved)
    settings, folder = resolved.training, RunFolder.of(resolved, output)
    if dry_run:
        print(dump(resolved), plan(prepared(resolved)), sep="\n")
        return folder.path
    count = settings.devices * settings.nodes
    if count > 1 and not launched():
        if settings.nodes > 1:
            raise RunError(
                f"training.nodes is {settings.nodes}, and nobody has started a process on each. Start the command "
                "with torchrun or srun; see docs/how_to/many_devices.md."
            )
        run_together(run_command(recipe, overrides, seed, output, fresh=fresh, dry_run=False), count)
        return folder.path
    torch.set_num_threads(settings.threads or max(1, torch.get_num_threads() // settings.devices))
    rank = launched_rank() if count > 1 else 0
    with (
        one_of_several(rank) if count > 1 else nullcontext(),
        told_what_ran_out(folder.path, cache_folder(), folder.checkpoint("last")),
    ):
        _run(resolved, folder, rank, fresh=fresh)
        processes.disconnect()
    return folder.path


def _run(resolved: Recipe, folder: RunFolder, rank: int, *, fresh: bool) -> None:
    started = time.monotonic()
    experiment = prepared(resolved) if rank == 0 else None  # the others wait in `launch`, and find it prepared
    if fresh and rank == 0 and folder.path.exists():
        with folder.lock():  # not under the feet of a process that writes it
            print(f"the earlier run stands in {folder.move_aside()}")
    precision, note = _precision(resolved.training.precision)
    with folder.lock() if rank == 0 else nullcontext(), deterministic(resolved.training.deterministic):
        fabric = _connected(resolved.training, precision)
        experiment = experiment or prepared(resolved)
        bound, going_on = _bound(experiment), folder.checkpoint("last").exists()
        if going_on:
            folder.check_bound(bound)
        training = Training(experiment, folder, fabric)
        replanned = training.resume() if going_on else ""
        if processes.gathered(training.finished and _scored(training))[0]:
            if rank == 0:
                _print_result(training, read_scores(folder.scores))
            return
        if rank:
            if not training.finished:
                training.fit()
            _evaluate(training)
            return
        _write_inputs(experiment, folder)
        if not training.finished:  # what stands in the record of a finished run is where its weights come from
            folder.update(
                name=resolved.name,
                seed=resolved.seed,
                fold=resolved.split.fold,
                reference=resolved.reference,
                dataset=resolved.dataset.use,
                precision={"requested": resolved.training.precision, "used": precision, "note": note},
                processes={"devices": resolved.training.devices, "nodes": resolved.training.nodes},
                numerics=numeric_settings(),
                hashes=experiment.hashes(),
                bound=bound,
                settings=complete_settings(resolved, experiment.registry),
                **environment(experiment.components),
                **measure_cost(training.segmenter, experiment.task, fabric.device),
                **_derived(training.segmenter),
            )
            print(plan(experiment), *([note] if note else []), sep="\n")
            if resolved.training.deterministic:
                print(_cost_of_determinism(training))
            if going_on:
                print(f"going on from step {training.progression.step} of {training.total_steps} in {folder.path}")
                if replanned:
                    print(replanned)
        before = folder.update(failure=None)
        experiment.registry.tell("textseg_run_started", experiment.run(folder.path, before))
        try:
            if not training.finished:
                training.fit()
            _record_cost(training, before, started)  # the report shows it
            _evaluate(training)
        except Exception as error:
            folder.update(failure=first_line(error))  # `textseg runs` shows it
            raise
        finally:
            _record_cost(training, before, started)
        experiment.registry.tell("textseg_run_finished", experiment.run(folder.path, folder.read()))


def prepared(recipe: Recipe) -> Experiment:
    """The experiment of a recipe with its data in place, and a bar while they are put there."""
    with counting("preparing slices") as report:
        return build(recipe, progress=report)


def _connected(settings: TrainingSettings, precision: Any) -> Fabric:
    """The device of this process, and the way to the others; raises RunError for devices that aren't there."""
    several = settings.devices * settings.nodes > 1
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # else it counts the processes on stderr
    try:
        fabric = Fabric(
            accelerator="auto",
            devices=settings.devices,
            num_nodes=settings.nodes,
            # A stage of a network may leave parameters without a gradient.
            strategy=DDPStrategy(find_unused_parameters=True, timeout=LOST_AFTER) if several else "auto",
            plugins=[LightningEnvironment()] if several and launched_by_textseg() else None,
            precision=precision,
        )
        fabric.launch()
    except (MisconfigurationException, ValueError) as error:
        raise RunError(f"training.devices, training.nodes: {first_line(error)}") from error
    if several:
        processes.connect()
    return fabric


def plan(experiment: Experiment) -> str:
    """What a run is about to do: cases, slices, prompts, parameters."""
    lines = [
        f"{part}: {counted(len({case.case.patient for case in cases}), 'patient')}, {counted(len(cases), 'case')}, "
        f"{counted(sum(case.slice_count for case in cases), 'slice')}"
        for part, cases in experiment.cases.items()
    ]
    if experiment.text is not None:
        table = experiment.text.table
        lines.append(
            f"prompts: {counted(len(table.texts), 'distinct text')} ({table.encoded_count} encoded now), at most "
            f"{counted(max(table.token_counts), 'token')}; T = {experiment.task.text_length}, "
            f"D = {experiment.task.text_size}; evaluation with '{experiment.evaluation_source}'"
        )
    return "\n".join([*lines, _plan_of_training(experiment, experiment.segmenter())])


def _plan_of_training(experiment: Experiment, segmenter: Segmenter) -> str:
    count = sum(parameter.numel() for parameter in segmenter.parameters())
    settings, cases = experiment.recipe.training, experiment.cases["train"]
    stages = [f"{stage.end - stage.first} {stage.name}" for stage in divide_epochs(segmenter.stages, settings.epochs)]
    sequence = f" ({', then '.join(stages)})" if segmenter.stages else ""
    if segmenter.batching == "volume":
        steps, content = len(cases), " of one case each"
    else:
        slices = sum(case.slice_count for case in cases)
        steps, content = ShuffledBatches.per_epoch(slices, settings.batch_size), ""
    return (
        f"model: {count / 1e6:.2f} M parameters; {counted(settings.epochs, 'epoch')}{sequence}, "
        f"{counted(settings.epochs * steps, 'step')}{content}"
    )


def _wanted(experiment: Experiment) -> dict[str, Any]:
    evaluation = experiment.recipe.evaluation.model_dump(mode="json")
    return {**evaluation, "prompts": experiment.evaluation_source or "none"}


def _scored(training: Training) -> bool:
    """Whether the scores of these very weights, measured as the recipe asks, stand in the folder."""
    record, folder = training.folder.read(), training.folder
    same = record.get("scored_step") == training.progression.step and record.get("evaluation") == _wanted(
        training.experiment
    )
    return same and folder.scores.exists() and folder.report.exists()


def _evaluate(training: Training) -> None:
    """Score the best checkpoint."""
    experiment, folder, progression = training.experiment, training.folder, training.progression
    if training.silent:
        processes.gathered("ready")
        device = training.fabric.device
        segmenter = load_segmenter(experiment, folder).to(device)
        evaluate(experiment, segmenter, folder, folder, source=experiment.evaluation_source, device=device)
        return
    processes.gathered("written")  # the checkpoint, before the others read it
    folder.report.unlink(missing_ok=True)  # written last, it says that the scores are those of the record
    folder.update(
        best={"epoch": progression.best_epoch, "validation_dsc": progression.best_dsc}, scored_step=progression.step
    )
    segmenter = load_segmenter(experiment, folder).to(training.fabric.device)
    source, device = experiment.evaluation_source, training.fabric.device
    scores = evaluate(experiment, segmenter, folder, folder, source=source, device=device)
    test = {f"test_{metric}": value for metric, value in folder.read()["test"].items() if value is not None}
    with watching(experiment.recipe, folder, progression.step, without=["tensorboard"]) as watch:  # a plug-in's
        watch.log(test, progression.step)
    _print_result(training, scores)


def _print_result(training: Training, scores: Sequence[Score]) -> None:
    experiment = training.experiment
    print(headline(scores, experiment.structures_in_training, experiment.evaluation_source))
    print(f"report: {training.folder.report}")


def _record_cost(training: Training, before: Mapping[str, Any], started: float) -> None:
    """Time and memory, together with those of the earlier parts of an interrupted run."""
    training.folder.update(
        wall_seconds=round(before.get("wall_seconds", 0) + time.monotonic() - started, 1),
        training_seconds=round(training.progression.seconds, 1),
        peak_memory_bytes=max(before.get("peak_memory_bytes", 0), peak_memory(training.fabric.device)),
    )


def _write_inputs(experiment: Experiment, folder: RunFolder) -> None:
    write_atomically(folder.recipe, dump(experiment.recipe))
    write_atomically(
        folder.split, json.dumps({**asdict(experiment.split), "hash": experiment.split.hash}, indent=1) + "\n"
    )
    write_task(folder.task, experiment.record)
    if experiment.text is not None:
        write_prompt_table(folder.prompts, experiment.text.rows)


def _derived(segmenter: Segmenter) -> dict[str, Any]:
    """What a network that plans itself made of the data."""
    derived = getattr(segmenter.network, "plan", None)
    return {"plan": asdict(derived)} if is_dataclass(derived) and not isinstance(derived, type) else {}


def _bound(experiment: Experiment) -> dict[str, Any]:
    """What a resumed run must have in common with its beginning."""
    recipe = experiment.recipe
    free = {"epochs", "patience", "workers", "threads", "devices", "nodes", "deterministic"}
    free |= {"checkpoint_every", "overlay_every", "loggers"}
    text = recipe.prompts
    return {
        "seed": recipe.seed,
        "data": experiment.hashes()["data"],
        "split": experiment.split.hash,
        "preparation": recipe.preparation.model_dump(mode="json"),
        "augmentation": recipe.augmentation.model_dump(mode="json"),
        "prompts": text.model_dump(mode="json", exclude={"evaluation"}) if text else None,
        "text": experiment.text.table.fingerprint if experiment.text else None,
        "model": recipe.model.model_dump(mode="json"),
        "segmentation_loss": recipe.segmentation_loss.model_dump(mode="json"),
        "auxiliary_losses": [loss.model_dump(mode="json") for loss in recipe.auxiliary_losses],
        # A switch that is off is as good as one that an older version did not have.
        "training": {k: v for k, v in recipe.training.model_dump(mode="json", exclude=free).items() if v is not False},
    }


def _cost_of_determinism(training: Training) -> str:
    if training.fabric.device.type == "cpu":
        return "deterministic: costs nothing on a CPU, where a run repeats bit by bit anyway"
    experiment, size = training.experiment, training.settings.batch_size
    free, bound = cost_of_determinism(training.segmenter, experiment.task, size, training.fabric.device)
    return (
        f"deterministic: {bound:.1f} ms for a batch forward and backward, beside {free:.1f} ms without "
        f"({100 * (bound / free - 1):+.0f} %)"
    )


def _precision(requested: str) -> tuple[Any, str]:
    if requested == "16-mixed" and not torch.cuda.is_available():
        return "32-true", "precision: 16-mixed needs a CUDA device; this run uses 32-true"
    return requested, ""
