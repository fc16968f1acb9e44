"""Fixtures that several test files share, and an environment without warnings or user settings."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from textseg.contracts import Atlas, Case, PromptGenerator, Prompts, Source, Structure, Visibility

if TYPE_CHECKING:
    import SimpleITK
    from torch import nn

    from textseg.data.preparation import PreparedCase
    from textseg.text.drawn_text import DrawnText
    from textseg.text.embeddings import TextTable
    from textseg.text.slice_text import SlicePrompt, SliceText

pytest_plugins = ["textseg.testing.pytest"]

# These are read when torch, transformers and matplotlib are imported, which no test has done yet.
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; a single process may have them all
    _share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _share)))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the nightly tests out unless `-m` names them. Begin with the slow ones, so that no worker ends alone."""
    if "nightly" not in config.option.markexpr:
        nightly = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all workers of pytest-xdist have in common; who makes something there holds a lock."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


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
    """An atlas with two vertebrae, the disc between them, and the canal, which is not in the sequence."""
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


@pytest.fixture(scope="session")
def timm() -> None:
    """Make timm importable even if torchvision was compiled for another torch; timm calls none of its operators."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: `nox -s timm` tests with it")
    from textseg.system.torch_builds import usable_torchvision

    usable_torchvision()


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "contains", "l", "##1", "##2", "spine", "the", "."]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random BERT, like a download from the hub."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=40).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


THIRD_PARTY = '''
"""Components of a third party: a cheap text encoder, and networks for each special case of the loop."""

import hashlib

import torch
from torch import nn

from textseg import hookimpl
from textseg.contracts import SegmenterOutput, Task


class HashedWords:
    """Each word is a fixed random vector."""

    feature_size = 16
    max_tokens = 512
    fingerprint = "hashed words 1"

    def count_tokens(self, texts):
        return [len(text.split()) for text in texts]

    def __call__(self, texts):
        rows = [torch.stack([self.vector(word) for word in text.split()]) for text in texts]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(tokens.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
        return tokens, mask

    def vector(self, word):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
        return torch.randn(self.feature_size, generator=torch.Generator().manual_seed(seed))


class Plain(nn.Module):
    """Dropout draws, batch normalisation keeps floating-point buffers and a counter, `index` is a table."""

    uses_text = False
    size_multiple = 4

    def __init__(self, task: Task, *, channels: int = 4):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(task.image_channels, channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(channels, task.class_count, 1),
        )
        self.register_buffer("index", torch.arange(1000))

    def forward(self, image, text):
        return SegmenterOutput(self.layers(image))


class Reader(Plain):
    """Says that it reads text."""

    uses_text = True


class Staged(nn.Module):
    """A volume at a time: first what looks across slices is trained, then what refines its maps slice by slice."""

    uses_text = False
    size_multiple = 1
    batching = "volume"
    stages = {"coarse": 1.0, "fine": 2.0}

    def __init__(self, task: Task):
        super().__init__()
        layers = nn.Conv3d(1, task.class_count, 3, padding=1), nn.BatchNorm3d(task.class_count), nn.Dropout(0.2)
        self.coarse = nn.Sequential(*layers)
        self.fine = nn.Conv2d(1 + task.class_count, task.class_count, 3, padding=1)
        self.stage = ""

    def start_stage(self, name):
        self.stage = name
        self.coarse.requires_grad_(name == "coarse").train(name == "coarse")
        self.fine.requires_grad_(name == "fine")

    def forward(self, image, text):
        coarse = self.coarse(image.transpose(0, 1)[None])[0].transpose(0, 1)
        if self.training and self.stage == "coarse":
            return SegmenterOutput(coarse)
        return SegmenterOutput(self.fine(torch.cat([image, coarse], dim=1)))


@hookimpl
def textseg_register(register):
    register.network("staged", Staged)
    register.text_encoder("hashed_words", HashedWords)
    register.network("plain", Plain)
    register.network("reader", Reader)
'''

TINY = """format: 1
name: tiny
reference: https://example.org/tiny
dataset: {{use: lumbar_phantom, folder: {folder}, cases: 8, slices: 5, size: [96, 80], spacing_mm: 3.0}}
split: {{fractions: [0.6, 0.2, 0.2]}}
preparation: {{size: [48, 40]}}
augmentation: {{distortion: 0.5, rotation_degrees: 10, elastic_pixels: 1, noise: 0.02}}
prompts:
  generator: {{use: atpg_lumbar}}
  text_encoder: {{use: hashed_words}}
  training: {{ground_truth: 0.5, template: 0.5}}
model:
  vision_encoder: {{use: residual_convolutions, channels: [4, 8], stem_stride: 2}}
  fusion: {{use: hasf, heads: 2, stages: 1}}
segmentation_loss: {{dice: 1.0, focal: 1.0}}
auxiliary_losses: [{{use: ccae, weight: 0.2}}]
training: {{epochs: 3, batch_size: 4, learning_rate: 1.0e-2, precision: 32-true, threads: 1, average_decay: 0.5}}
evaluation: {{}}
"""


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed third-party distribution."""
    folder = tmp_path_factory.mktemp("third_party")
    (folder / "stranger.py").write_text(THIRD_PARTY)
    information = folder / "stranger-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.2\n")
    (information / "entry_points.txt").write_text("[textseg]\nstranger = stranger\n")
    return folder


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Pretend that a distribution is installed, also for subprocesses."""
    from textseg.registry.discovery import installed_registry

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        installed_registry.cache_clear()
        yield
    installed_registry.cache_clear()


@pytest.fixture(scope="session")
def installed_from() -> Callable[[Path], AbstractContextManager[None]]:
    """A context in which the content of a folder is installed, also for subprocesses."""
    return installed


def _install_into(folder: Path, plugin: str, package: str, modules: Mapping[str, str]) -> None:
    (folder / package).mkdir()
    for name, source in {"__init__": "", **modules}.items():
        (folder / package / f"{name}.py").write_text(textwrap.dedent(source))
    distribution = package.replace("_", "-")
    information = folder / f"{package}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[textseg]\n{plugin} = {package}.plugin\n")


@pytest.fixture(scope="session")
def install_into() -> Callable[[Path, str, str, Mapping[str, str]], None]:
    """Put a package into a folder as pip does: folder, names of plug-in and package, modules, one of them `plugin`."""
    return _install_into


@pytest.fixture(scope="module")
def stranger(third_party: Path) -> Iterator[None]:
    """The third-party distribution is installed while the tests of a file run."""
    with installed(third_party):
        yield


@pytest.fixture(scope="session")
def tiny_recipe(shared_folder: Path) -> Path:
    """A recipe that trains in seconds; all workers draw its scans in one folder."""
    recipe = shared_folder / "tiny" / "tiny.yaml"
    with FileLock(shared_folder / "tiny.lock"):
        if not recipe.exists():
            recipe.parent.mkdir()
            recipe.write_text(TINY.format(folder=recipe.parent / "data"))
    return recipe


@pytest.fixture(scope="session")
def finished_run(tiny_recipe: Path, third_party: Path) -> Path:
    """The folder of a run of the tiny recipe that was never interrupted, one for all workers; tests don't change it."""
    from textseg.training.run import run

    folder = tiny_recipe.parent / "runs" / "tiny" / "seed2025"
    finished = tiny_recipe.parent / "finished"
    with FileLock(finished.with_suffix(".lock")), installed(third_party):
        if not finished.exists():
            assert run(tiny_recipe, output=tiny_recipe.parent / "runs") == folder
            finished.touch()
    return folder


@pytest.fixture
def copied(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run for a test that changes it; `output` is its second parent."""
    return Path(shutil.copytree(finished_run, tmp_path / "runs" / "tiny" / finished_run.name))


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of threads, which a run sets in its process."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class HtmlPage(HTMLParser):
    """A parser that checks for balanced tags, and collects text, tags, attributes and links."""

    VOID = frozenset({"meta", "img", "br", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.links: list[str | None] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(html.replace("<wbr>", ""))  # where a name may be broken
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href")]
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="session")
def html_page() -> type[HtmlPage]:
    """Reads a page."""
    return HtmlPage


SLICE_SIZE = (12, 10)
SOURCES: tuple[Source, ...] = ("ground_truth", "interactive", "template")


def _speak(visibility: Visibility) -> Prompts:
    """Return prompts that contain the whole visibility."""
    facts = [*visibility.visible, visibility.source, visibility.scope, visibility.slice_index, visibility.slice_count]
    classwise = ("L2", "L1", "L1/L2", "SC")
    return Prompts(json.dumps([*facts, visibility.facts]), tuple(f"{n} {n in visibility.visible}" for n in classwise))


def _prepared_case(folder: Path, name: str, slices: Sequence[Sequence[int]], sequence: str = "T2") -> PreparedCase:
    """Make a case whose slices show the given class indices, each in its own row; pixels encode case and slice."""
    import numpy as np

    from textseg.data.preparation import PreparedCase
    from textseg.data.slice_geometry import SliceGeometry

    folder = folder / name
    folder.mkdir(parents=True)
    mask = np.zeros((len(slices), *SLICE_SIZE), np.uint8)
    image = np.random.default_rng(len(name) + len(slices)).random(mask.shape).astype(np.float16)
    for plane, present in zip(mask, slices, strict=True):
        for index in present:
            plane[2 * index] = index
    np.save(folder / "image.npy", image[:, None])
    np.save(folder / "mask.npy", mask)
    return PreparedCase(
        case=Case(name, name, Path("i.mha"), Path("m.mha"), {"sequence": sequence}),
        folder=folder,
        key=name,
        slice_geometry=SliceGeometry(0, 0, *SLICE_SIZE, SLICE_SIZE),
        spacing_mm=(4.0, 1.0 + len(slices), 1.5),
        native_spacing_mm=(4.0, 1.0, 1.5),
        intensities=((0.0, 1.0),),
        present=tuple(map(tuple, slices)),
        image_hash="",
    )


def _text_of(cases: Sequence[PreparedCase], atlas: Atlas) -> SliceText:
    from textseg.text.slice_text import SliceText, slice_prompts

    prompts = {source: [p for case in cases for p in slice_prompts(case, source, _speak, atlas)] for source in SOURCES}
    return SliceText(_random_table([p for of_source in prompts.values() for p in of_source]), atlas, prompts)


def _drawn_text_of(cases: Sequence[PreparedCase], atlas: Atlas, **options: Any) -> DrawnText:
    """Return the texts of `Statements` with these options; `generator` replaces the one that states everything."""
    from textseg.text.drawn_text import DrawnText, Statements

    generator = options.pop("generator", _speak)
    statements = Statements(cases, options.pop("sources", SOURCES), generator, atlas, **options)
    return DrawnText(statements, _random_table(statements.prompts))


def _random_table(prompts: Sequence[SlicePrompt]) -> TextTable:
    import torch

    from textseg.text.embeddings import TextTable

    texts = list(dict.fromkeys(text for prompt in prompts for text in prompt.texts))
    generator = torch.Generator().manual_seed(0)
    return TextTable(
        texts=tuple(texts),
        token_counts=(5,) * len(texts),
        tokens=torch.randn(len(texts), 5, 3, generator=generator).half(),
        mask=torch.rand(len(texts), 5, generator=generator) > 0.3,
        pooled=torch.randn(len(texts), 3, generator=generator).half(),
        fingerprint="",
        encoded_count=0,
    )


@pytest.fixture(scope="session")
def speak() -> PromptGenerator:
    """A prompt generator whose texts contain the whole visibility."""
    return _speak


@pytest.fixture
def prepared_case(tmp_path: Path) -> Callable[..., PreparedCase]:
    """A function that makes a case in the slice store from a name and the class indices of each slice."""
    return partial(_prepared_case, tmp_path)


@pytest.fixture
def cases(prepared_case: Callable[..., PreparedCase]) -> list[PreparedCase]:
    """Three cases of five, two and six slices; some show nothing."""
    return [
        prepared_case("a", [(), (2, 3), (2, 4), (3,), ()]),
        prepared_case("bb", [(4,), (4,)], "T1"),
        prepared_case("ccc", [(1,), (1, 2, 3, 4), (2,), (), (), (3,)]),
    ]


@pytest.fixture(scope="session")
def text_of() -> Callable[[Sequence[PreparedCase], Atlas], SliceText]:
    """A text table of some cases for each prompt source, with random features."""
    return _text_of


@pytest.fixture(scope="session")
def drawn_text_of() -> Callable[..., DrawnText]:
    """The texts that training draws for some cases and an atlas, with random features; options as of `Statements`."""
    return _drawn_text_of


@pytest.fixture(scope="session")
def across() -> type[nn.Module]:
    """A network that must get whole volumes, and counts its inputs."""
    from torch import Tensor, nn

    from textseg.contracts import SegmenterOutput, TextFeatures

    class Across(nn.Module):
        """Predict by the difference from the middle slice of the volume, so that an incomplete case is noticed."""

        uses_text = False
        size_multiple = 1
        batching = "volume"

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv3d(1, 3, (3, 1, 1), padding=(1, 0, 0), bias=False)
            self.shown: list[int] = []

        def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
            self.shown.append(len(image))
            volume: Tensor = self.layer(image.transpose(0, 1)[None])[0]
            return SegmenterOutput(volume.transpose(0, 1))

    return Across


@pytest.fixture(scope="session")
def write_series() -> Callable[..., list[Path]]:
    """A function that writes an image as the files of a DICOM series into a folder."""
    pytest.importorskip("pydicom")
    return _write_series


def _write_series(
    image: SimpleITK.Image,
    folder: Path,
    *,
    number: int = 1,
    prefix: str = "",
    suffix: str = ".dcm",
    slope: float = 1.0,
    shuffle: bool = False,
    compressed: bool = False,
) -> list[Path]:
    """Write a series of MR slices like a scanner, in random order with `shuffle`, and return the files."""
    import numpy as np
    import SimpleITK as sitk
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, RLELossless, generate_uid

    study, frame = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["frame"])
    folder.mkdir(parents=True, exist_ok=True)
    array = sitk.GetArrayFromImage(image)
    directions = np.reshape(image.GetDirection(), (3, 3))
    columns_mm, rows_mm, slices_mm = image.GetSpacing()
    uid = generate_uid(entropy_srcs=[str(folder), prefix, str(number)])
    order = np.random.default_rng(0).permutation(len(array)) if shuffle else np.arange(len(array))
    files = []
    for ordinal, index in enumerate(order.tolist(), start=1):
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        dataset = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
        meta = dataset.file_meta
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=[uid, str(index)])
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, UID(uid), frame
        dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "MR", number, ordinal
        dataset.PatientID, dataset.PatientName, dataset.StudyID = "1", "Nobody", "1"
        dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
        dataset.StudyDate, dataset.StudyTime = "20260101", "120000"
        dataset.ImagePositionPatient = [_decimal(part) for part in position]
        dataset.ImageOrientationPatient = [_decimal(part) for part in (*directions[:, 0], *directions[:, 1])]
        dataset.PixelSpacing = [_decimal(rows_mm), _decimal(columns_mm)]
        dataset.SliceThickness = _decimal(slices_mm)
        dataset.Rows, dataset.Columns = array.shape[1:]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = _decimal(slope), "0"
        dataset.PixelData = array[index].astype("<i2").tobytes()
        if compressed:
            dataset.compress(RLELossless)
        files.append(folder / f"{prefix}{ordinal:03}{suffix}")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def _decimal(value: float) -> str:
    import pydicom

    return pydicom.valuerep.format_number_as_ds(float(value))
