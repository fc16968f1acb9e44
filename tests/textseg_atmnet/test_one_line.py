"""ATM-Net's recipe runs with any vision encoder by changing one line."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from textseg.training.run import run

QUICKSTART = Path(__file__).parents[2] / "recipes/quickstart.yaml"
ENCODERS = {
    "swin_unetr": "{use: swin_unetr, feature_size: 12}",
    "monai_unet": "{use: monai_unet, channels: [8, 8, 16, 24, 32]}",
    "swin": "{use: huggingface_vision, model: swin, configuration: {embed_dim: 12, depths: [1, 1, 1, 1], num_heads: [1, 2, 3, 4]}}",  # noqa: E501
    "convnext": "{use: huggingface_vision, model: convnext, configuration: {hidden_sizes: [8, 16, 24, 32], depths: [1, 1, 1, 1]}}",  # noqa: E501
    "dinov2": "{use: huggingface_vision, model: dinov2, configuration: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}}",  # noqa: E501
    "timm": "{use: timm, model: resnet18}",
}


@pytest.mark.parametrize("name", ENCODERS)
def test_another_vision_encoder_is_another_line(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    if name == "timm":
        request.getfixturevalue("timm")
    lines = QUICKSTART.read_text().splitlines(keepends=True)
    (index,) = [index for index, line in enumerate(lines) if line.lstrip().startswith("vision_encoder:")]
    lines[index] = re.sub(r"\{.*\}", ENCODERS[name], lines[index])
    (tmp_path / "quickstart.yaml").write_text("".join(lines))
    data = tmp_path_factory.getbasetemp() / "phantom"
    small = [  # nothing that tells one method from another
        f"dataset={{use: lumbar_phantom, folder: {data}, cases: 6, slices: 1, size: [96, 80], spacing_mm: 3.0}}",
        "split={fractions: [0.6, 0.2, 0.2]}",
        "preparation.size=[64, 56]",
        "prompts.text_encoder={use: hashed, feature_size: 16}",
        "training.epochs=1",
        "training.threads=1",
    ]
    folder = run(tmp_path / "quickstart.yaml", overrides=small, output=tmp_path / "runs")
    assert json.loads((folder / "run.json").read_text())["parameters"] > 0
    rows = list(csv.DictReader((folder / "scores.csv").read_text().splitlines()))
    assert {row["metric"] for row in rows} == {"dsc", "jaccard", "hd95", "asd"}
    assert {row["prompt_source"] for row in rows} == {"template"}
