"""The conformance kit, run on every component of textseg."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from textseg.registry.discovery import installed_registry

SMALL: Mapping[tuple[str, str], Mapping[str, Any] | None] = {  # makes a component quick; others keep their defaults
    ("vision_encoder", "swin_unetr"): {"feature_size": 12},
    ("vision_encoder", "residual_convolutions"): {"channels": [4, 8, 12]},
    ("vision_encoder", "monai_unet"): {"channels": [4, 4, 8, 8, 12]},
    ("vision_encoder", "huggingface_vision"): {
        "model": "convnext",
        "configuration": {"hidden_sizes": [4, 8, 12, 16], "depths": [1, 1, 1, 1]},
    },
    ("vision_encoder", "timm"): {"model": "resnet10t"},
    ("augmentation", "monai"): {"name": "Rand2DElastic", "spacing": [20, 20], "magnitude_range": [1, 2]},
    ("augmentation", "torchio"): {"name": "RandomAffine"},
    ("fusion", "hasf"): {"heads": 4, "text_tokens": 4},
    ("segmentation_loss", "monai"): {"name": "TverskyLoss", "alpha": 0.3},
    ("optimizer", "torch"): {"name": "RAdam", "weight_decay": 0.01},
    ("schedule", "torch"): {"name": "StepLR", "step_size": 10},
    ("network", "spineparsenet"): {"coarse_size": (3, 32, 16), "coarse_width": 4, "hidden": 8, "widths": (4, 8, 12)},
    ("network", "ariadnes_thread"): {"widths": (4, 8, 12), "depths": (1, 1, 1), "text_tokens": (3, 2)},
    ("network", "attention_unet"): {"channels": [4, 6, 8]},
    ("network", "h_sam"): {
        "model": None,
        "frozen": False,
        "image_size": 96,
        "configuration": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "output_channels": 128},
    },
    ("network", "modified_bisenet"): {"channels": 4},
    ("network", "nnunet_v2"): {"features": 4, "max_features": 16},
    ("network", "swin_unetr"): {"feature_size": 12},
    ("network", "tevia"): {"widths": (4, 8, 12), "depths": (1, 1, 1), "text_tokens": (3, 2)},
    ("network", "u_bisenet"): {"channels": 4},
    ("network", "unet"): {"channels": [4, 6, 8]},
    ("network", "unetr"): {"feature_size": 4, "hidden_size": 24, "feed_forward_size": 32, "heads": 3},
    ("metric", "nsd"): {"tolerance": 1.0},
}


@pytest.fixture(scope="session")
def textseg_settings(
    tmp_path_factory: pytest.TempPathFactory, bert: Path
) -> Mapping[tuple[str, str], Mapping[str, Any] | None]:
    """With two phantoms in the layout of every data set."""
    folder = tmp_path_factory.mktemp("phantom")
    phantom = {"folder": str(folder), "cases": 2, "slices": 2, "size": [96, 64]}
    cases = installed_registry().build("dataset", "lumbar_phantom", settings=phantom).cases()
    spider = str(cases[0].image.parent.parent)
    atlas = installed_registry().build("atlas", "lumbar_spider", settings={})
    scheme = atlas.label_schemes["spider"]
    names = {f"{name} as {value}": name if name in atlas.names else "background" for value, name in scheme.items()}
    values = {"background": 0, **{f"{name} as {value}": value for value, name in scheme.items()}}
    (folder / "dataset.json").write_text(json.dumps({"labels": values}), encoding="utf-8")
    for number, case in enumerate(cases, start=1):
        for source, files in (
            (case.image, (f"imagesTr/{case.id}_0000.mha", f"train/MR/Case{number}.nii.gz")),
            (case.mask, (f"labelsTr/{case.id}.mha", f"train/Mask/mask_case{number}.nii.gz")),
        ):
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                volume = SimpleITK.ReadImage(source)
                SimpleITK.WriteImage(volume > 0 if "mask_case" in file else volume, folder / file)
    for name, path in (("images", cases[0].image), ("masks", cases[0].mask)):
        (folder / "pictures" / name).mkdir(parents=True)
        np.savez(folder / "pictures" / name / "case.npz", SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))[0])
    return {
        **SMALL,
        ("dataset", "image_folder"): {
            "folder": str(folder / "pictures"),
            "atlas": "lumbar_spider",
            "labels": "spider",
            "spacing_mm": [1.0, 2.0],
        },
        ("dataset", "lumbar_phantom"): phantom,
        ("dataset", "mrspineseg"): {"folder": str(folder)},
        ("dataset", "nifti_folder"): {"folder": spider, "atlas": "lumbar_spider", "labels": "spider"},
        ("dataset", "nnunet_raw"): {"folder": str(folder), "atlas": "lumbar_spider", "labels": names},
        ("dataset", "spider"): {"folder": spider},
        ("text_encoder", "huggingface"): {"model": str(bert)},
    }


@pytest.fixture(autouse=True)
def _what_it_stands_on(request: pytest.FixtureRequest) -> None:
    if "-timm-" in request.node.name:
        request.getfixturevalue("timm")
    if "-torchio-" in request.node.name:
        pytest.importorskip("torchio")
    for service in ("mlflow", "wandb"):
        if f"[logger-{service}-" in request.node.name and "-signature]" not in request.node.name:
            pytest.importorskip(service)
            request.getfixturevalue("monkeypatch").setenv("WANDB_MODE", "offline")


def test_it_keeps_what_its_contract_promises(textseg_check: Callable[[], None]) -> None:
    textseg_check()


def test_the_table_of_small_settings_names_what_exists() -> None:
    assert set(SMALL) <= {(component.kind, component.name) for component in installed_registry().components()}
