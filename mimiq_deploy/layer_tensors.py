"""Copies of exported models that also give the tensors at their quantizers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_runtime.errors import MissingDependencyError, OnnxModelError
from mimiq_runtime.grid import Grid
from mimiq_runtime.layer_parity import IMAGES, QuantizedValues
from mimiq_runtime.manifest import Preprocessing
from mimiq_runtime.schema import parse_schema, reason_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["QuantizerTensor", "TappedModel", "write_tapped"]

_PREPROCESSING = "mimiq_deploy.preprocessing"
_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class QuantizerTensor:
    """Where a quantizer of the model is in the graph.

    Attributes:
        quantizer: Its dotted name, as in ``quantization.json``.
        tensor: Name of the value that the copy gives, or of the graph's input.
        is_codes: Whether that is its codes as the container stores them; otherwise its input.
        scale: The step of its grid, as the file says it.
        zero_point: What the file adds to a code.
        grid: The codes that may come out.
        made_by: The layer whose product is the last one before it.
    """

    quantizer: str
    tensor: str
    is_codes: bool
    scale: np.float32
    zero_point: int
    grid: Grid
    made_by: str

    def read(self, tensors: Mapping[str, NDArray[Any]]) -> QuantizedValues:
        """The codes, from what the copy gave.

        From the input they are made as ONNX defines QuantizeLinear: one division in single
        precision, to the nearest whole number, ties to even, and clamped to the grid.
        """
        values = tensors[self.tensor]
        if self.is_codes:
            codes = values.astype(np.int16) - self.zero_point
        else:
            steps = np.rint(values.astype(np.float32) / self.scale)
            codes = np.clip(steps, self.grid.qmin, self.grid.qmax).astype(np.int16)
        return QuantizedValues(codes, float(self.scale))


@dataclass(frozen=True)
class TappedModel:
    """A copy of a model that gives more than its logits.

    Attributes:
        path: The copy.
        outputs: Names of what it gives beside the logits, in their order.
        quantizers: The activation quantizers, in the order of the graph.
        logits_made_by: The layer whose product is the last one.
        preprocessing: What the file says that its images go through; None where it is silent.
    """

    path: Path
    outputs: list[str]
    quantizers: list[QuantizerTensor]
    logits_made_by: str
    preprocessing: Preprocessing | None


def write_tapped(source: Path, folder: Path, *, codes: bool) -> TappedModel:
    """Copy an exported model, with one more output for each activation quantizer.

    Args:
        source: An ONNX file that mimiq-deploy wrote. It is not changed.
        folder: Where the copy goes.
        codes: Whether codes are read, or what goes into the quantizers. An engine may fuse across
            one of the two: then reading it changes how the engine computes.

    Raises:
        MissingDependencyError: The library onnx is not installed.
        OnnxModelError: The file is no such model.
    """
    onnx = _import_onnx()
    try:
        model = onnx.load(source, load_external_data=False)
    except Exception as error:
        raise OnnxModelError(
            f"{source} cannot be read as ONNX ({type(error).__name__}); export it again."
        ) from error
    graph = _Graph(model.graph)
    quantizers = graph.activation_quantizers(codes=codes)
    if not quantizers:
        raise OnnxModelError(
            f"{source} names no quantizers: it quantizes nothing, or another program wrote it; "
            "compare an export of mimiq-deploy."
        )
    kind = onnx.TensorProto.INT8 if codes else onnx.TensorProto.FLOAT
    given = {value.name for value in (*model.graph.input, *model.graph.output)}
    wanted = dict.fromkeys((found.tensor for found in quantizers), kind)
    if graph.computes(IMAGES):  # the file takes pixels
        wanted[IMAGES] = onnx.TensorProto.FLOAT
    outputs = [name for name in wanted if name not in given]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, wanted[name], None) for name in outputs
    )
    path = folder / source.name
    onnx.save(model, path)
    # What does not fit into one file has its weights beside it.
    for weights in source.parent.glob(f"{source.name}.*.data"):
        shutil.copy(weights, folder)
    return TappedModel(
        path,
        outputs,
        quantizers,
        graph.made_by(model.graph.output[0].name),
        _preprocessing(model, source),
    )


def _import_onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("onnx", "export") from error
    return onnx


def _preprocessing(model: Any, source: Path) -> Preprocessing | None:
    facts = {entry.key: entry.value for entry in model.metadata_props}
    if _PREPROCESSING not in facts:
        return None
    try:
        return parse_schema(Preprocessing, facts[_PREPROCESSING].encode())
    except ValueError as error:
        raise OnnxModelError(
            f"{source} has a preprocessing that cannot be: {reason_of(error)}; export it again."
        ) from error


class _Graph:
    """A graph by names, to walk against the arrows."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._order = {node.name: index for index, node in enumerate(graph.node)}
        self._producers = {value: node for node in graph.node for value in node.output}

    def computes(self, value: str) -> bool:
        """Whether a node gives a value of this name."""
        return value in self._producers

    def activation_quantizers(self, *, codes: bool) -> list[QuantizerTensor]:
        """Each DequantizeLinear that bears a quantizer's name and takes no constant."""
        return [
            self._describe(node, codes=codes)
            for node in self._graph.node
            if _marks(node) and node.input[0] not in self._constants
        ]

    def _describe(self, dequantize: Any, *, codes: bool) -> QuantizerTensor:
        from mimiq_export.passes.node_marks import QMAX, QMIN, QUANTIZER

        marks = _marks(dequantize)
        quantize = self._producers[dequantize.input[0]]
        source = quantize.input[0]
        clip = self._producers.get(source)
        if clip is not None and clip.op_type == "Clip":
            source = clip.input[0]
        return QuantizerTensor(
            quantizer=marks[QUANTIZER],
            tensor=dequantize.input[0] if codes else source,
            is_codes=codes,
            scale=np.float32(self._constant(dequantize.input[1])),
            zero_point=int(self._constant(dequantize.input[2])),
            grid=Grid(int(marks[QMIN]), int(marks[QMAX])),
            made_by=self.made_by(source),
        )

    def made_by(self, value: str) -> str:
        """The layer of the last product before a value; the images themselves without one."""
        found: list[Any] = []
        seen: set[str] = set()
        waiting = [value]
        while waiting:
            node = self._producers.get(waiting.pop())
            if node is None or node.name in seen:
                continue
            seen.add(node.name)
            if node.op_type in _PRODUCTS:
                found.append(node)
            else:
                waiting.extend(node.input)
        if not found:
            return IMAGES
        return self._layer(max(found, key=lambda node: self._order[node.name]))

    def _layer(self, product: Any) -> str:
        """Dotted name of the module that a product belongs to, by the quantizers before it."""
        from mimiq_export.passes.node_marks import QUANTIZER

        operands = [self._producers.get(name) for name in product.input[:2]]
        names = [_marks(node).get(QUANTIZER) for node in operands if node is not None]
        marked = [name.rpartition(".") for name in names if name]
        if not marked:
            return str(product.name).rpartition("/")[0] or str(product.name)
        module, _, slot = marked[-1]
        what = {"key_quantizer": "queries by keys", "value_quantizer": "probabilities by values"}
        return f"{module} ({what[slot]})" if slot in what else module

    def _constant(self, name: str) -> Any:
        from onnx import numpy_helper

        return numpy_helper.to_array(self._constants[name])


def _marks(node: Any) -> dict[str, str]:
    """What the export wrote beside a DequantizeLinear; empty for any other node."""
    from mimiq_export.passes.node_marks import QUANTIZER

    marks = {entry.key: entry.value for entry in node.metadata_props}
    return marks if QUANTIZER in marks else {}
