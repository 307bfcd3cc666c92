"""Convolutions of separate patches as products of matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from mimiq_export.fake_quantize import FakeQuantize, fake_quantizes
from mimiq_export.passes.graph_edits import add_constant, only_user, replace_output
from mimiq_runtime.errors import OnnxModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["PatchEmbeddingAsMatmulPass"]


class PatchEmbeddingAsMatmulPass(ir.passes.InPlacePass):
    """Cut the picture into patches, and let a MatMul do the convolution.

    ONNX Runtime runs a MatMul in integers whose result stays in floating point, a Conv only if
    its result is quantized. Besides speed, sums of integers do not depend on their order, so
    that the first layer gives the same bits everywhere.

    1. Applies to a Conv between FakeQuantize of an activation, which it alone uses, and
       FakeQuantize of a weight, whose kernel is its stride: no padding, no dilation, one group,
       and a picture of a known size that the kernel divides.
    2. Reshape, Transpose and Reshape put the pixels of a patch side by side; the quantizer of
       the picture follows them. It has one scale in all and is blind to the order.
    3. The weight becomes a matrix, with the same codes, scales and axis.
    4. The result (batch, patches, channels) is turned back into (batch, channels, rows, columns),
       unless the next two nodes, Reshape and Transpose, would only undo that.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules.

        Raises:
            OnnxModelError: A weight has no value.
        """
        quantizers = {found.output: found for found in fake_quantizes(model)}
        convolutions = [_read(node, quantizers) for node in model.graph]
        applicable = [found for found in convolutions if found is not None]
        for found in applicable:
            _rewrite(model.graph, found)
        return ir.passes.PassResult(model, modified=bool(applicable))


@dataclass(frozen=True)
class _PatchConvolution:
    """A Conv that rule 1 applies to.

    ``kernel`` is the height and width of a patch in pixels, ``grid`` the number of patches down
    and across, ``channels`` those of the picture and of the result.
    """

    node: ir.Node
    image: FakeQuantize
    weight: FakeQuantize
    kernel: tuple[int, int]
    grid: tuple[int, int]
    channels: tuple[int, int]

    @property
    def name(self) -> str:
        return (self.node.name or "Conv").removesuffix("/Conv")

    @property
    def batch(self) -> int | ir.SymbolicDim:
        shape = self.image.x.shape
        return ir.SymbolicDim(None) if shape is None else shape[0]


def _read(node: ir.Node, quantizers: dict[ir.Value, FakeQuantize]) -> _PatchConvolution | None:
    if (node.domain, node.op_type) != ("", "Conv") or node.inputs[0] is None:
        return None
    image = quantizers.get(node.inputs[0])
    weight = None if node.inputs[1] is None else quantizers.get(node.inputs[1])
    if image is None or weight is None or image.is_weight or not weight.is_weight:
        return None
    if image.axis is not None or weight.axis != 0 or only_user(image.output) is not node:
        return None
    picture, kernels = _sizes(image.x, skip=1), _sizes(weight.x)
    if len(picture) != 3 or len(kernels) != 4:
        return None
    (inputs, *size), (outputs, _, rows, columns) = picture, kernels
    separate = (
        kernels[1] == inputs
        and _ints(node, "strides", [1, 1]) == [rows, columns]
        and not any(_ints(node, "pads", []))
        and set(_ints(node, "dilations", [1])) == {1}
        and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and size[0] % rows == 0
        and size[1] % columns == 0
    )
    if not separate:
        return None
    grid = (size[0] // rows, size[1] // columns)
    return _PatchConvolution(node, image, weight, (rows, columns), grid, (inputs, outputs))


def _rewrite(graph: ir.Graph, found: _PatchConvolution) -> None:
    tape = Tape()
    patches = _cut_patches(graph, tape, found)
    weight = _weight_matrix(graph, tape, found)
    result = tape.op("MatMul", [patches, weight], name=f"{found.name}/MatMul")
    _type(result, [found.batch, found.grid[0] * found.grid[1], found.channels[1]])
    if len(found.node.inputs) > 2 and found.node.inputs[2] is not None:
        product = result
        result = tape.op("Add", [product, found.node.inputs[2]], name=f"{found.name}/Add")
        _type(result, product.shape or [])
    undoing = _nodes_that_turn_channels_last(found.node)
    if not undoing:
        result = _turn_channels_first(graph, tape, found, result)
    nodes = list(tape.nodes)
    replace_output(graph, [found.node, *undoing], nodes)
    graph.remove([found.image.node, found.weight.node], safe=True)


def _cut_patches(graph: ir.Graph, tape: Tape, found: _PatchConvolution) -> ir.Value:
    """Rule 2: (batch, C, H, W) to the quantized (batch, patches, C * rows * columns)."""
    (rows, columns), (down, across), (inputs, _) = found.kernel, found.grid, found.channels
    cut = _reshape(
        graph, tape, found.image.x, [0, inputs, down, rows, across, columns], f"{found.name}/cut"
    )
    gathered = tape.op(
        "Transpose", [cut], {"perm": [0, 2, 4, 1, 3, 5]}, name=f"{found.name}/Transpose_patches"
    )
    flat = [0, down * across, inputs * rows * columns]
    patches = _reshape(graph, tape, gathered, flat, f"{found.name}/flat")
    _type(patches, [found.batch, *flat[1:]])
    return _quantize_like(tape, found.image, patches)


def _weight_matrix(graph: ir.Graph, tape: Tape, found: _PatchConvolution) -> ir.Value:
    """Rule 3: the weight (O, C, rows, columns) as the quantized (C * rows * columns, O)."""
    constant = found.weight.x.const_value
    if constant is None:
        raise OnnxModelError(f"The weight of {found.weight.quantizer} has no value.")
    matrix = add_constant(
        graph,
        f"{found.weight.x.name}_matrix",
        np.asarray(constant.numpy()).reshape(found.channels[1], -1),
    )
    quantized = _quantize_like(tape, found.weight, matrix)
    turned = tape.op(
        "Transpose", [quantized], {"perm": [1, 0]}, name=f"{found.name}/Transpose_weight"
    )
    _type(turned, reversed(_sizes(matrix)))
    return turned


def _turn_channels_first(
    graph: ir.Graph, tape: Tape, found: _PatchConvolution, patches: ir.Value
) -> ir.Value:
    """Rule 4: (batch, patches, O) to (batch, O, rows, columns)."""
    grid = _reshape(graph, tape, patches, [0, *found.grid, found.channels[1]], f"{found.name}/grid")
    _type(grid, [found.batch, *found.grid, found.channels[1]])
    turned = tape.op("Transpose", [grid], {"perm": [0, 3, 1, 2]}, name=f"{found.name}/Transpose")
    _type(turned, [found.batch, found.channels[1], *found.grid])
    return turned


def _nodes_that_turn_channels_last(convolution: ir.Node) -> list[ir.Node]:
    """Reshape to (batch, O, patches) and Transpose to (batch, patches, O), if these follow."""
    reshape = only_user(convolution.outputs[0])
    if reshape is None or (reshape.domain, reshape.op_type) != ("", "Reshape"):
        return []
    flat = _sizes(reshape.outputs[0], skip=1)
    transpose = only_user(reshape.outputs[0])
    if transpose is None or (transpose.domain, transpose.op_type) != ("", "Transpose"):
        return []
    channels = _sizes(convolution.outputs[0], skip=1)[:1]
    undoes = len(flat) == 2 and flat[:1] == channels
    return [reshape, transpose] if undoes and _ints(transpose, "perm", []) == [0, 2, 1] else []


def _quantize_like(tape: Tape, found: FakeQuantize, x: ir.Value) -> ir.Value:
    quantized = tape.op(
        found.node.op_type,
        [x, found.node.inputs[1]],
        found.node.attributes,
        domain=found.node.domain,
        name=found.node.name,
    )
    _type(quantized, x.shape or [])
    return quantized


def _reshape(graph: ir.Graph, tape: Tape, x: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
    """Reshape to a constant shape, in which 0 keeps the batch."""
    constant = add_constant(graph, f"{name}_shape", np.asarray(shape, dtype=np.int64))
    return tape.op("Reshape", [x, constant], name=f"{name}/Reshape")


def _type(value: ir.Value, shape: Iterable[int | ir.SymbolicDim | None]) -> None:
    value.dtype = ir.DataType.FLOAT
    value.shape = ir.Shape(shape)


def _sizes(value: ir.Value, *, skip: int = 0) -> list[int]:
    """The sizes of all axes from ``skip`` on; empty when one of them is unknown."""
    sizes = [] if value.shape is None else list(value.shape)[skip:]
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) else []


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes.get_ints(name, default))
