"""Run a recipe: prepare, train or resume, score, write the report."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException

from textseg.contracts import HasLosses
from textseg.data.phantoms.files import drawn_apart
from textseg.data.slices import ShuffledBatches
from textseg.errors import RunError
from textseg.evaluation.evaluate import headline, load_segmenter, stated_as
from textseg.metrics.scores import Score, StatedSource, read_scores
from textseg.models.cost import cost_of_determinism
from textseg.models.segmenter import Segmenter
from textseg.models.stages import divide_epochs
from textseg.recipe.loading import dump, is_text, load_recipe, required_components
from textseg.recipe.schema import Recipe, TrainingSettings
from textseg.registry.component import SESSION
from textseg.registry.discovery import installed_registry
from textseg.registry.kinds import SCORING
from textseg.registry.local_code import load_code
from textseg.reports.run_evaluation import evaluate_and_write
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder, first_line
from textseg.runs.identity import component_changes
from textseg.system import distributed
from textseg.system.files import cache_folder
from textseg.system.messages import counted
from textseg.system.progress import counting
from textseg.training import launching
from textseg.training.loggers import logging_to
from textseg.training.loop import Training
from textseg.training.number_checks import deterministic
from textseg.training.record import RunRecord, bound, causes_of_changes, failure_kept, finished_earlier
from textseg.training.resources import explained_exhaustion

LOST_AFTER = timedelta(hours=2)  # time that a process waits for another process that does not answer


def run(
    recipe: Path | str | Recipe,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    output: Path | str = "runs",
    fresh: bool = False,
    dry_run: bool = False,
    code: Sequence[Path | str] = (),
    trust_code: bool = False,
    changed_code: bool = False,
) -> Path:
    """Run a recipe like `textseg run`: prepare, train or resume, evaluate. Returns the run folder.

    Args:
        recipe: a file, the name of an installed recipe, its text, or what `load_recipe` returns.
        overrides: `--set` values, such as "training.epochs=5".
        seed: the seed in place of the recipe's.
        output: the folder for run folders.
        fresh: move an earlier run aside instead of resuming it.
        dry_run: check everything, train nothing.
        code: Python files with components of the recipe that are not installed; the run folder keeps copies.
        trust_code: let the recipe of a run folder execute code that came with it.
        changed_code: resume although the code or the version of a component has changed; run.json keeps both.

    With several devices or nodes, this function starts the processes and waits for them, unless torchrun or SLURM has
    started this process as one of them. Raises a TextsegError for a mistake of the user.
    """
    for file in code:
        load_code(file)
    output, values = Path(output), [*overrides, *([] if seed is None else [f"seed={seed}"])]
    if isinstance(recipe, Recipe) and not values:
        resolved = recipe
    else:
        text = dump(recipe) if isinstance(recipe, Recipe) else recipe
        resolved = load_recipe(text, values, trust_code=trust_code)
    settings, folder = resolved.training, RunFolder.of(resolved, output)
    launching.check_devices(settings)
    exhaustion = explained_exhaustion(folder.path, cache_folder(), folder.checkpoint("last"))
    if dry_run:
        with exhaustion:
            _check(resolved, folder, fresh=fresh, changed_code=changed_code)
        return folder.path
    count = settings.devices * settings.nodes
    if count > 1 and not launching.launched():
        _check_several(resolved, recipe)
        choices = {"fresh": fresh, "trust_code": trust_code, "changed_code": changed_code}
        command = launching.run_command(Path(str(recipe)), overrides, seed, output, code, **choices)
        launching.run_together(command, count)
        return folder.path
    torch.set_num_threads(settings.threads or max(1, torch.get_num_threads() // settings.devices))
    rank = launching.launched_rank() if count > 1 else 0
    process = launching.one_of_several(rank) if count > 1 else nullcontext()
    with process, exhaustion:
        _run(resolved, folder, rank, fresh=fresh, changed_code=changed_code)
        distributed.disconnect()
    return folder.path


def _check_several(recipe: Recipe, given: Path | str | Recipe) -> None:
    """Raise RunError for processes on other nodes that nobody started, and for what other processes could not read."""
    if recipe.training.nodes > 1:
        raise RunError(
            f"training.nodes is {recipe.training.nodes}, but no process was started on each node. Start the command "
            "with torchrun or srun; see docs/how_to/many_devices.md."
        )
    if isinstance(given, Recipe) or is_text(given):
        raise RunError(
            "training.devices: several processes read the recipe from a file. Write it into one, and run that."
        )
    registry = installed_registry()
    for kind, spec in required_components(recipe):
        if registry.component(kind, spec.use).plugin == SESSION:
            raise RunError(
                f"training.devices: {kind} '{spec.use}' is a class of this Python session, which other processes do "
                "not have. Write it into a file, and name that as `code`."
            )


def _run(recipe: Recipe, folder: RunFolder, rank: int, *, fresh: bool, changed_code: bool) -> None:
    """Prepare, train, score and record a run; with several processes, each calls this function for its share."""
    started = time.monotonic()
    # 1. Prepare. The other processes wait in `_connected` for the first one, which prepares the data for all.
    experiment = prepared(recipe) if rank == 0 else None
    if fresh and rank == 0:
        _move_aside(folder)
    with folder.lock() if rank == 0 else nullcontext(), deterministic(recipe.training.deterministic):
        precision, note = _precision(recipe.training.precision)
        fabric = _connected(recipe.training, precision)
        experiment = experiment or prepared(recipe)
        # 2. Do nothing if the folder holds the whole run. Resume if it holds a checkpoint of the same experiment.
        changed = _changed_code(experiment, folder)
        if distributed.gathered(finished_earlier(experiment, folder))[0]:
            if rank == 0:
                print(*_nothing_to_train(folder, changed), sep="\n")
                _print_result(experiment, folder, read_scores(folder.scores), experiment.evaluation_source)
            return
        begun = folder.checkpoint("last").exists()  # a refusal to resume leaves such a run as it is
        with nullcontext() if begun or rank else failure_kept(folder, recipe):
            training, resumed = _resumed(experiment, folder, fabric, precision, changed, changed_code=changed_code)
        with nullcontext() if rank else failure_kept(folder, recipe):
            _train(training, precision, note, resumed, started)


def _train(training: Training, precision: Any, note: str, resumed: Sequence[str], started: float) -> None:
    """Record the origin of the weights, train and score, in all processes; only the first one writes."""
    experiment, folder, first = training.experiment, training.folder, not training.silent
    record = RunRecord(training, started)
    if first:
        record.write_inputs()
    if first and not training.finished:  # a finished run that only needs scores has this record already
        begun = folder.read().get("precision", {})
        earlier = sorted({*begun.get("earlier", []), begun.get("used", precision)} - {precision})
        precisions = {"requested": experiment.recipe.training.precision, "used": precision, "note": note}
        record.write_origin(precisions | ({"earlier": earlier} if earlier else {}))
        print(plan(experiment), *([note] if note else []), *_cost_of_determinism(training), *resumed, sep="\n")
    with record.kept() if first else nullcontext():
        if not training.finished:
            training.fit()
        if first:
            record.write_cost()  # the report shows it
        _evaluate(training)


def _check(recipe: Recipe, folder: RunFolder, *, fresh: bool, changed_code: bool) -> None:
    """Print recipe and plan, and raise what the run would raise before its first step; the folder stays as it is."""
    experiment = prepared(recipe, dry_run=True)
    begun = RunFolder(folder.path / "fresh") if fresh else folder  # a folder that does not exist
    precision, note = _precision(recipe.training.precision)
    changed = _changed_code(experiment, begun)
    if finished_earlier(experiment, begun):
        resumed = _nothing_to_train(begun, changed)
    else:
        cpu = _fabric(accelerator="cpu", devices=1)
        _, resumed = _resumed(experiment, begun, cpu, precision, changed, changed_code=changed_code)
    print(dump(recipe), plan(experiment), *([note] if note else []), *resumed, sep="\n")


def _move_aside(folder: RunFolder) -> None:
    """Rename the folder of an earlier run, unless another process is writing to it."""
    if folder.path.exists():
        with folder.lock():
            print(f"the earlier run was moved to {folder.move_aside()}")


def _changed_code(experiment: Experiment, folder: RunFolder) -> list[str]:
    """Return a sentence for each component of a begun run whose code or version has changed since.

    Raises RunError for a checkpoint of another experiment.
    """
    if not folder.checkpoint("last").exists():
        return []
    recorded, now = folder.read().get("components") or {}, experiment.component_facts()
    folder.check_bound(bound(experiment), causes_of_changes(recorded, experiment))
    return component_changes(recorded, now, but=SCORING)


def _nothing_to_train(folder: RunFolder, changed: Sequence[str]) -> list[str]:
    """Return the lines about a run that was finished earlier, with the code that has changed since."""
    if not changed:
        return [f"finished earlier, nothing was trained: {folder.path}"]
    return [
        f"finished earlier, nothing was trained: {folder.path}. Since then the code has changed:",
        *(f"  {change}" for change in changed),
        "To train with this code, add --fresh: it moves the earlier run aside.",
    ]


def _resumed(
    experiment: Experiment,
    folder: RunFolder,
    fabric: Fabric,
    precision: str,
    changed: Sequence[str],
    *,
    changed_code: bool,
) -> tuple[Training, list[str]]:
    """Return a training at its start or at the checkpoint `last`, and lines for the user if it resumes.

    Raises RunError for components that have `changed`, unless `changed_code` accepts them.
    """
    listed = [f"  {change}" for change in changed]
    if changed and not changed_code:
        lines = "\n".join(listed)
        raise RunError(
            f"'{folder.path}' was begun with other code:\n{lines}\nUndo the change, or add --fresh to move the old run "
            "aside and start anew. To continue it all the same, add --changed-code; run.json then keeps both."
        )
    resumes = folder.checkpoint("last").exists()
    training = Training(experiment, folder, fabric)
    if not resumes:
        return training, []
    replanned = training.resume()
    line = f"continuing from step {training.progression.step} of {training.total_steps} in {folder.path}"
    used = folder.read().get("precision", {}).get("used", precision)
    switched = f"precision: the run used {used} so far, and uses {precision} from here" if used != precision else ""
    heading = ["with code that has changed since; run.json keeps both:"] if changed else []
    return training, [line, *heading, *listed, *filter(None, (replanned, switched))]


def prepared(recipe: Recipe, *, dry_run: bool = False) -> Experiment:
    """Return the experiment of a recipe with its data prepared; a progress bar shows the preparation.

    A dry run writes nothing outside the cache.
    """
    with drawn_apart() if dry_run else nullcontext(), counting("preparing slices") as report:
        return build(recipe, progress=report)


def _connected(settings: TrainingSettings, precision: Any) -> Fabric:
    """Return the Fabric of this process, connected to the other processes; raises RunError for missing devices."""
    several = settings.devices * settings.nodes > 1
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # without it Fabric lists the processes on stderr
    # A stage of a network may leave parameters without a gradient.
    strategy = DDPStrategy(find_unused_parameters=True, timeout=LOST_AFTER) if several else "auto"
    start = LightningEnvironment() if several and launching.launched_by_textseg() else None
    devices, nodes = settings.devices, settings.nodes
    try:
        fabric = _fabric(strategy=strategy, devices=devices, num_nodes=nodes, precision=precision, plugins=start)
        fabric.launch()
    except (MisconfigurationException, ValueError) as error:
        raise RunError(f"training.devices, training.nodes: {first_line(error)}") from error
    if several:
        distributed.connect()
    return fabric


def _fabric(**options: Any) -> Fabric:
    """Return a Fabric without the hint that a machine with `srun` gets; a run without it is no mistake."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `srun` command is available")
        return Fabric(**options)


def plan(experiment: Experiment) -> str:
    """Return the plan of a run as text: cases, slices, prompts, parameters, epochs and steps."""
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
            f"D = {experiment.task.text_size}; evaluation {_evaluated_with(experiment)}"
        )
    if experiment.reports:
        lines.append(experiment.report_line)
    return "\n".join([*lines, _plan_of_training(experiment, experiment.segmenter())])


def _evaluated_with(experiment: Experiment) -> str:
    if experiment.evaluation_source is None:
        return "without text"
    further = "".join(f", then '{source}'" for source in experiment.further_sources)
    return f"with '{experiment.evaluation_source}'{further}"


def _plan_of_training(experiment: Experiment, segmenter: Segmenter) -> str:
    count = sum(parameter.numel() for parameter in segmenter.parameters())
    settings, cases = experiment.recipe.training, experiment.cases["train"]
    if segmenter.batching == "volume":
        steps, content = len(cases), " of one case each"
    else:
        slices = sum(case.slice_count for case in cases)
        steps, content = ShuffledBatches.per_epoch(slices, settings.batch_size), ""
    epochs = settings.epochs_of(steps)
    stages = [f"{stage.end - stage.first} {stage.name}" for stage in divide_epochs(segmenter.stages, epochs)]
    sequence = f" ({', then '.join(stages)})" if segmenter.stages else ""
    return (
        f"model: {count / 1e6:.2f} M parameters; {counted(epochs, 'epoch')}{sequence}, "
        f"{counted(epochs * steps, 'step')}{content}\n{_plan_of_loss(experiment, segmenter)}"
    )


def _plan_of_loss(experiment: Experiment, segmenter: Segmenter) -> str:
    """Return every term of the loss with its weight."""
    weights = dict(experiment.segmentation_loss().weights)
    for loss in experiment.recipe.auxiliary_losses:
        weights[loss.name] = weights.get(loss.name, 0.0) + loss.weight
    own = "" if segmenter.part_with(HasLosses) is None else ", and what the model adds or changes in its own loss"
    return f"loss: {' + '.join(f'{weight:g} {name}' for name, weight in weights.items())}{own}"


def _evaluate(training: Training) -> None:
    """Score a checkpoint on the test cases; every process takes part, and the first one writes."""
    experiment, folder, progression = training.experiment, training.folder, training.progression
    if not training.silent:
        folder.report.unlink(missing_ok=True)  # it is written last: a report exists only for complete scores
        row = next(row for row in progression.history if row["epoch"] == progression.best_epoch)
        best = {key: row[key] for key in ("epoch", "validation_dsc", "validation_windows_dsc") if key in row}
        folder.update(best=best, scored_step=progression.step)
    distributed.gathered("written")  # wait: the checkpoint must be complete before other processes read it
    device = training.fabric.device
    segmenter = load_segmenter(experiment, folder).to(device)
    further: dict[StatedSource, list[Score]] = {}
    for further_source in experiment.further_sources:
        stated = stated_as(further_source)
        target = folder.evaluation(stated)
        further[stated] = evaluate_and_write(
            experiment, segmenter, folder, target, source=further_source, device=device
        )
    if not training.silent:  # the report of the run, which comes last, shows them
        folder.update(further_evaluations={name: folder.evaluation(name).read()["test"] for name in further})
    source = experiment.evaluation_source
    scores = evaluate_and_write(experiment, segmenter, folder, folder, source=source, device=device)
    if training.silent:
        return
    record = folder.read()
    results = {metric: value for metric, value in record["test"].items() if value is not None}
    with logging_to(experiment.registry, experiment.run(folder.path, record), progression.step) as loggers:
        for logger in loggers:
            logger.log_results(results, progression.step)
    _print_result(experiment, folder, scores, source)
    for stated, others in further.items():
        _print_result(experiment, folder.evaluation(stated), others, stated)


def _print_result(
    experiment: Experiment, folder: RunFolder, scores: Sequence[Score], prompts: StatedSource | None
) -> None:
    print(headline(scores, experiment.structures_in_training, prompts))
    print(f"report: {folder.report}")


def _cost_of_determinism(training: Training) -> list[str]:
    """Return a line on the time that deterministic operators take, or none if the recipe does not use them."""
    if not training.settings.deterministic:
        return []
    if training.fabric.device.type == "cpu":
        return ["deterministic: costs nothing on a CPU, where a run repeats bit by bit anyway"]
    experiment, size = training.experiment, training.settings.batch_size
    usual, slower = cost_of_determinism(training.segmenter, experiment.task, size, training.fabric.device)
    times = f"{slower:.1f} ms for a batch forward and backward, beside {usual:.1f} ms without"
    return [f"deterministic: {times} ({100 * (slower / usual - 1):+.0f} %)"]


def _precision(requested: str) -> tuple[Any, str]:
    if requested == "16-mixed" and not torch.cuda.is_available():
        return "32-true", "precision: 16-mixed needs a CUDA device; this run uses 32-true"
    return requested, ""
