"""The published sizes and FLOPs, and the page that compares them with ours."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import textseg
import textseg_atmnet
from textseg.models.attention import WindowAttention
from textseg.models.cost import META, count_cost, empty_text, usual_task
from textseg.models.segmenter import Segmenter
from textseg.registry.discovery import installed_registry

ROOT = Path(textseg.__file__).parent
PAGE = ROOT.parent / "docs" / "explanation" / "complexity.md"
PUBLISHED = {
    row["method"]: (float(row["parameters_m"]), float(row["flops_g"]))
    for row in csv.DictReader(
        (Path(textseg_atmnet.__file__).parent / "published" / "complexity.csv").read_text(encoding="utf-8").splitlines()
    )
}
TASK = usual_task((384, 384))
NORMS = (nn.LayerNorm, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm2d, nn.InstanceNorm3d)
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def build(name: str) -> Any:
    """Build a network with default settings, on the device "meta"."""
    try:
        with META:
            return installed_registry().build("network", name, TASK, settings={})
    except Exception:  # it looks at values while it is built
        return installed_registry().build("network", name, TASK, settings={}).to(META)


def operations_of_softmax(count: int, length: int) -> int:
    """Return thop's count for `count` values in groups of `length` that sum to one."""
    return count // length * (3 * length - 1)


def operations_by_thop(module: nn.Module, given: Tensor, output: Tensor) -> int:
    """Return thop 0.1.1's count for a module of exactly this class; 0 for others, such as attention products."""
    kind = type(module)
    if kind in CONVOLUTIONS:
        # Also of a transposed one, all output positions see the whole kernel: fourfold at a stride of 2.
        layer: Any = module
        return output.numel() * (given.shape[1] // layer.groups) * math.prod(layer.kernel_size)
    if kind is nn.Linear:
        return given.shape[-1] * output.numel()
    if kind in NORMS:
        return 2 * given.numel() * (2 if next(module.parameters(), None) is not None else 1)
    if kind is nn.PReLU:
        return 0 if module.training else given.numel()
    if kind is nn.Softmax:
        return operations_of_softmax(given.numel(), given.shape[module.dim])  # type: ignore[index]
    if isinstance(module, WindowAttention):  # its softmax is no module, as that of MONAI's layer is
        windows, size, _ = given.shape
        return operations_of_softmax(windows * module.num_heads * size**2, size)
    if kind is nn.Upsample:
        return {"nearest": 1, "linear": 5, "bilinear": 11}.get(str(module.mode), 0) * output.numel()
    return 0


def count_by_thop(network: nn.Module, image: Tensor) -> float:
    """Return thop's count for one forward pass, in units of 1e9."""
    text = empty_text(TASK, META, len(image)) if getattr(network, "uses_text", False) else None
    counts: list[int] = []
    handles = [
        module.register_forward_hook(
            lambda module, given, output: counts.append(operations_by_thop(module, given[0], output))
        )
        for module in network.modules()
        if not list(module.children()) or isinstance(module, WindowAttention)
    ]
    with torch.no_grad(), META:
        network.eval()(image, text)
    for handle in handles:
        handle.remove()
    return sum(counts) / 1e9


def slices(count: int) -> Tensor:
    return torch.zeros(count, 1, 384, 384, device=META)


@pytest.mark.parametrize("name", ["unet", "unetr", "segresnet", "attention_unet", "swin_unetr"])
def test_the_published_flops_are_what_thop_counts_for_eight_slices(name: str) -> None:
    assert count_by_thop(build(name), slices(8)) == pytest.approx(PUBLISHED[name][1], abs=0.01)


def test_the_published_flops_of_h_sam_are_for_one_image_of_512() -> None:
    """Ours has no 21st class and no heads for the quality of masks."""
    assert count_by_thop(build("h_sam"), slices(1)) == pytest.approx(PUBLISHED["h_sam"][1], rel=0.01)


def test_the_published_flops_of_spineparsenet_come_near() -> None:
    """The widths of its coarse network are ours."""
    assert count_by_thop(build("spineparsenet"), slices(8)) == pytest.approx(PUBLISHED["spineparsenet"][1], rel=0.05)


def numbers(cell: str) -> float:
    match = re.search(r"\d+(?:\.\d+)?", cell)
    return float(match.group()) if match else math.nan


def rows() -> Mapping[str, list[str]]:
    """Return the rows of the page's table by method name."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("` "): row[1:] for row in cells}


def test_the_page_has_a_row_for_each_published_method_and_its_numbers() -> None:
    listed = rows()
    for name, (parameters, flops) in PUBLISHED.items():
        row = listed["atmnet_large_spider" if name == "atmnet" else name]
        assert (numbers(row[1]), numbers(row[4])) == (parameters, flops), name


@pytest.mark.parametrize("name", sorted(c.name for c in installed_registry().components("network")))
def test_the_page_says_what_the_command_counts_and_why_it_differs(name: str) -> None:
    if installed_registry().component("network", name).distribution != "textseg":
        pytest.skip("not of textseg")
    ours, published, difference, by_thop, _, macs, why = rows()[name]
    cost = count_cost(lambda: Segmenter(installed_registry().build("network", name, TASK, settings={})), TASK)
    assert numbers(ours) == pytest.approx(cost["parameters"] / 1e6, abs=0.0006)
    assert numbers(macs) == pytest.approx(cost["multiply_accumulates"] / 1e9, abs=0.006)
    assert numbers(by_thop) == pytest.approx(count_by_thop(build(name), slices(1 if name == "h_sam" else 8)), abs=0.006)
    share = (cost["parameters"] / 1e6 / numbers(published) - 1) * 100
    assert float(difference.replace("%", "")) == pytest.approx(share, abs=0.06)
    assert abs(share) <= 1 or len(why) > 20, f"{name} differs by more than 1 % without a reason"
