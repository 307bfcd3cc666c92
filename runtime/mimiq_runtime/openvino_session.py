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
from mimiq_runtime.edge.openvino_model import DEVICE, SETTINGS
from mimiq_runtime.errors import EngineError, MissingDependencyError, OnnxModelError
from mimiq_runtime.input_form import InputForm, input_form
from mimiq_runtime.machine import usable_cores
from mimiq_runtime.session import SessionInfo

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

__all__ = ["OpenVinoSession"]

# Layers of the CPU plugin that are one product each, and the operations they are made from.
_PRODUCTS = ("FullyConnected", "MatMul", "Convolution")
_OPERATIONS = ("MatMul", "Convolution")
# The layer that several operations are compiled into, such as both products of an attention.
_COMPILED = "Subgraph"

_TYPES = {InputForm.NORMALISED: "f32", InputForm.PIXELS: "u8"}
# Where the reader of ONNX files keeps their metadata.
_METADATA = "framework"


class OpenVinoSession:
    """An image classifier in OpenVINO, on the CPU.

    Floating point is single precision: on CPUs with bf16 or fp16 instructions OpenVINO would
    choose those, and its answers would no longer be those of the file. Weights are not quantized
    beyond what the file says for the same reason.

    Args:
        model: The ONNX file: one input, one output (N, classes). The input is float32
            (N, C, H, W), or uint8 (N, H, W, C) where the file's metadata says so.
        threads: Threads of one call; all cores that this process may use if None.
        tensors: Names of the outputs that the file has behind the logits; see
            :meth:`run_and_read`.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        OnnxModelError: The file is missing, broken, or not such a model.
        EngineError: OpenVINO has no CPU plugin here, or did not take the settings.
    """

    def __init__(
        self, model: Path, *, threads: int | None = None, tensors: Sequence[str] = ()
    ) -> None:
        openvino = _import_openvino()
        check_onnx_file(model)
        core = openvino.Core()
        if DEVICE not in core.available_devices:
            raise EngineError(
                f"Expected OpenVINO with its {DEVICE} plugin, got {core.available_devices}; "
                "pip install --force-reinstall 'mimiq-deploy[openvino]'."
            )
        threads = threads if threads is not None else usable_cores()
        network = _read(core, model)
        takes = input_form(_metadata(network))
        shape = _check_signature(model, network, takes, tensors)
        self._tensors = list(tensors)
        operations = _product_names(network)
        self._compiled: Any = _compile(core, network, model, threads)
        self.info = SessionInfo(
            engine="openvino",
            device=core.get_property(DEVICE, "FULL_DEVICE_NAME").strip(),
            provider=core.get_versions(DEVICE)[DEVICE].description,
            libraries={"openvino": openvino.__version__},
            threads=self._compiled.get_property("INFERENCE_NUM_THREADS"),
            model=str(model),
            model_sha256=sha256_of(model),
            input_shape=shape,
            takes=takes,
            precision=_type_name(self._compiled.get_property("INFERENCE_PRECISION_HINT")),
            products=_count_products(self._compiled, operations),
        )

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Logits (N, classes) of images in the form that the model takes; see :class:`Session`."""
        return self.run_and_read(images)[0]

    def run_and_read(
        self, images: NDArray[Any]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Logits, and the tensors that were asked for; see :class:`ReadsTensors`."""
        if self._compiled is None:
            raise EngineError("This session is closed; open another one.")
        check_images(images, self.info.input_shape, self.info.takes)
        try:
            outputs = self._compiled([np.ascontiguousarray(images)])
        # Its exceptions have no base of their own.
        except Exception as error:
            raise EngineError(
                f"OpenVINO failed to run {self.info.model}: {_reason(error)}."
            ) from error
        # Copies: the next call writes into the same memory.
        logits = check_logits(np.array(outputs[0]), len(images), self.info.model)
        places = range(1, len(self._tensors) + 1)
        return logits, {
            name: np.array(outputs[place])
            for name, place in zip(self._tensors, places, strict=True)
        }

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
    settings = {**SETTINGS, "INFERENCE_NUM_THREADS": threads}
    try:
        compiled = core.compile_model(network, DEVICE, settings)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO could not compile {model}: {_reason(error)}.") from error
    devices = list(compiled.get_property("EXECUTION_DEVICES"))
    if devices != [DEVICE]:
        raise EngineError(
            f"Expected OpenVINO to run {model} on {DEVICE}, and it chose {', '.join(devices)}."
        )
    return compiled


def _metadata(network: Any) -> dict[str, str]:
    """The metadata of the ONNX file that a network was read from."""
    if not network.has_rt_info([_METADATA]):
        return {}
    properties = network.get_rt_info([_METADATA]).value
    return {key: str(value) for key, value in properties.items()}


def _check_signature(
    model: Path, network: Any, takes: InputForm, tensors: Sequence[str]
) -> tuple[int | None, ...]:
    """Shape of the only input, None where any size goes."""
    inputs, outputs = network.inputs, network.outputs
    fits = (
        len(inputs) == 1
        and len(outputs) == 1 + len(tensors)
        and _type_name(inputs[0].element_type) == _TYPES[takes]
        and inputs[0].partial_shape.rank.is_static
        and len(inputs[0].partial_shape) == 4
    )
    if not fits:
        got = ", ".join(
            f"{value.any_name}: {_type_name(value.element_type)} {value.partial_shape}"
            for value in inputs
        )
        raise OnnxModelError(
            f"Expected one input {_TYPES[takes]} of shape {takes.axes} and one output, got inputs "
            f"({got}) and {len(outputs)} output(s) in {model}; export an image classifier."
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
