"""Run all benchmarks in turn and print a table of each, below the machine, the date and the versions.

    python benchmarks/all.py [--smallest] [--output FILE]          # on a CPU, for hours
    python benchmarks/all.py --gpu [--smallest] [--output FILE]    # on a GPU

`--smallest` sees that each one starts and ends; its numbers mean nothing. Each runs in a process of its own (those of a
CPU on one thread), with its peers beside it. One that fails is named at the end, the others go on, and the exit code is
1. What is trained for a benchmark is the quickstart, in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
TEXTSEG = (sys.executable, "-m", "textseg")
VERSIONS = ("textseg", "torch", "monai", "lightning", "numpy", "SimpleITK")


@dataclass(frozen=True)
class Benchmark:
    """A script, its arguments, those for `--smallest`, and commands to run before; `{folder}` is temporary."""

    title: str
    script: str
    arguments: str = ""
    smallest: str = "--smallest"
    before: tuple[str, ...] = field(default=())


QUICKSTART = "run recipes/quickstart.yaml --output {folder}/runs --set dataset.folder={folder}/data"
RUN, BUNDLE = "{folder}/runs/quickstart/seed2025", "{folder}/bundle"
SLICE = "recipes/atmnet_spider.yaml recipes/atmnet_large_spider.yaml recipes/swin_unetr_spider.yaml"
CPU = (
    Benchmark("Start-up", "start_up"),
    Benchmark("First step", "start_up", "--first-step", "--first-step --smallest"),
    Benchmark("Metrics", "metrics"),
    Benchmark("Data", "data"),
    Benchmark("Preparation", "preparation"),
    Benchmark("What 12,000 slices cost in text", "text"),
    Benchmark("Fusion", "fusion", "", "--sides 64 --pairs 1 --feature-size 24"),
    Benchmark("Backbone", "backbone", "", "--sides 64 --pairs 1 --feature-size 12"),
    Benchmark("One slice at full size", "full_size", SLICE, "recipes/quickstart.yaml"),
    Benchmark("Validation in windows", "validation", "recipes/quickstart.yaml", "recipes/quickstart.yaml --smallest"),
    Benchmark("Checks of outputs", "output_checks", "recipes/quickstart.yaml", "recipes/quickstart.yaml --smallest"),
    Benchmark(
        "One vision encoder after the other",
        "encoders",
        "recipes/atmnet_spider.yaml",
        "recipes/quickstart.yaml --repeats 1 --lines 2",
    ),
    Benchmark("Prediction", "prediction", "", "recipes/quickstart.yaml --pairs 1 --slices 2"),
    Benchmark("Engines", "engines", f"{RUN} {BUNDLE}", "", (QUICKSTART, f"export {RUN} --to onnx --output {BUNDLE}")),
    Benchmark("Poolings of the contrastive loss", "contrast"),
    Benchmark("Levels named anew", "level_order", RUN, "", (QUICKSTART,)),
    Benchmark("Right and wrong texts", "phantom_text", RUN, f"{RUN} --smallest", (QUICKSTART,)),
    Benchmark("Windows", "text_that_decides", RUN, "", (QUICKSTART, f"evaluate {RUN} --fields-of-view 0.7,0.5")),
    Benchmark("Cut files", "cut_files", RUN, "", (QUICKSTART, f"evaluate {RUN} --fields-of-view 0.5")),
)
TINY = "--side 64 --batch-size 2 --steps 1 --small"
GPU = (
    Benchmark("Training on a GPU", "gpu", "", f"{TINY} --precision 32-true"),
    Benchmark("The same with bfloat16", "gpu", "--precision bf16-mixed --workers 4", f"{TINY} --precision bf16-mixed"),
)


def machine() -> str:
    """Return a table of the machine, the date and the versions."""
    import torch

    rows = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "processor": f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "memory [GiB]": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f}",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in VERSIONS),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="the benchmarks of a GPU, not those of a CPU")
    parser.add_argument("--smallest", action="store_true", help="to try them: the smallest size of each")
    parser.add_argument("--output", type=Path, help="a Markdown file for the tables, which are printed, too")
    options = parser.parse_args()
    failed: list[str] = []
    written = [f"# Benchmarks\n\n{machine()}"]
    if options.smallest:
        written[0] += "\n\nOf the smallest sizes: these numbers mean nothing."
    print(written[0], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for benchmark in GPU if options.gpu else CPU:
            part, sound = measured(benchmark, Path(folder), smallest=options.smallest, alone=not options.gpu)
            written.append(part)
            print(f"\n{part}", flush=True)
            failed += [] if sound else [benchmark.title]
            if options.output is not None:
                options.output.write_text("\n\n".join(written) + "\n", encoding="utf-8")
    if failed:
        print(f"\nFailed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def measured(benchmark: Benchmark, folder: Path, *, smallest: bool, alone: bool) -> tuple[str, bool]:
    """Return the section of one benchmark, and True if it succeeded."""
    arguments = benchmark.smallest if smallest and benchmark.smallest else benchmark.arguments
    own = [*shlex.split(arguments.format(folder=folder))]
    commands = [[*TEXTSEG, *shlex.split(before.format(folder=folder))] for before in benchmark.before]
    if smallest:
        commands = [[*command, "--set", "training.epochs=1"] if "run" in command else command for command in commands]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if alone else dict(os.environ)
    start, output, sound = time.perf_counter(), "", True
    for command in (*commands, [sys.executable, str(HERE / f"{benchmark.script}.py"), *own]):
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        output, sound = done.stdout.strip(), done.returncode == 0
        if not sound:
            output += f"\n\nFailed: {shlex.join(command)}"
            break
    shown = f"python benchmarks/{benchmark.script}.py {arguments}".strip()
    minutes = (time.perf_counter() - start) / 60
    return f"## {benchmark.title}\n\n`{shown}`, {minutes:.1f} minutes\n\n{output}", sound


if __name__ == "__main__":
    sys.exit(main())
