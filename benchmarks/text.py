"""Cost of the text of 12,000 slices: encodings, memory, and reading a batch's features against encoding it.

python benchmarks/text.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from textseg.contracts import Case, TextEncoder
from textseg.data.preparation import PreparedCase
from textseg.data.slice_geometry import SliceGeometry
from textseg.registry.discovery import installed_registry
from textseg.text.slice_text import build_text

SMALLEST = "--smallest" in sys.argv
CASES, SLICES, BATCH = (4 if SMALLEST else 800), 15, 8
SOURCES = ("ground_truth", "interactive", "template")
SEQUENCES = ("T1", "T2", "T2 SPACE")


class Counting:
    """A text encoder that counts the texts that it encodes."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder, self.encoded = encoder, 0
        self.feature_size, self.max_tokens = encoder.feature_size, encoder.max_tokens
        self.fingerprint, self.count_tokens = encoder.fingerprint, encoder.count_tokens

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        self.encoded += len(texts)
        return self.encoder(texts)


def cases() -> list[PreparedCase]:
    """Return series with different upper ends, whose outer slices lack the canal or a few levels."""
    random = np.random.default_rng(0)
    cases = []
    for number in range(CASES):
        top = int(random.integers(5, 10))
        planes = []
        for index in range(SLICES):
            cut = int(random.integers(0, 3)) if index in (0, SLICES - 1) else 0
            canal = (19,) if 3 <= index < SLICES - 3 else ()
            planes.append((*range(1, top + 1 - cut), *range(10, 10 + top - cut), *canal))
        facts = {"sequence": SEQUENCES[number % 3], "view": "sagittal", "sex": ("female", "male")[number % 2]}
        cases.append(
            PreparedCase(
                case=Case(f"{number}", f"{number}", Path("i"), Path("m"), facts),
                folder=Path(),
                key=f"{number}",
                slice_geometry=SliceGeometry(0, 0, 1, 1, (1, 1)),
                spacing_mm=(4.0, 1.0, 1.0),
                native_spacing_mm=(4.0, 1.0, 1.0),
                intensities=(0.0, 1.0),
                present=tuple(planes),
                image_hash="",
            )
        )
    return cases


def median_seconds(call: object, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    torch.set_num_threads(1)
    registry = installed_registry()
    atlas = registry.build("atlas", "lumbar_spider", settings={})
    generator = registry.build("prompt_generator", "atpg_lumbar", atlas, settings={"facts": ["sequence"]})
    encoder = Counting(registry.build("text_encoder", "minilm", settings={}))
    prepared = cases()
    needed = [(case, SOURCES) for case in prepared]
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(2):  # the second time from the cache
            start, before = time.perf_counter(), encoder.encoded
            text = build_text(needed, generator, encoder, atlas, generator_name="atpg_lumbar", cache=Path(folder))
            seconds.append((time.perf_counter() - start, encoder.encoded - before))
        all_prompts = [
            prompt for by_source in text.prompts.values() for of_source in by_source.values() for prompt in of_source
        ]
        all_texts = len(all_prompts) * (1 + len(atlas.names))
        print("| | |\n|---|---|")
        print(f"| slices | {CASES * SLICES} |")
        print(f"| texts that are said of them, by {len(SOURCES)} sources | {all_texts} |")
        print(f"| distinct texts | {len(text.table.texts)} |")
        print(f"| encodings, first run | {seconds[0][1]} |")
        print(f"| encodings, second run | {seconds[1][1]} |")
        print(f"| tokens of the longest | {max(text.table.token_counts)} |")
        table = text.table
        size = sum(part.numel() * part.element_size() for part in (table.tokens, table.mask, table.pooled))
        print(f"| memory of all features [MiB] | {size / 2**20:.0f} |")
        slices = text.of(prepared, SOURCES)
        random = np.random.default_rng(1)
        batches = [random.integers(0, CASES * SLICES, BATCH).tolist() for _ in range(200)]
        sources = [SOURCES[number % 3] for number in range(BATCH)]
        numbers = iter(batches)
        reading = median_seconds(lambda: slices.features(next(numbers), sources), len(batches))
        first = [all_prompts[number] for number in batches[0]]
        texts = [sentence for prompt in first for sentence in (prompt.holistic, *prompt.classwise)]
        encoding = median_seconds(lambda: encoder(texts), 1 if SMALLEST else 5)
        print(f"| reading the features of a batch of {BATCH} [ms] | {1000 * reading:.3f} |")
        print(f"| encoding the texts of a batch of {BATCH} [ms] | {1000 * encoding:.0f} |")
        print(f"| ratio | {encoding / reading:.0f} |")


if __name__ == "__main__":
    main()
