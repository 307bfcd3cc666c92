"""What a file must be before rules can look at it: whole, in order, of operators with operands.

Rules take any graph that ONNX allows. What ONNX does not allow, such as nodes that wait for each
other, an operator without its operands or a product of int8 and float, has no meaning that a rule
could judge. It is refused here, in one sentence with the node's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from mimiq_export.lint.linted_graph import PRODUCTS, LintedGraph, kind
from mimiq_runtime.errors import OnnxModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["check_structure", "check_types"]

_QUANTIZERS = frozenset({"DequantizeLinear", "QuantizeLinear"})
_READ_ALIKE = _QUANTIZERS | PRODUCTS | {"Cast", "Clip", "Constant", "Mul", "Pow", "Softmax"}
_Schema = onnx.defs.OpSchema
_ANY_NUMBER = 2**31 - 1


def check_structure(model: ir.Model, path: Path) -> None:
    """Raise :class:`OnnxModelError` unless every node has its operands, made before it.

    Args:
        model: A model whose functions are inlined.
        path: For the message.
    """
    graph = LintedGraph(model)
    for faults in (_missing_values(graph), _order(graph), _arity(graph), _attributes(graph)):
        _raise_first(faults, path)


def check_types(model: ir.Model, path: Path) -> None:
    """Raise :class:`OnnxModelError` for an operator whose operands have types it does not take.

    Quantizers are left out: rules know better which types an engine wants there. Half precision
    and bfloat16 count as single precision, since engines take them at any opset.

    Args:
        model: A model that :func:`check_structure` accepts, with what could be inferred of types.
        path: For the message.
    """
    _raise_first(_types(LintedGraph(model)), path)


def _raise_first(faults: Iterator[str], path: Path) -> None:
    fault = next(faults, None)
    if fault is not None:
        raise OnnxModelError(f"{path} is not a valid ONNX model: {fault}; export it again.")


def _missing_values(graph: LintedGraph) -> Iterator[str]:
    for node in graph.nodes:
        for value in node.inputs:
            if value is not None and not _exists(value):
                yield f"{graph.name_of(node)} takes {value.name}, which nothing makes"
    for each in graph.model.graphs():
        for output in each.outputs:
            if not _exists(output):
                yield f"its output {output.name} is made by no node"


def _exists(value: ir.Value) -> bool:
    made = value.producer() is not None or value.is_graph_input()
    return made or value.is_initializer() or value.const_value is not None


def _order(graph: LintedGraph) -> Iterator[str]:
    seen: set[ir.Node] = set()
    for node in graph.nodes:
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if value is not None and producer is not None and producer not in seen:
                yield (
                    f"{graph.name_of(node)} takes {value.name} before it is made, so its nodes are "
                    "not in order, or wait for each other"
                )
        seen.add(node)


def _arity(graph: LintedGraph) -> Iterator[str]:
    for node, schema in _known(graph):
        name, inputs, outputs = graph.name_of(node), len(node.inputs), len(node.outputs)
        if not schema.min_input <= inputs <= schema.max_input:
            yield f"{name} has {_count(inputs, 'operand')} and needs {_range(schema, 'input')}"
        if not schema.min_output <= outputs <= schema.max_output:
            yield f"{name} has {_count(outputs, 'output')} and needs {_range(schema, 'output')}"
        for formal, value in zip(schema.inputs, node.inputs, strict=False):
            if value is None and formal.option == _Schema.FormalParameterOption.Single:
                yield f"{name} lacks its operand {formal.name}"
            text = value is not None and value.dtype == ir.DataType.STRING
            if text and "tensor(string)" not in formal.types:
                yield f"{name} takes text as {formal.name}, which it cannot compute with"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _range(schema: onnx.defs.OpSchema, side: str) -> str:
    least, most = getattr(schema, f"min_{side}"), getattr(schema, f"max_{side}")
    if least == most:
        return str(least)
    return f"at least {least}" if most >= _ANY_NUMBER else f"{least} to {most}"


def _attributes(graph: LintedGraph) -> Iterator[str]:
    for node, schema in _known(graph):
        for name, formal in schema.attributes.items():
            if formal.required and name not in node.attributes:
                yield f"{graph.name_of(node)} lacks its attribute {name}"
        # Rules read attributes of later opsets, too.
        newest = _newest(node)
        for name, given in node.attributes.items():
            known = newest.attributes.get(name)
            wanted = given.type if known is None else _attribute_type(known)
            if given.type != wanted:
                yield (
                    f"the attribute {name} of {graph.name_of(node)} is {given.type.name} and not "
                    f"{wanted.name}"
                )


def _newest(node: ir.Node) -> onnx.defs.OpSchema:
    return onnx.defs.get_schema(kind(node), onnx.defs.onnx_opset_version(), "")


def _attribute_type(formal: onnx.defs.OpSchema.Attribute) -> ir.AttributeType:
    return ir.AttributeType[str(formal.type).rpartition(".")[2]]


def _types(graph: LintedGraph) -> Iterator[str]:
    for node, schema in _known(graph):
        if kind(node) not in _QUANTIZERS:
            yield from _operand_types(graph, node, schema)


def _operand_types(graph: LintedGraph, node: ir.Node, schema: onnx.defs.OpSchema) -> Iterator[str]:
    """The types of a node's operands that are not taken, alone or side by side."""
    chosen: dict[str, ir.DataType] = {}
    for index, value in enumerate(node.inputs):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        # What may be a sequence or missing has no one type to compare.
        tensors = all(each.startswith("tensor(") for each in formal.types)
        if value is None or value.dtype is None or not tensors:
            continue
        name, dtype = graph.name_of(node), value.dtype
        if not formal.types & {_type_string(dtype), "tensor(float)" if _is_float(dtype) else ""}:
            yield f"{name} takes {_words(dtype)} as {formal.name}, which it cannot compute with"
        if formal.is_homogeneous and formal.type_str.isidentifier():
            first = chosen.setdefault(formal.type_str, dtype)
            if first != dtype:
                yield f"{name} takes {_words(first)} and {_words(dtype)}, which must be one type"


def _type_string(dtype: ir.DataType) -> str:
    return f"tensor({_words(dtype)})"


def _words(dtype: ir.DataType) -> str:
    return dtype.name.lower()


def _is_float(dtype: ir.DataType) -> bool:
    return dtype in {ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.FLOAT16}


def _known(graph: LintedGraph) -> Iterator[tuple[ir.Node, onnx.defs.OpSchema]]:
    """Nodes of operators that ONNX defines at the opset of the file, with the definition.

    Those that rules read are read alike in ONNX Runtime's own domain.
    """
    newest = onnx.defs.onnx_opset_version()
    for node in graph.nodes:
        name, foreign = kind(node), node.domain == "com.microsoft"
        version = newest if foreign else min(graph.opset, newest)
        if (not foreign or name in _READ_ALIKE) and onnx.defs.has(name, version, ""):
            yield node, onnx.defs.get_schema(name, version, "")
