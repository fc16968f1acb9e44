"""What every test shares: quiet surroundings, and the few fixtures that several files need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from textseg.contracts import Atlas, Structure

# These are read when torch, transformers and matplotlib are imported, which no test has done yet.
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; a single process may have them all
    _share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _share)))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests out of the user's cache; subprocesses inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXTSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def spider_folder() -> Path:
    """A folder with real scans of SPIDER."""
    data = os.environ.get("TEXTSEG_DATA")
    if not data:
        pytest.skip("TEXTSEG_DATA is not set: no real scans to test with")
    folder = Path(data) / "spider"
    if not (folder / "images").is_dir():
        pytest.skip(f"{folder} holds no images/: no real scans to test with")
    return folder


@pytest.fixture(scope="session")
def small_atlas() -> Atlas:
    """Two vertebrae, the disc between them and the canal, which stands in no row."""
    return Atlas(
        name="small",
        structures=(
            Structure("L2", "lumbar vertebra", 1),
            Structure("L1", "lumbar vertebra", 2),
            Structure("L1/L2", "intervertebral disc", 3),
            Structure("SC", "spinal canal", 4),
        ),
        sequence=("L1", "L1/L2", "L2"),
        groups={"vertebrae": ("L1", "L2"), "discs": ("L1/L2",), "canal": ("SC",)},
        adjacent=(("L1", "L1/L2"), ("L1/L2", "L2")),
    )
