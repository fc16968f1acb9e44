"""Wall time of `textseg --help` beside a typer program that does nothing but print its help, in turn.

Run: `python benchmarks/start_up.py`
"""

from __future__ import annotations

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


def seconds(command: list[str]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(runs: int = 15) -> None:
    """Print both medians and the median of the pairwise ratios."""
    with tempfile.TemporaryDirectory() as folder:
        peer = Path(folder) / "peer.py"
        peer.write_text(PEER)
        commands = ([sys.executable, "-m", "textseg", "--help"], [sys.executable, str(peer), "--help"])
        for command in commands:
            seconds(command)  # byte code and file cache
        pairs = [tuple(seconds(command) for command in commands) for _ in range(runs)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    print(f"textseg --help {ours:.3f} s, a typer program's help {theirs:.3f} s, ratio {ratio:.2f} ({runs} pairs)")


if __name__ == "__main__":
    main()
