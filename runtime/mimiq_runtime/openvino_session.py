"""A session of OpenVINO on the CPU, in single precision where the model is not quantized."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mimiq_runtime.atomic import sha256_of
from mimiq_runtime.classifier_checks import (
    check_images,
    check_logits,
    check_onnx_file,
    first_line,
)
from mimiq_runtime.errors import EngineError, MissingDependencyError, OnnxModelError
from mimiq_runtime.machine import usable_cores
from mimiq_runtime.session import SessionInfo

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

__all__ = ["OpenVinoSession"]

_DEVICE = "CPU"

# Layers of the CPU plugin that are one product each, and the operations they are made from.
_PRODUCTS = ("FullyConnected", "MatMul", "Convolution")
_OPERATIONS = ("MatMul", "Convolution")
# The layer that several operations are compiled into, such as both products of an attention.
_COMPILED = "Subgraph"


class OpenVinoSession:
    """An image classifier in OpenVINO, on the CPU.

    Floating point is single precision: on CPUs with bf16 or fp16 instructions OpenVINO would
    choose those, and its answers would no longer be those of the file. Weights are not quantized
    beyond what the file says for the same reason.

    Args:
        model: The ONNX file: one float32 input (N, C, H, W), one output (N, classes).
        threads: Threads of one call; all cores that this process may use if None.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        OnnxModelError: The file is missing, broken, or not such a model.
        EngineError: OpenVINO has no CPU plugin here, or did not take the settings.
    """

    def __init__(self, model: Path, *, threads: int | None = None) -> None:
        openvino = _import_openvino()
        check_onnx_file(model)
        core = openvino.Core()
        if _DEVICE not in core.available_devices:
            raise EngineError(
                f"Expected OpenVINO with its {_DEVICE} plugin, got {core.available_devices}; "
                "pip install --force-reinstall 'mimiq-deploy[openvino]'."
            )
        threads = threads if threads is not None else usable_cores()
        network = _read(core, model)
        shape = _check_signature(model, network)
        operations = _product_names(network)
        self._compiled: Any = _compile(core, network, model, threads)
        self.info = SessionInfo(
            engine="openvino",
            device=core.get_property(_DEVICE, "FULL_DEVICE_NAME").strip(),
            provider=core.get_versions(_DEVICE)[_DEVICE].description,
            libraries={"openvino": openvino.__version__},
            threads=self._compiled.get_property("INFERENCE_NUM_THREADS"),
            model=str(model),
            model_sha256=sha256_of(model),
            input_shape=shape,
            precision=_type_name(self._compiled.get_property("INFERENCE_PRECISION_HINT")),
            products=_count_products(self._compiled, operations),
        )

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, classes) of normalised images (N, C, H, W); see :class:`Session`."""
        if self._compiled is None:
            raise EngineError("This session is closed; open another one.")
        check_images(images, self.info.input_shape)
        try:
            outputs = self._compiled([np.ascontiguousarray(images)])
        # Its exceptions have no base of their own.
        except Exception as error:
            raise EngineError(
                f"OpenVINO failed to run {self.info.model}: {_reason(error)}."
            ) from error
        # A copy: the next call writes into the same memory.
        return check_logits(np.array(outputs[0]), len(images), self.info.model)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._compiled = None


def _import_openvino() -> Any:
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingDependencyError("openvino", "openvino") from error
    except (ImportError, OSError) as error:
        raise EngineError(
            f"OpenVINO is installed and cannot be loaded ({first_line(error)}); "
            "pip install --force-reinstall 'mimiq-deploy[openvino]'."
        ) from error
    return openvino


def _read(core: Any, model: Path) -> Any:
    # Its readers try one format after the other, and some of them print what they do not know.
    try:
        return core.read_model(str(model))
    except RuntimeError as error:
        raise OnnxModelError(
            f"{model} is not a model that OpenVINO can read: {_reason(error)}; export it again."
        ) from error


def _compile(core: Any, network: Any, model: Path, threads: int) -> Any:
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    try:
        compiled = core.compile_model(network, _DEVICE, settings)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO could not compile {model}: {_reason(error)}.") from error
    devices = list(compiled.get_property("EXECUTION_DEVICES"))
    if devices != [_DEVICE]:
        raise EngineError(
            f"Expected OpenVINO to run {model} on {_DEVICE}, and it chose {', '.join(devices)}."
        )
    return compiled


def _check_signature(model: Path, network: Any) -> tuple[int | None, ...]:
    """Shape of the only input, None where any size goes."""
    inputs, outputs = network.inputs, network.outputs
    fits = (
        len(inputs) == len(outputs) == 1
        and _type_name(inputs[0].element_type) == "f32"
        and inputs[0].partial_shape.rank.is_static
        and len(inputs[0].partial_shape) == 4
    )
    if not fits:
        got = ", ".join(
            f"{value.any_name}: {_type_name(value.element_type)} {value.partial_shape}"
            for value in inputs
        )
        raise OnnxModelError(
            f"Expected one input f32 of shape (N, C, H, W) and one output, got inputs ({got}) and "
            f"{len(outputs)} output(s) in {model}; export an image classifier."
        )
    return tuple(size.get_length() if size.is_static else None for size in inputs[0].partial_shape)


def _product_names(network: Any) -> set[str]:
    return {
        node.get_friendly_name()
        for node in network.get_ordered_ops()
        if node.get_type_name() in _OPERATIONS
    }


def _count_products(compiled: Any, operations: set[str]) -> dict[str, int]:
    """Number of products by the precision that the plugin says it runs them in."""
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind, precision, origins = (
            facts[key].astype(str) if key in facts else ""
            for key in ("layerType", "runtimePrecision", "originalLayersNames")
        )
        if kind in _PRODUCTS:
            counts[precision] += 1
        elif kind == _COMPILED:
            counts[precision] += len(operations.intersection(origins.split(",")))
    return {name: count for name, count in sorted(counts.items()) if count}


def _type_name(kind: Any) -> str:
    return str(kind.to_string() if hasattr(kind, "to_string") else kind.get_type_name())


def _reason(error: Exception) -> str:
    """The line that says what is wrong: those before it are places in OpenVINO's source."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("Exception from ")]
    return telling[0] if telling else first_line(error)
