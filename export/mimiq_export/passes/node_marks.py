"""What is written beside a DequantizeLinear about the quantizer that it came from.

ONNX can hold the codes and the scale of a grid, but not its ends: they are kept in the node's
``metadata_props``, which engines ignore and later tools can read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimiq_runtime.grid import Grid

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["QMAX", "QMIN", "QUANTIZER", "mark", "marked_grid", "marked_quantizer"]

QUANTIZER, QMIN, QMAX = "mimiq_deploy.quantizer", "mimiq_deploy.qmin", "mimiq_deploy.qmax"
"""Keys of the metadata."""


def mark(node: ir.Node, quantizer: str, grid: Grid) -> None:
    """Write the quantizer's name and the ends of its grid beside the node."""
    node.metadata_props[QUANTIZER] = quantizer
    node.metadata_props[QMIN] = str(grid.qmin)
    node.metadata_props[QMAX] = str(grid.qmax)


def marked_quantizer(node: ir.Node) -> str | None:
    """Name of the quantizer that :func:`mark` wrote; None for any other node."""
    return node.metadata_props.get(QUANTIZER)


def marked_grid(node: ir.Node) -> Grid:
    """The grid that :func:`mark` wrote."""
    return Grid(int(node.metadata_props[QMIN]), int(node.metadata_props[QMAX]))
