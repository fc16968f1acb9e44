"""A network from an ONNX file, which ONNX Runtime or OpenVINO runs instead of torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textseg.contracts import SegmenterOutput, TextFeatures
from textseg.errors import RunError, suggestion
from textseg.system.commands import pip_install

Engine = Literal["onnxruntime", "openvino"]
Session = Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]]

EXTRAS: Mapping[str, str] = {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}
IMAGE, TEXT, LOGITS = "image", ("tokens", "mask", "classwise", "present"), "logits"


class OnnxNetwork(nn.Module):
    """A network in an ONNX file that takes an image and, if it reads text, the tensors of `TextFeatures`.

    It holds no parameters, and computes on the CPU, in 32 bits, with as many threads as torch.
    """

    size_multiple = 1  # the file pads
    batching = "slice"

    def __init__(self, path: Path, *, uses_text: bool, engine: Engine = "onnxruntime") -> None:
        super().__init__()
        self.uses_text = uses_text
        self.engine = engine
        self.session = _SESSIONS[engine](path)

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        """Compute logits [B, K, H, W] of an image [B, C, H, W] of the size of the recipe, with its text."""
        inputs = {IMAGE: image} | ({} if text is None else text_inputs(text))
        arrays = {name: value.detach().cpu().numpy() for name, value in inputs.items()}
        return SegmenterOutput(torch.from_numpy(self.session(arrays)).to(image.device))


def text_inputs(text: TextFeatures) -> dict[str, Tensor]:
    """Return the text inputs of a network by name; tokens in 32 bits."""
    given = {name: value for name in TEXT if (value := getattr(text, name)) is not None}
    return {name: value.float() if value.is_floating_point() else value for name, value in given.items()}


def checked_engine(engine: str) -> Engine:
    """Return the engine; raise RunError for one that textseg does not know."""
    if engine not in get_args(Engine):
        raise RunError(f"--engine: there is no engine '{engine}'.{suggestion(engine, get_args(Engine))}")
    return engine  # type: ignore[return-value]


def optional_package(name: str) -> Any:
    """Import a package of an extra. Raises RunError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        install = pip_install(f"textseg[{EXTRAS[name]}]")
        raise RunError(f"The package '{error.name}' is not installed. Run `{install}`.") from error


def _onnxruntime(path: Path) -> Session:
    runtime = optional_package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes are made by its C++ part, and have no parent of their own
        raise _unreadable(path, error) from error
    wanted = {given.name for given in session.get_inputs()}

    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(None, {name: inputs[name] for name in wanted})[0]
        return logits

    return run


def _openvino(path: Path) -> Session:
    openvino = optional_package("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # else 16 bits where the processor can
    }
    try:
        model = openvino.Core().compile_model(str(path), "CPU", settings)
    except Exception as error:
        raise _unreadable(path, error) from error
    wanted = {given.any_name for given in model.inputs}

    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        # A copy: the next call writes into the same memory.
        return np.array(model({name: inputs[name] for name in wanted})[0])

    return run


def _unreadable(path: Path, error: Exception) -> RunError:
    return RunError(f"'{path}' can't be run: {' '.join(str(error).split())[:300]}")


_SESSIONS: Mapping[Engine, Callable[[Path], Session]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
