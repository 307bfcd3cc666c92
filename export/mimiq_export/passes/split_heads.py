"""Queries, keys and values taken apart by one Split instead of Slices and Squeezes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mimiq_export.passes.graph_edits import (
    add_constant,
    constant_of,
    derived_value,
    only_user,
    replace_output,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SplitHeadsPass"]

_PARTS_FIRST = (2, 0, 3, 1, 4)
"""(batch, tokens, part, head, channel) -> (part, batch, head, tokens, channel)."""


class SplitHeadsPass(ir.passes.InPlacePass):
    """Cut a joint projection before it is turned, so that each part is copied less often.

    As captured, ``(batch, tokens, parts * heads * channels)`` is seen in five dimensions, turned
    as a whole, and each part is sliced out and squeezed: three copies of everything, and a
    fourth where a part is turned again.

    1. Applies to Reshape to ``(batch, tokens, parts, heads, channels)``, Transpose by
       (2, 0, 3, 1, 4), and one Slice along the first axis with a Squeeze behind it for each part.
    2. Split cuts the last axis of the Reshape's input into the parts. Each is reshaped to
       ``(batch, tokens, heads, channels)`` and turned to ``(batch, heads, tokens, channels)``.
    3. Values are moved, none is changed. What differs from rule 1 is left alone.
    4. Names: ``<module>/Split``, and ``<module>/Reshape_part<i>`` and ``/Transpose_part<i>``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules."""
        found = [joint for node in model.graph if (joint := _match(node)) is not None]
        for joint in found:
            _rewrite(model.graph, joint)
        return ir.passes.PassResult(model, modified=bool(found))


@dataclass(frozen=True)
class _Joint:
    """Rule 1, found in a graph.

    Attributes:
        source: ``(batch, tokens, parts * heads * channels)``.
        reshape: The Reshape.
        turn: The Transpose.
        shape: The five sizes of the Reshape.
        parts: Slice and Squeeze of each part, in order.
    """

    source: ir.Value
    reshape: ir.Node
    turn: ir.Node
    shape: NDArray[np.int64]
    parts: list[tuple[ir.Node, ir.Node]]


def _match(turn: ir.Node) -> _Joint | None:
    if (turn.domain, turn.op_type) != ("", "Transpose"):
        return None
    reshape = None if turn.inputs[0] is None else turn.inputs[0].producer()
    if tuple(turn.attributes.get_ints("perm", ())) != _PARTS_FIRST or reshape is None:
        return None
    source, parts = reshape.inputs[0], _parts(turn)
    sizes = constant_of(reshape.inputs[1]) if reshape.op_type == "Reshape" else None
    if source is None or sizes is None or parts is None or only_user(reshape.outputs[0]) is None:
        return None
    shape = sizes.astype(np.int64)
    sizes_are_known = shape.shape == (5,) and bool((shape[1:] > 0).all())
    if not sizes_are_known or shape[2] != len(parts):
        return None
    return _Joint(source, reshape, turn, shape, parts)


def _parts(turn: ir.Node) -> list[tuple[ir.Node, ir.Node]] | None:
    """Slice and Squeeze of part 0, 1, ...; None where the users are anything else."""
    parts: dict[int, tuple[ir.Node, ir.Node]] = {}
    if turn.outputs[0].is_graph_output():
        return None
    for use in turn.outputs[0].uses():
        index, squeeze = _slice_index(use.node), only_user(use.node.outputs[0])
        if index is None or squeeze is None or not _squeezes_first_axis(squeeze):
            return None
        parts[index] = (use.node, squeeze)
    if sorted(parts) != list(range(len(turn.outputs[0].uses()))):
        return None
    return [parts[index] for index in sorted(parts)]


def _slice_index(node: ir.Node) -> int | None:
    """``i`` of a Slice ``[i:i + 1]`` along the first axis."""
    if node.op_type != "Slice" or not 4 <= len(node.inputs) <= 5:
        return None
    numbers = [constant_of(value) for value in node.inputs[1:]]
    if any(number is None or number.size != 1 for number in numbers):
        return None
    start, end, axis, *step = (int(number.item()) for number in numbers if number is not None)
    fits = start >= 0 and end == start + 1 and axis == 0 and step in ([], [1])
    return start if fits else None


def _squeezes_first_axis(node: ir.Node) -> bool:
    axes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return node.op_type == "Squeeze" and axes is not None and axes.tolist() == [0]


def _rewrite(graph: ir.Graph, joint: _Joint) -> None:
    name = (joint.turn.name or "").removesuffix("Transpose")
    batch, tokens, parts, heads, channels = (int(size) for size in joint.shape)
    pieces = [
        ir.val(f"{name}Split_output{index or ''}", joint.source.dtype, _cut(joint.source, parts))
        for index in range(parts)
    ]
    split = ir.node(
        "Split",
        [joint.source],
        {"axis": -1, "num_outputs": parts},
        outputs=pieces,
        name=f"{name}Split",
    )
    graph.insert_before(joint.turn, split)
    sizes = np.asarray([batch, tokens, heads, channels], dtype=np.int64)
    target = add_constant(graph, f"{name}Split_heads", sizes)
    for index, (piece, old) in enumerate(zip(pieces, joint.parts, strict=True)):
        turned = derived_value(old[1].outputs[0], f"{name}Transpose_part{index}_output")
        # The inverse of a swap of two axes is the swap itself.
        seen = derived_value(
            old[1].outputs[0], f"{name}Reshape_part{index}_output", permutation=(0, 2, 1, 3)
        )
        reshape = ir.node(
            "Reshape", [piece, target], outputs=[seen], name=f"{name}Reshape_part{index}"
        )
        turn = ir.node(
            "Transpose",
            [seen],
            {"perm": (0, 2, 1, 3)},
            outputs=[turned],
            name=f"{name}Transpose_part{index}",
        )
        replace_output(graph, list(old), [reshape, turn])
    graph.remove([joint.turn, joint.reshape], safe=True)


def _cut(source: ir.Value, parts: int) -> ir.Shape | None:
    if source.shape is None:
        return None
    *leading, last = source.shape
    return ir.Shape([*leading, last // parts if isinstance(last, int) else None])
