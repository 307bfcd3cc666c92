"""A model repository for NVIDIA's Triton Inference Server.

``config.pbtxt`` is the text form of Triton's message ``ModelConfig``; a test parses it with the
message that NVIDIA publishes (tests/deploy/test_triton.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mimiq_runtime.edge.ort_providers import CUDA, TENSORRT, providers_of
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.input_form import InputForm

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_deploy.bundle.packed_model import PackedModel
    from mimiq_deploy.bundle.packing import Content
    from mimiq_runtime.manifest import RunManifest

__all__ = ["LABELS", "check_name", "is_model_folder", "model_config", "triton_files"]

CONFIG = "config.pbtxt"
LABELS = "labels.txt"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

# How long a request waits for others to share a batch with: well below the time of one batch.
_QUEUE_DELAY_US = 500


@dataclass(frozen=True)
class _Backend:
    """What runs a model in Triton.

    Attributes:
        name: The backend.
        platform: The older name that some versions still ask for; empty where there is none.
        file: The model's name in the repository.
        kind: Where an instance runs.
    """

    name: str
    platform: str
    file: str
    kind: str


_ON_ORT = ("onnxruntime", "onnxruntime_onnx", "model.onnx")
_BACKENDS = {
    "ort-cpu": _Backend(*_ON_ORT, kind="KIND_CPU"),
    "ort-cuda": _Backend(*_ON_ORT, kind="KIND_GPU"),
    "ort-trt": _Backend(*_ON_ORT, kind="KIND_GPU"),
    "openvino": _Backend("openvino", "", "model.onnx", kind="KIND_CPU"),
    "trt": _Backend("tensorrt", "tensorrt_plan", "model.plan", kind="KIND_GPU"),
}


def check_name(name: str) -> str:
    """Give the name back, or raise :class:`InvalidInputError` where it can be no folder's."""
    if _NAME.fullmatch(name) is None:
        raise InvalidInputError(
            f"Expected a model name of letters, digits, '_', '-' and '.', got {name!r}."
        )
    return name


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is a model of a Triton repository."""
    return (folder / CONFIG).is_file()


def triton_files(
    model: PackedModel,
    manifest: RunManifest,
    *,
    name: str,
    labels: str | None,
    max_batch: int,
) -> dict[str, Content]:
    """The files of one model of a repository, by their paths inside its folder.

    Args:
        model: The model.
        manifest: Of its run.
        name: The model's name in Triton, and that of its folder.
        labels: Names of the classes, one a line, or None.
        max_batch: Largest batch of an ONNX file; a plan knows its own.
    """
    config = model_config(
        model, manifest, name=name, with_labels=labels is not None, max_batch=max_batch
    )
    files: dict[str, Content] = {
        CONFIG: config.encode(),
        f"1/{_BACKENDS[model.engine].file}": model.path,
        **{f"1/{path.name}": path for path in model.beside},
    }
    return files if labels is None else {**files, LABELS: labels.encode()}


def model_config(
    model: PackedModel,
    manifest: RunManifest,
    *,
    name: str,
    with_labels: bool,
    max_batch: int,
) -> str:
    """``config.pbtxt``; see :func:`triton_files`."""
    backend = _BACKENDS[model.engine]
    largest = max_batch if model.plan is None else model.plan.options.max_batch
    lines = [f'name: "{name}"', f'backend: "{backend.name}"']
    if backend.platform:
        lines.append(f'platform: "{backend.platform}"')
    lines += [
        f'default_model_filename: "{backend.file}"',
        f"max_batch_size: {largest}",
        *_input(model, manifest.preprocessing.input_size),
        *_output(manifest.model.num_classes, with_labels=with_labels),
        f"instance_group [ {{ count: 1 kind: {backend.kind} }} ]",
        *_batching(model, largest),
        *_optimization(model),
    ]
    return "\n".join(lines) + "\n"


def _input(model: PackedModel, size: tuple[int, int, int]) -> list[str]:
    channels, height, width = size
    if model.takes is InputForm.PIXELS:
        kind, order, dims = "TYPE_UINT8", "FORMAT_NHWC", (height, width, channels)
    else:
        kind, order, dims = "TYPE_FP32", "FORMAT_NCHW", (channels, height, width)
    return [
        "input [",
        "  {",
        f'    name: "{model.input_name}"',
        f"    data_type: {kind}",
        f"    format: {order}",
        f"    dims: [ {', '.join(map(str, dims))} ]",
        "  }",
        "]",
    ]


def _output(classes: int, *, with_labels: bool) -> list[str]:
    return [
        "output [",
        "  {",
        '    name: "logits"',
        "    data_type: TYPE_FP32",
        f"    dims: [ {classes} ]",
        *([f'    label_filename: "{LABELS}"'] if with_labels else []),
        "  }",
        "]",
    ]


def _batching(model: PackedModel, largest: int) -> list[str]:
    if largest == 1:
        return []
    # Only a plan has a batch that it is tuned for.
    preferred = (
        [f"  preferred_batch_size: [ {model.plan.options.opt_batch} ]"]
        if model.plan is not None
        else []
    )
    delay = f"  max_queue_delay_microseconds: {_QUEUE_DELAY_US}"
    return ["dynamic_batching {", *preferred, delay, "}"]


def _optimization(model: PackedModel) -> list[str]:
    """The provider's options, as the engine's own session has them."""
    if model.engine not in ("ort-cuda", "ort-trt"):
        return []
    names = {CUDA: "cuda", TENSORRT: "tensorrt"}
    accelerators = []
    for provider in providers_of(model.engine, model.path):
        if isinstance(provider, tuple) and provider[0] in names:
            accelerators += _accelerator(names[provider[0]], provider[1])
    # 2 turns ONNX Runtime's own rewriting off, so that TensorRT meets Q/DQ pairs where they were.
    graph = ["  graph { level: 2 }"] if model.engine == "ort-trt" else []
    return [
        "optimization {",
        *graph,
        "  execution_accelerators {",
        *accelerators,
        "  }",
        "}",
    ]


def _accelerator(name: str, options: dict[str, object]) -> list[str]:
    # The device is the instance's, and where the server may write is its own affair.
    kept = {
        key: str(int(value))
        for key, value in options.items()
        if isinstance(value, int) and not key.endswith("cache_enable") and key != "device_id"
    }
    parameters = [
        f'        parameters {{ key: "{key}" value: "{value}" }}' for key, value in kept.items()
    ]
    return [
        "    gpu_execution_accelerator [",
        "      {",
        f'        name: "{name}"',
        *parameters,
        "      }",
        "    ]",
    ]
