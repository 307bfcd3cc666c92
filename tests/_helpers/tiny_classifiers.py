"""Image classifiers of a few nodes, made by onnx.helper: mean over the pixels, times a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

WEIGHT = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def save_model(
    path: Path,
    *,
    shape: tuple[str | int, ...] = ("N", 3, 4, 4),
    dtype: int = TensorProto.FLOAT,
    inputs: int = 1,
    outputs: int = 1,
    operator: str = "MatMul",
    axes: tuple[int, ...] | None = None,
) -> Path:
    """Mean over the pixels, times a 3 x 5 matrix."""
    nodes = [
        helper.make_node("Cast", ["image0"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["pooled"], keepdims=0),
        *(
            helper.make_node(operator, ["pooled", "weight"], [f"logits{index}"])
            for index in range(outputs)
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(f"image{i}", dtype, shape) for i in range(inputs)],
        [
            helper.make_tensor_value_info(f"logits{i}", TensorProto.FLOAT, None)
            for i in range(outputs)
        ],
        [
            numpy_helper.from_array(WEIGHT, "weight"),
            numpy_helper.from_array(np.array(axes or range(2, len(shape)), np.int64), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


def images(n: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).normal(size=(n, *(shape or (3, 4, 4)))).astype(np.float32)
