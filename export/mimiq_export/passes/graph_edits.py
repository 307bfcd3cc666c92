"""The few edits of a graph that all passes are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "add_constant",
    "constant_of",
    "derived_value",
    "only_user",
    "replace_constant",
    "replace_output",
]


def add_constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Register an initializer of the given name, which must be free."""
    tensor = ir.tensor(array, name=name)
    value = ir.val(name, const_value=tensor)
    graph.register_initializer(value)
    return value


def constant_of(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The elements of a constant; None for anything that is computed, and for a missing input."""
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def replace_constant(graph: ir.Graph, old: ir.Value, array: NDArray[np.generic]) -> ir.Value:
    """Give all users of an initializer another one, which takes over its name.

    The tensor of the old one is left as it is: it may be a parameter of the torch model.
    """
    name = old.name or ""
    graph.initializers.pop(name)
    new = add_constant(graph, name, array)
    old.replace_all_uses_with(new)
    return new


def derived_value(
    like: ir.Value,
    name: str,
    *,
    dtype: ir.DataType | None = None,
    permutation: Sequence[int] | None = None,
) -> ir.Value:
    """A value with the type and shape of ``like``, but for what is given.

    Args:
        like: Where type and shape come from.
        name: Name of the new value.
        dtype: Another type of the elements.
        permutation: Output axis ``i`` is axis ``permutation[i]`` of ``like``.
    """
    shape = like.shape
    if shape is not None and permutation is not None:
        shape = ir.Shape([shape[axis] for axis in permutation])
    return ir.val(name, dtype or like.dtype, shape)


def only_user(value: ir.Value) -> ir.Node | None:
    """The node that alone uses this value; None when there are more, or it leaves the graph."""
    if value.is_graph_output() or len(value.uses()) != 1:
        return None
    return next(iter(value.uses())).node


def replace_output(graph: ir.Graph, old: Sequence[ir.Node], new: Sequence[ir.Node]) -> None:
    """Put the chain ``new`` in the place of the chain ``old``; its last output takes over.

    The new output keeps its own name, unless the graph's interface knows the old one.
    """
    old_value, new_value = old[-1].outputs[0], new[-1].outputs[0]
    name = old_value.name if old_value.is_graph_output() else new_value.name
    ir.convenience.replace_nodes_and_values(graph, old[-1], old, new, [old_value], [new_value])
    new_value.name = name
