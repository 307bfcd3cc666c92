"""What an ONNX file holds, as data; ``mimiq-deploy inspect`` prints it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from mimiq_runtime.bounded_file import read_bytes
from mimiq_runtime.errors import MissingDependencyError, OnnxModelError
from mimiq_runtime.onnx_external_data import LARGEST_MESSAGE
from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = [
    "HEAVY_OPERATORS",
    "OnnxSummary",
    "OperatorQuantization",
    "TensorSummary",
    "summarise_onnx",
]

HEAVY_OPERATORS = ("MatMul", "Gemm", "Conv")
"""The operators whose arithmetic quantization is about."""

# They move values and change none, and engines carry a DequantizeLinear across them.
_LAYOUT_OPERATORS = frozenset(
    {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)


class TensorSummary(Schema):
    """An input or an output of the model.

    Attributes:
        name: Its name.
        type: Element type, such as ``float``.
        shape: Size of each axis; the symbol's name, or None, where it is free. None in all when
            the file states no shape.
    """

    name: str
    type: str
    shape: list[int | str | None] | None


class OperatorQuantization(Schema):
    """How many operators of one type work on quantized values.

    Attributes:
        operator: The type.
        total: How many there are.
        quantized: How many have both operands from a DequantizeLinear, directly or across
            operators that only move values (Transpose, Reshape, ...).
        others: Names of those that have not.
    """

    operator: str
    total: int
    quantized: int
    others: list[str]


class OnnxSummary(Schema):
    """What an ONNX file holds; nodes of sub-graphs are counted, those of functions are not.

    Attributes:
        path: The file as it was given.
        bytes: Its size, without external data.
        ir_version: Version of the file format.
        producer: What wrote it, with its version.
        opsets: Version of each operator set, by domain.
        inputs: What the model takes, without its weights.
        outputs: What it gives.
        operators: Number of nodes of each type, most frequent first.
        quantization: For each of :data:`HEAVY_OPERATORS` that occurs.
        external_data: Files that hold weights outside this one.
        metadata: The model's metadata properties.
    """

    path: str
    bytes: int
    ir_version: int
    producer: str
    opsets: dict[str, int]
    inputs: list[TensorSummary]
    outputs: list[TensorSummary]
    operators: dict[str, int]
    quantization: list[OperatorQuantization]
    external_data: list[str]
    metadata: dict[str, str]

    @property
    def quantized_share(self) -> float | None:
        """Share of the heavy operators that work on quantized values; None without any."""
        total = sum(row.total for row in self.quantization)
        return sum(row.quantized for row in self.quantization) / total if total else None


def summarise_onnx(path: Path) -> OnnxSummary:
    """Read an ONNX file, without its external data, and collect what it holds.

    Raises:
        MissingDependencyError: The library onnx is not installed.
        OnnxModelError: The file is missing, or no ONNX model.
    """
    model = _load(path)
    try:
        return _summarise(path, model)
    # protobuf hands out bytes, and pydantic refuses them, where a damaged text is not UTF-8.
    except (TypeError, ValueError) as error:
        raise OnnxModelError(_broken(path)) from error


def _summarise(path: Path, model: Any) -> OnnxSummary:
    weights = {tensor.name for tensor in model.graph.initializer}
    nodes = list(_nodes(model.graph))
    counts = Counter(_operator(node) for node in nodes)
    return OnnxSummary(
        path=str(path),
        bytes=path.stat().st_size,
        ir_version=model.ir_version,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        opsets={opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        inputs=[_tensor(value) for value in model.graph.input if value.name not in weights],
        outputs=[_tensor(value) for value in model.graph.output],
        operators=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        quantization=_quantization(nodes),
        external_data=_external_data(model),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def _load(path: Path) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("onnx", "export") from error
    try:
        content = read_bytes(path, LARGEST_MESSAGE)
        model = onnx.load_model_from_string(content)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OnnxModelError(f"{path} cannot be read: {reason}; export it again.") from error
    except DecodeError as error:
        raise OnnxModelError(_broken(path)) from error
    # An empty file, and many a text, decode without an error to a model that has nothing in it.
    if not model.ir_version or not model.graph.output:
        raise OnnxModelError(_broken(path))
    return model


def _broken(path: Path) -> str:
    return f"{path} is not an ONNX model, or is damaged; export it again."


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes of a graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else [], attribute.graphs):
                for subgraph in inner:
                    yield from _nodes(subgraph)


def _operator(node: Any) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def _quantization(nodes: Sequence[Any]) -> list[OperatorQuantization]:
    producers = {name: node for node in nodes for name in node.output}
    total: Counter[str] = Counter()
    others: dict[str, list[str]] = {operator: [] for operator in HEAVY_OPERATORS}
    for node in nodes:
        operator = _operator(node)
        if operator in HEAVY_OPERATORS:
            total[operator] += 1
            if not all(_is_dequantized(name, producers) for name in node.input[:2]):
                others[operator].append(node.name or node.output[0])
    return [
        OperatorQuantization(
            operator=operator,
            total=total[operator],
            quantized=total[operator] - len(others[operator]),
            others=others[operator],
        )
        for operator in HEAVY_OPERATORS
        if total[operator]
    ]


def _is_dequantized(name: str, producers: dict[str, Any]) -> bool:
    node = producers.get(name)
    # A valid graph has no cycles; a damaged one must not hang.
    for _ in range(len(producers)):
        if node is None or _operator(node) not in _LAYOUT_OPERATORS:
            break
        node = producers.get(node.input[0]) if node.input else None
    return node is not None and node.op_type == "DequantizeLinear"


def _tensor(value: Any) -> TensorSummary:
    import onnx

    if not value.type.HasField("tensor_type"):
        return TensorSummary(name=value.name, type="not a tensor", shape=None)
    tensor = value.type.tensor_type
    known = tensor.elem_type in onnx.TensorProto.DataType.values()
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if known else "unknown"
    shape = [_size(axis) for axis in tensor.shape.dim] if tensor.HasField("shape") else None
    return TensorSummary(name=value.name, type=kind, shape=shape)


def _size(axis: Any) -> int | str | None:
    if axis.HasField("dim_value"):
        return int(axis.dim_value)
    return str(axis.dim_param) or None


def _external_data(model: Any) -> list[str]:
    locations = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(locations)
