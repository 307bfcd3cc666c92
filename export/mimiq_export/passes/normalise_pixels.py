"""The last step of the preprocessing as the first step of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mimiq_export.passes.graph_edits import add_constant
from mimiq_runtime.errors import OnnxModelError
from mimiq_runtime.input_form import INPUT_METADATA, InputForm

if TYPE_CHECKING:
    from mimiq_runtime.manifest import Preprocessing

__all__ = ["NormalisePixelsPass"]

INPUT_NAME = "pixels"


class NormalisePixelsPass(ir.passes.InPlacePass):
    """Let the model take uint8 pixels, channels last, at its own size.

    1. The only input, float ``(batch, C, H, W)``, becomes an inner value of the same name. The
       new input is ``pixels``, uint8 ``(batch, H, W, C)``.
    2. Between them stand Transpose, Cast, Div by 255, Sub of the mean and Div by the standard
       deviation: the operations of ``mimiq_runtime.preprocessing.normalise`` in their order, each
       rounded to single precision, so that every element has the same bits. (One Mul and one Add
       would differ in the last bit.) The Transpose comes first, where an element is one byte.
    3. A model that takes another floating-point type gets a Cast to it at the end.
    4. The metadata property ``mimiq_deploy.input`` says ``pixels``.
    5. Names: nodes ``preprocessing/<step>``, constants ``preprocessing/255``, ``/mean``, ``/std``.

    Args:
        preprocessing: Gives the mean and the standard deviation of each channel, and the size.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._preprocessing = preprocessing

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules.

        Raises:
            OnnxModelError: The model's input is not the one that the preprocessing describes.
        """
        graph = model.graph
        images, dtype, batch = _only_input(graph, self._preprocessing.input_size)
        channels, height, width = self._preprocessing.input_size
        pixels = ir.val(INPUT_NAME, ir.DataType.UINT8, ir.Shape([batch, height, width, channels]))
        nodes = self._steps(graph, pixels, images.shape, dtype)
        normalised = nodes[-1].outputs[0]
        ir.convenience.replace_all_uses_with(images, normalised)
        graph.inputs[0] = pixels
        normalised.name = images.name
        graph.insert_before(graph[0], nodes)
        model.metadata_props[INPUT_METADATA] = InputForm.PIXELS.value
        return ir.passes.PassResult(model, modified=True)

    def _steps(
        self, graph: ir.Graph, pixels: ir.Value, shape: ir.Shape | None, dtype: ir.DataType
    ) -> list[ir.Node]:
        nodes: list[ir.Node] = []

        def then(
            step: str,
            op_type: str,
            output_dtype: ir.DataType,
            *constants: ir.Value,
            **attributes: int | list[int],
        ) -> None:
            name = f"preprocessing/{step}"
            value = nodes[-1].outputs[0] if nodes else pixels
            output = ir.val(f"{name}_output", output_dtype, shape)
            nodes.append(
                ir.node(op_type, [value, *constants], attributes, outputs=[output], name=name)
            )

        def constant(name: str, values: float | tuple[float, ...]) -> ir.Value:
            array = np.asarray(values, dtype=np.float32)
            return add_constant(
                graph, f"preprocessing/{name}", array.reshape(1, -1, 1, 1) if array.ndim else array
            )

        single, given = ir.DataType.FLOAT, self._preprocessing
        then("channels_first", "Transpose", ir.DataType.UINT8, perm=[0, 3, 1, 2])
        then("to_float", "Cast", single, to=single)
        then("to_unit", "Div", single, constant("255", 255))
        then("subtract_mean", "Sub", single, constant("mean", given.mean))
        then("divide_by_std", "Div", single, constant("std", given.std))
        if dtype != single:
            then("to_model", "Cast", dtype, to=dtype)
        return nodes


def _only_input(
    graph: ir.Graph, size: tuple[int, int, int]
) -> tuple[ir.Value, ir.DataType, int | ir.SymbolicDim]:
    """The images with their type and their number."""
    value = graph.inputs[0] if len(graph.inputs) == 1 else None
    if (
        value is None
        or value.dtype is None
        or not value.dtype.is_floating_point()
        or value.shape is None
        or tuple(value.shape[1:]) != size
    ):
        raise OnnxModelError(
            f"Expected one floating-point input of shape (batch, {', '.join(map(str, size))}) to "
            f"put the preprocessing before; got {', '.join(map(str, graph.inputs)) or 'none'}."
        )
    return value, value.dtype, value.shape[0]
