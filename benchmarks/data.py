"""Slices per second on one core: distortion, reading from the store, and the training loader, with other tools.

The last table compares the training loader with itself: with windows, statements and renumbering, and without.

pip install --no-deps blosc2 batchgeneratorsv2 fft-conv-pytorch acvl-utils batchgenerators nibabel httpx ndindex msgpack
OMP_NUM_THREADS=1 python benchmarks/data.py

A peer that is not installed is left out.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from textseg.contracts import Case
from textseg.data.augmentation import FixedOrder
from textseg.data.preparation import PreparedCase
from textseg.data.slice_geometry import SliceGeometry
from textseg.data.slices import ShuffledBatches, Slices, training_loader
from textseg.recipe.loading import load_recipe
from textseg.recipe.schema import AugmentationSettings
from textseg.runs.experiment import build

SMALLEST = "--smallest" in sys.argv
SECONDS = 0.05 if SMALLEST else 4.0  # for each row
CASES = 6 if SMALLEST else 200  # that the loader reads
SLICES = 15
DISTORTION = AugmentationSettings(distortion=1.0, rotation_degrees=10, scale=0.1, translation=0.03, elastic_pixels=6)
RECIPE = AugmentationSettings(  # of recipes/atmnet_spider.yaml
    distortion=0.5, rotation_degrees=10, scale=0.1, translation=0.03, elastic_pixels=4, gamma=0.2, noise=0.03
)
PAIRS, BATCHES = (1, 1) if SMALLEST else (9, 40)  # for each size of the last table
PLAIN = (  # the quickstart, with a text encoder that costs nothing
    "augmentation.field_of_view=null",
    "prompts.text_encoder={use: hashed}",
    "prompts.training={template: 0.4, interactive: 0.6}",
    "prompts.renumbering=null",
)
LISTENING = (
    "augmentation.field_of_view={probability: 0.7}",
    "prompts.template=uncounted",
    "prompts.renumbering={probability: 0.5}",
)


def rate(call: Callable[[int], Any], count: int = 1) -> float:
    """Return slices per second of `call`, which gives `count` slices and gets a different number each time."""
    call(0)
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        calls += 1
        call(calls)
    return calls * count / (time.perf_counter() - start)


def volume(side: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return image and mask [S, H, W]: smooth structures with noise."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    base = np.sin(rows / 37) * np.cos(columns / 29) + 1.0
    image = (500 * base + 30 * generator.standard_normal((SLICES, side, side))).astype(np.int16)
    mask = np.broadcast_to((np.clip(base, 0.4, 1.99) * 10).astype(np.uint8), image.shape).copy()
    return image, mask


def stored(folder: Path, side: int, name: str = "a") -> PreparedCase:
    """Return a case of the store, as `prepare` writes it."""
    image, mask = volume(side)
    (folder / name).mkdir()
    np.save(folder / name / "image.npy", (image / 1000).astype(np.float16))
    np.save(folder / name / "mask.npy", mask)
    slice_geometry = SliceGeometry(0, 0, side, side, (side, side))
    shown = ((1,),) * SLICES
    return PreparedCase(
        Case(name, name, folder),
        folder / name,
        name,
        slice_geometry,
        (4.0, 0.5, 0.5),
        (4.0, 0.5, 0.5),
        (0, 1),
        shown,
        "",
    )


def distorted(side: int = 512) -> Iterator[tuple[str, float]]:
    image, mask = (torch.from_numpy(array[0]) for array in volume(side))
    image = image.float()[None]
    augmentation = FixedOrder(DISTORTION, 1)
    yield "textseg", rate(lambda n: augmentation(image, mask, epoch=0, slice_id=n))
    from monai.transforms.spatial.dictionary import Rand2DElasticd

    monai = Rand2DElasticd(
        ["image", "mask"],
        spacing=(80, 80),
        magnitude_range=(0, 6),
        prob=1.0,
        rotate_range=[0.17],
        scale_range=[0.1, 0.1],
        translate_range=[15, 15],
        mode=["bilinear", "nearest"],
        padding_mode="zeros",
    )
    yield "MONAI Rand2DElastic", rate(lambda n: monai({"image": image, "mask": mask[None].float()}))
    try:
        from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    except ImportError:
        return
    spatial = SpatialTransform(
        (side, side), 0, False, p_elastic_deform=1, elastic_deform_scale=(0.1, 0.2), elastic_deform_magnitude=(0, 0.02),
        p_rotation=1, rotation=(-0.17, 0.17), p_scaling=1, scaling=(0.9, 1.1), mode_seg="nearest",
    )  # fmt: skip
    yield "batchgeneratorsv2", rate(lambda n: spatial(image=image, segmentation=mask[None].to(torch.int16)))


def read(folder: Path, side: int = 512) -> Iterator[tuple[str, float]]:
    prepared = stored(folder, side)
    slices = Slices([prepared], None, {})
    order = np.random.default_rng(0).integers(0, SLICES, 100_000).tolist()
    yield "textseg, float32 image, uint8 mask", rate(lambda n: slices[0, order[n]])
    image, mask = volume(side)
    try:
        import blosc2
    except ImportError:
        pass
    else:
        chunks, blocks = (1, 1, side, side), (1, 1, side, side // 2)
        for name, array in (("image", (image / 500.0).astype(np.float32)), ("mask", mask.astype(np.int8))):
            parameters = {"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 1}
            blosc2.asarray(
                array[None], urlpath=str(folder / f"{name}.b2nd"), chunks=chunks, blocks=blocks, cparams=parameters
            )
        blosc2.set_nthreads(1)

        def packed(n: int) -> Any:
            opened = [
                blosc2.open(urlpath=str(folder / f"{name}.b2nd"), mode="r", dparams={"nthreads": 1}, mmap_mode="r")
                for name in ("image", "mask")
            ]
            return [torch.from_numpy(array[:, order[n]]) for array in opened]

        yield "blosc2, laid out as nnU-Net v2 does", rate(packed)
    try:
        import nibabel
    except ImportError:
        return
    for name, array in (("image", image), ("mask", mask)):
        nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), np.eye(4)), folder / f"{name}.nii.gz")

    def unpacked(n: int) -> Any:
        return [
            np.asarray(nibabel.load(folder / f"{name}.nii.gz").dataobj)[..., order[n]] for name in ("image", "mask")
        ]

    yield "nibabel, .nii.gz", rate(unpacked)


def loaded(folder: Path, side: int = 384, batch_size: int = 8) -> Iterator[tuple[str, float]]:
    cases = [stored(folder, side, f"case{number}") for number in range(CASES)]
    for workers in (0, 2):
        slices = Slices(cases, None, {}, FixedOrder(RECIPE, 1))
        order = ShuffledBatches(len(slices), batch_size, seed=1, epoch=0)
        loader = iter(training_loader(slices, order, workers=workers, pin_memory=False))
        for _ in range(2 * max(1, workers)):  # which the start of the workers delays
            next(loader)
        start, batches = time.perf_counter(), sum(1 for _ in loader)
        yield f"{workers} workers, {2 if workers else 1} cores", batches * batch_size / (time.perf_counter() - start)


def listening(folder: Path) -> None:
    """Print the processor time of the loader for a slice, with text, without and with the keys of `LISTENING`."""
    os.environ.setdefault("TEXTSEG_CACHE", str(folder / "cache"))
    print("\nTraining loader with text, batch 8, and with windows and renumbering too: milliseconds a slice\n")
    print("| size | without | with | ratio: median (range) |\n|---|---|---|---|")
    for height, width in ((160, 128),) if SMALLEST else ((160, 128), (384, 384)):
        drawn = f"folder: {folder}/{height}, cases: 12, slices: 9, size: [{height}, {width}]"
        size = [f"dataset={{use: lumbar_phantom, {drawn}}}", f"preparation.size=[{height},{width}]"]
        recipe = Path(__file__).parents[1] / "recipes/quickstart.yaml"
        experiments = [build(load_recipe(recipe, [*size, *PLAIN, *keys])) for keys in ((), LISTENING)]
        loaders = [experiment.training_slices() for experiment in experiments]
        times: list[list[float]] = [[], []]
        for pair in range(PAIRS + 1):
            for number in (0, 1) if pair % 2 else (1, 0):
                slices, count = loaders[number], 0
                start = time.process_time()
                for epoch in range(BATCHES):
                    order = ShuffledBatches(len(slices), 8, seed=1, epoch=pair * BATCHES + epoch)
                    for packed in training_loader(slices, order, workers=0, pin_memory=False):
                        count += len(slices.unpack(packed).case)
                        if count >= 8 * BATCHES:
                            break
                    if count >= 8 * BATCHES:
                        break
                times[number].append((time.process_time() - start) / count)
        ratios = [after / before for before, after in zip(*times, strict=True)][1:]  # the first pair warms up
        cells = " | ".join(f"{1000 * statistics.median(row[1:]):.2f}" for row in times)
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"| {height} x {width} | {cells} | {spread} |", flush=True)


def table(title: str, rows: Iterator[tuple[str, float]]) -> None:
    print(f"\n{title}\n\n| | slices per second | ratio |\n|---|---|---|")
    first = 0.0
    for name, rate in rows:
        first = first or rate
        print(f"| {name} | {rate:.0f} | {first / rate:.1f} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        table("Elastic and affine distortion of 512 x 512, image and mask", distorted())
        table("One random slice of 512 x 512, image and mask, from disk", read(Path(folder)))
        table("Training loader, 384 x 384, batch 8, distortions of atmnet_spider", loaded(Path(folder)))
        listening(Path(folder))


if __name__ == "__main__":
    main()
