"""Time of `textseg --help`, also with 200 more plug-ins, relative to a typer program that only prints its help, and
time of listing components with these plug-ins relative to an idle interpreter.

Run: `python benchmarks/start_up.py`; with `--first-step`, the time until `textseg run recipes/quickstart.yaml` takes
its first training step (data and text cached), beside importing torch and Lightning and building the model.

Wall time, and processor time (of the program and what it starts), which other work on the machine changes less. Byte
code goes to a folder of its own, so that nothing is compiled anew in each run, whatever PYTHONDONTWRITEBYTECODE says.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEER = """import typer
app = typer.Typer()
@app.command()
def main(name: str) -> None:
    "Say hello."
if __name__ == "__main__":
    app()
"""


PLUGIN = """from textseg import hookimpl

@hookimpl
def textseg_register(register):
    register.network("network_{index}", "crowd_{index}.network:Network")
"""
CROWD = 200
WITH_COMMAND = 10  # one plug-in in ten brings a command


def seconds(command: list[str], byte_code: Path, path: str = "", **environment: str) -> tuple[float, float]:
    """Return wall and processor time of one run, with one more folder to import from."""
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(byte_code)}
    start, before = time.perf_counter(), os.times()
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, **compiled, **environment},
    )
    after = os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return time.perf_counter() - start, used


def install(folder: Path) -> None:
    """Install two hundred plug-ins with one component each, some with a command, as pip does."""
    for index in range(CROWD):
        (folder / f"crowd_{index}").mkdir()
        (folder / f"crowd_{index}" / "__init__.py").write_text(PLUGIN.format(index=index))
        information = folder / f"crowd_{index}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: crowd-{index}\nVersion: 1.0\n")
        command = f"[textseg.commands]\ncrowd_{index} = crowd_{index}:app\n" if index % WITH_COMMAND == 0 else ""
        (information / "entry_points.txt").write_text(f"[textseg]\ncrowd_{index} = crowd_{index}\n{command}")


FIRST_STEP = """import os
from textseg.training import optimization
optimization.learning_rate = lambda *arguments: os._exit(0)  # the first thing that a training step asks for
from textseg.cli import main
main()
"""
BUILT = """import sys, pathlib, torch
from lightning.fabric import Fabric
from textseg.runs.experiment import build_segmenter
from textseg.contracts import Task
from textseg.recipe.loading import load_recipe
from textseg.registry import installed_registry
recipe = load_recipe(pathlib.Path(sys.argv[1]))
registry = installed_registry()
atlas = registry.component("atlas", "lumbar_spider").load()()
task = Task(1, recipe.preparation.size, atlas.class_count, atlas, text_size=384, text_length=217)
build_segmenter(recipe, registry, task)
"""


def first_step(runs: int = 5) -> None:
    """Print a Markdown table of medians."""
    recipe = str(Path(__file__).parent.parent / "recipes" / "quickstart.yaml")
    with tempfile.TemporaryDirectory() as folder:
        given = ["--output", f"{folder}/runs", "--set", f"dataset.folder={folder}/data"]
        commands = {
            "`textseg run recipes/quickstart.yaml` to its first step": ["-c", FIRST_STEP, "run", recipe, *given],
            "torch and Lightning imported, the model built": ["-c", BUILT, recipe],
        }
        environment = {"TEXTSEG_CACHE": f"{folder}/cache"}
        times = {name: [] for name in commands}
        for number in range(runs + 1):
            for name, command in commands.items():
                pair = seconds([sys.executable, *command], Path(folder) / "byte_code", **environment)
                if number:  # the first draws the phantom and fills the caches
                    times[name].append(pair)
    print_medians(times, runs)


def main(runs: int = 15) -> None:
    """Print a Markdown table of medians."""
    with tempfile.TemporaryDirectory() as folder:
        peer, crowd, byte_code = (Path(folder) / name for name in ("peer.py", "crowd", "byte_code"))
        peer.write_text(PEER)
        crowd.mkdir()
        install(crowd)
        textseg = [sys.executable, "-m", "textseg"]
        commands = {
            "`textseg --help`": ([*textseg, "--help"], ""),
            f"`textseg --help`, {CROWD} more plug-ins": ([*textseg, "--help"], str(crowd)),
            "a typer program that prints its help": ([sys.executable, str(peer), "--help"], ""),
            f"`textseg components`, {CROWD} more plug-ins": ([*textseg, "components"], str(crowd)),
            "`textseg components`": ([*textseg, "components"], ""),
            "an interpreter that does nothing": ([sys.executable, "-c", ""], ""),
        }
        for command, path in commands.values():
            seconds(command, byte_code, path)  # byte code and file cache
        times = {name: [] for name in commands}
        for _ in range(runs):
            for name, (command, path) in commands.items():
                times[name].append(seconds(command, byte_code, path))
    print_medians(times, runs)


def print_medians(times: dict[str, list[tuple[float, float]]], runs: int) -> None:
    print(f"| median of {runs} | wall [s] | processor [s] |", "|---|---|---|", sep="\n")
    for name, pairs in times.items():
        wall, used = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"| {name} | {wall:.3f} | {used:.3f} |")


if __name__ == "__main__":
    benchmark = first_step if "--first-step" in sys.argv else main
    benchmark(*[1] if "--smallest" in sys.argv else [])
