"""TensorRT's engine inspector: its JSON, in the forms of versions 10 and 11, as plain records.

Version 10 describes a tensor by ``"Format/Datatype": "Int8"`` or, in older minor versions, by a
sentence such as ``"Row major Int8 format"``. Version 11 has ``"Format"`` and ``"Datatype"`` apart,
and ``"I/O Tensors"`` (objects) where version 10 has ``"Bindings"`` (names). Engines that were
built without detailed profiling list layers as bare names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mimiq_runtime.errors import EngineError
from mimiq_runtime.strict_json import parse_json

__all__ = ["EngineLayer", "EngineTensor", "parse_engine_information"]

_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]*)\]")

# In the order in which they are looked for: "Int8" would also be found in "UInt8".
_TYPES = {
    "uint8": "uint8",
    "int8": "int8",
    "int32": "int32",
    "int64": "int64",
    "int4": "int4",
    "fp8": "fp8",
    "fp4": "fp4",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "half": "fp16",
    "fp32": "fp32",
    "float": "fp32",
    "bool": "bool",
}


@dataclass(frozen=True)
class EngineTensor:
    """A tensor between layers.

    Attributes:
        name: Its name in the engine.
        dtype: ``int8``, ``fp16``, ``fp32`` and so on; ``unknown`` where the engine does not say.
        shape: Its sizes, -1 where any goes; None where the engine does not say.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class EngineLayer:
    """A layer of a built engine: one kernel, or a few.

    Attributes:
        name: Its name in the engine.
        kind: TensorRT's type of it, such as ``gemm`` or ``kgen``.
        inputs: Tensors that it reads.
        outputs: Tensors that it writes.
        weights: Type of its own weights, where it tells.
        kernel: Name of the tactic, usually that of the kernel.
        onnx_nodes: The nodes of the ONNX file that it was made of.
    """

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    weights: str | None
    kernel: str
    onnx_nodes: tuple[str, ...]


def parse_engine_information(text: str) -> list[EngineLayer]:
    """Read what ``EngineInspector.get_engine_information`` gives as JSON.

    Args:
        text: The JSON of TensorRT 10 or 11.

    Returns:
        The layers in their order.

    Raises:
        EngineError: It is no such JSON, or has the names of layers only.
    """
    try:
        layers = parse_json(text)["Layers"]
        if not isinstance(layers, list):
            raise TypeError("Layers is no list")
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            "Expected the engine inspector's JSON with a list of Layers, got "
            f"{text[:60]!r}; build the engine again with mimiq-deploy build."
        ) from error
    if not all(isinstance(layer, dict) for layer in layers):
        raise EngineError(
            "The engine lists the names of its layers only, so that nothing can be said about "
            "precision; build it with detailed profiling, as mimiq-deploy build does."
        )
    try:
        return [_layer(layer) for layer in layers]
    except (AttributeError, TypeError) as error:
        raise EngineError(
            "Expected the engine inspector's JSON with the tensors of each layer, got another "
            f"form ({error}); build the engine again with mimiq-deploy build."
        ) from error


def _layer(fields: dict[str, Any]) -> EngineLayer:
    weights = fields.get("Weights")
    return EngineLayer(
        name=str(fields.get("Name", "")),
        kind=str(fields.get("LayerType", "")),
        inputs=tuple(_tensor(tensor) for tensor in fields.get("Inputs", [])),
        outputs=tuple(_tensor(tensor) for tensor in fields.get("Outputs", [])),
        weights=_dtype(str(weights.get("Type", ""))) if isinstance(weights, dict) else None,
        # Kernels of TensorRT's own compiler have a name, others a number beside it.
        kernel=str(fields.get("TacticName") or fields.get("TacticValue") or ""),
        onnx_nodes=tuple(dict.fromkeys(_ONNX_LAYER.findall(str(fields.get("Metadata", ""))))),
    )


def _tensor(fields: dict[str, Any]) -> EngineTensor:
    named = fields.get("Datatype") or fields.get("DataType") or fields.get("Format/Datatype") or ""
    sizes = fields.get("Dimensions")
    if not (isinstance(sizes, list) and all(isinstance(size, int) for size in sizes)):
        sizes = None
    return EngineTensor(
        name=str(fields.get("Name", "")),
        dtype=_dtype(str(named)),
        shape=None if sizes is None else tuple(sizes),
    )


def _dtype(text: str) -> str:
    words = text.lower()
    return next((name for sign, name in _TYPES.items() if sign in words), "unknown")
