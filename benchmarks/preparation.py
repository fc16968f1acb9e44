"""Peak memory of preparing 50 and 400 volumes of 15 x 512 x 512, each in a separate process.

python benchmarks/preparation.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK

from textseg.contracts import Case
from textseg.data.preparation import prepare
from textseg.recipe.schema import PreparationSettings


def write(folder: Path, count: int) -> list[Case]:
    """Volumes with different content, so that each is prepared."""
    image = np.random.default_rng(0).integers(0, 1000, (15, 512, 512)).astype(np.int16)
    mask = np.zeros(image.shape, np.uint8)
    mask[:, 100:400, 200:300] = np.arange(300)[:, None] // 16 + 1
    cases = []
    for number in range(count):
        image[0, 0, 0] = number
        for name, array in (("image", image), ("mask", mask)):
            volume = SimpleITK.GetImageFromArray(array)
            volume.SetDirection((0, 0, -1, 1, 0, 0, 0, -1, 0))
            SimpleITK.WriteImage(volume, str(folder / f"{number}_{name}.mha"), False)
        cases.append(Case(str(number), str(number), folder / f"{number}_image.mha", folder / f"{number}_mask.mha"))
    return cases


def main() -> None:
    print("| volumes | peak memory [MiB] | seconds | volumes per second |\n|---|---|---|---|", flush=True)
    for count in (1, 2) if "--smallest" in sys.argv else (1, 50, 400):
        subprocess.run([sys.executable, __file__, str(count)], check=True)


def measure(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cases = write(Path(folder), count)
        start = time.perf_counter()
        labels = {value: value for value in range(20)}
        prepare(cases, lambda case: labels, PreparationSettings(size=(384, 384)), Path(folder) / "cache")
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {count} | {peak:.0f} | {seconds:.1f} | {count / seconds:.1f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[-1].isdecimal():
        measure(int(sys.argv[-1]))
    else:
        main()
