"""A single-precision graph in half precision, but for what half precision cannot hold."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mimiq_export.passes.graph_edits import constant_of, derived_value
from mimiq_runtime.errors import OnnxModelError

__all__ = ["HalfPrecisionPass"]

ISLANDS = frozenset(
    {
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "Pow",
        "ReduceL2",
        "ReduceMean",
        "ReduceSumSquare",
    }
)
"""What squares or averages: with inputs above 255 a square is beyond 65504."""

_SQUARES = frozenset({"Add", "Pow", "Reciprocal", "ReduceMean", "Sqrt"})
_GROWN_INTO = frozenset({"Add", "Div", "Mul", "Reciprocal", "ReduceMean", "Sqrt"})


class HalfPrecisionPass(ir.passes.InPlacePass):
    """Convert a graph to half precision, typed throughout.

    1. Every float32 value and constant becomes float16, also scales, so that DequantizeLinear
       gives float16 and feeds its product without a Cast. Integers stay.
    2. Inputs and outputs of the graph stay float32; a Cast stands behind and in front of them.
    3. Islands stay float32, with Casts around them: normalisations, and what computes with
       squares (Pow, means, their square roots; an RMS norm that is written out). A LayerNorm of a
       residual stream near 1000 squares to more than half precision holds.
    4. A value that is needed in the other precision is cast once for all its users.
    5. Names: ``<value>_half`` and ``<value>_single`` for values, nodes and constants.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules.

        Raises:
            OnnxModelError: A constant is beyond half precision.
        """
        _Conversion(model.graph).run()
        return ir.passes.PassResult(model, modified=True)


class _Conversion:
    """The state of one conversion: which nodes are islands, and what was cast already."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._islands: set[ir.Node] = set()
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._first = graph[0] if len(graph) else None

    def run(self) -> None:
        nodes = list(self._graph)
        singles = {
            value for node in nodes for value in node.outputs if value.dtype == ir.DataType.FLOAT
        }
        self._islands = _find_islands(nodes)
        for node in nodes:
            if node not in self._islands:
                for output in node.outputs:
                    if output in singles:
                        output.dtype = ir.DataType.FLOAT16
                _retype_attributes(node)
        for node in nodes:
            wanted = ir.DataType.FLOAT if node in self._islands else ir.DataType.FLOAT16
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype in {ir.DataType.FLOAT, ir.DataType.FLOAT16}:
                    node.replace_input_with(index, self._in(value, wanted))
        for index, output in enumerate(self._graph.outputs):
            if output.dtype == ir.DataType.FLOAT16:
                self._restore_output(index, output)

    def _in(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """The same values in the wanted type."""
        if value.dtype == wanted:
            return value
        cast = self._cast.get((value, wanted))
        if cast is None:
            constant = value.is_initializer()
            cast = self._constant(value) if constant else self._insert_cast(value, wanted)
            self._cast[value, wanted] = cast
        return cast

    def _constant(self, value: ir.Value) -> ir.Value:
        array, name = constant_of(value), f"{value.name}_half"
        if array is None:
            raise OnnxModelError(f"The constant {value.name} has no value.")
        with np.errstate(over="ignore", under="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise OnnxModelError(
                f"The constant {value.name} holds {np.abs(array).max():g}, and half precision "
                "ends at 65504; export for a target in single precision, such as ort-cpu."
            )
        constant = ir.val(name, const_value=ir.tensor(half, name=name))
        self._graph.register_initializer(constant)
        return constant

    def _insert_cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        suffix = "half" if wanted == ir.DataType.FLOAT16 else "single"
        output = derived_value(value, f"{value.name}_{suffix}", dtype=wanted)
        name = f"{output.name}/Cast"
        cast = ir.node("Cast", [value], {"to": wanted}, outputs=[output], name=name)
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, cast)
        elif self._first is not None:
            self._graph.insert_before(self._first, cast)
        return output

    def _restore_output(self, index: int, output: ir.Value) -> None:
        name = output.name
        output.name = f"{name}_half"
        restored = derived_value(output, name or "", dtype=ir.DataType.FLOAT)
        cast = ir.node(
            "Cast", [output], {"to": ir.DataType.FLOAT}, outputs=[restored], name=f"{name}/Cast"
        )
        self._graph.append(cast)
        self._graph.outputs[index] = restored


def _find_islands(nodes: list[ir.Node]) -> set[ir.Node]:
    """Rule 3; a chain of squares ends with the product or quotient that normalises."""
    islands: set[ir.Node] = set()
    for node in nodes:
        producers = {value.producer() for value in node.inputs if value is not None}
        behind_squares = any(
            producer in islands and producer.op_type in _SQUARES
            for producer in producers
            if producer is not None
        )
        if node.op_type in ISLANDS or (behind_squares and node.op_type in _GROWN_INTO):
            islands.add(node)
    return islands


def _retype_attributes(node: ir.Node) -> None:
    """A Cast to float32 and a ConstantOfShape of float32 name the type in an attribute."""
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
    if node.op_type == "ConstantOfShape" and node.outputs[0].dtype == ir.DataType.FLOAT16:
        value = node.attributes.get("value")
        number = np.zeros(1) if value is None else value.as_tensor().numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(number.astype(np.float16)))
