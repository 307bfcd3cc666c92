"""The node that stands for a quantizer between capture and the passes that lower it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mimiq_runtime.errors import OnnxModelError
from mimiq_runtime.grid import Grid

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir
    from numpy.typing import NDArray

__all__ = ["DOMAIN", "OP_TYPE", "FakeQuantize", "fake_quantizes", "is_fake_quantize"]

DOMAIN = "mimiq_deploy"
OP_TYPE = "FakeQuantize"


@dataclass(frozen=True)
class FakeQuantize:
    """One ``mimiq_deploy::FakeQuantize(x, scale)`` node, read and checked.

    Attributes:
        node: The node itself.
        quantizer: Dotted name of the quantizer in the torch model.
        grid: The codes that may come out.
        axis: The axis of ``x`` with one scale a slice, or None for one scale in all.
        scale: Step of the grid, ``()`` or ``(x.shape[axis],)``; positive and finite.
    """

    node: ir.Node
    quantizer: str
    grid: Grid
    axis: int | None
    scale: NDArray[np.float32]

    @property
    def x(self) -> ir.Value:
        """The tensor that is quantized."""
        return _input(self.node, 0)

    @property
    def output(self) -> ir.Value:
        """The tensor after quantizing and dequantizing."""
        return self.node.outputs[0]

    @property
    def is_weight(self) -> bool:
        """Whether ``x`` is a constant of the graph."""
        return self.x.is_initializer()


def is_fake_quantize(node: ir.Node | None) -> bool:
    """Whether this is a node as :class:`FakeQuantize` describes it; None is not."""
    return node is not None and (node.domain, node.op_type) == (DOMAIN, OP_TYPE)


def fake_quantizes(model: ir.Model) -> Iterator[FakeQuantize]:
    """All of a model, in the order of its graph; the graph may be edited while iterating.

    Raises:
        OnnxModelError: Two quantizers share a name, or a scale is not a constant, of another
            shape than its axis, or not positive and finite.
    """
    names: set[str] = set()
    for node in [node for node in model.graph if is_fake_quantize(node)]:
        found = _read(node)
        if found.quantizer in names:
            raise OnnxModelError(
                f"Two quantizers of the model are called {found.quantizer}; "
                "every quantizer must be used once and have a name of its own."
            )
        names.add(found.quantizer)
        yield found


def _read(node: ir.Node) -> FakeQuantize:
    attributes = node.attributes
    quantizer = attributes["quantizer"].as_string()
    grid = Grid(attributes["qmin"].as_int(), attributes["qmax"].as_int())
    axis = attributes["axis"].as_int() if "axis" in attributes else None
    constant = _input(node, 1).const_value
    if constant is None:
        raise OnnxModelError(f"The scale of {quantizer} is not a constant of the graph.")
    scale: NDArray[np.float32] = np.asarray(constant.numpy(), dtype=np.float32)
    _check_scale(scale, quantizer, grid)
    expected = _scale_shape(_input(node, 0), axis)
    if scale.shape != expected:
        raise OnnxModelError(
            f"The scale of {quantizer} must have the shape {expected}; got {scale.shape}."
        )
    return FakeQuantize(node, quantizer, grid, axis, scale)


def _check_scale(scale: NDArray[np.float32], quantizer: str, grid: Grid) -> None:
    with np.errstate(over="ignore"):
        ends = scale * np.float32(max(-grid.qmin, grid.qmax))
    # A range that overflows would quantize everything to the ends of the container instead.
    wrong = ~((scale > 0) & np.isfinite(ends))
    if wrong.any():
        raise OnnxModelError(
            f"The scale of {quantizer} must be positive, and finite times its largest code; "
            f"got {scale[wrong].flat[0]}. Calibrate the model again."
        )


def _scale_shape(x: ir.Value, axis: int | None) -> tuple[int, ...]:
    if axis is None:
        return ()
    size = None if x.shape is None else x.shape[axis]
    return (size,) if isinstance(size, int) else ()


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise OnnxModelError(f"Input {index} of the node {node.name} is missing.")
    return value
