"""Building small graphs, and running graphs in ONNX Runtime and in ONNX's own reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Array = NDArray[np.generic]


class FakeQuantize(OpRun):
    """What the symbolic node means, in numpy, for graphs that are not lowered yet."""

    op_domain = "mimiq_deploy"

    def _run(
        self,
        x: Array,
        scale: Array,
        qmin: int,
        qmax: int,
        quantizer: str,
        axis: int | None = None,
    ) -> tuple[Array]:
        if axis is not None:
            scale = scale.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        return ((np.clip(np.rint(x / scale), qmin, qmax) * scale).astype(np.float32),)


def fake_quantize(
    x: ir.Value,
    scale: ir.Value,
    *,
    quantizer: str,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    output: ir.Value | None = None,
) -> ir.Node:
    """A FakeQuantize node as the capture leaves it."""
    attributes = {"qmin": qmin, "qmax": qmax, "quantizer": quantizer}
    if axis is not None:
        attributes["axis"] = axis
    output = output or ir.val(f"{quantizer}/FakeQuantize_output", ir.DataType.FLOAT, x.shape)
    return ir.node(
        "FakeQuantize",
        [x, scale],
        attributes,
        domain="mimiq_deploy",
        outputs=[output],
        name=f"{quantizer}/FakeQuantize",
    )


def initializer(name: str, array: np.ndarray) -> ir.Value:
    """An initializer of the array's own type."""
    return ir.val(name, const_value=ir.tensor(array, name=name))


def constant(name: str, array: object) -> ir.Value:
    """A float32 initializer."""
    return initializer(name, np.asarray(array, np.float32))


def integers(name: str, array: object) -> ir.Value:
    """An int64 initializer."""
    return initializer(name, np.asarray(array, np.int64))


def model_of(
    nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> ir.Model:
    """A model of these nodes; initializers are found through the nodes' inputs."""
    values = {value for node in nodes for value in node.inputs if value is not None}
    initializers = [value for value in values if value.const_value is not None]
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": 20, "mimiq_deploy": 1},
        name="small",
    )
    return ir.Model(graph, ir_version=10)


def copy_of(model: ir.Model) -> ir.Model:
    """A model of its own, to be changed."""
    return ir.from_proto(ir.to_proto(model))


def run_reference(model: ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
    """Outputs by ONNX's reference implementation; FakeQuantize nodes are understood."""
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=[FakeQuantize])
    with np.errstate(over="ignore"):
        return evaluator.run(None, dict(feeds))


def run_ort(
    model: ir.Model | Path,
    feeds: Mapping[str, Array],
    *,
    outputs: Sequence[str] | None = None,
    optimize: bool = True,
    optimized_path: Path | None = None,
) -> list[Array]:
    """Outputs by ONNX Runtime on one thread of the CPU.

    ``outputs`` may name any values inside of a graph; ``optimized_path`` receives what ONNX
    Runtime made of it.
    """
    source = str(model) if isinstance(model, Path) else _serialized(model, outputs or ())
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # EXTENDED holds all fusions; ALL adds layouts of this very processor, and a warning.
    options.graph_optimization_level = (
        levels.ORT_ENABLE_EXTENDED if optimize else levels.ORT_DISABLE_ALL
    )
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(list(outputs) if outputs else None, dict(feeds))


def _serialized(model: ir.Model, extra_outputs: Sequence[str]) -> bytes:
    proto = ir.to_proto(model)
    known = {output.name for output in proto.graph.output}
    for name in extra_outputs:
        if name not in known:
            proto.graph.output.add(name=name)
    return proto.SerializeToString()
