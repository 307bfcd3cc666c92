"""Convolutions of separate patches as products of matrices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from _helpers.onnx_graphs import constant, fake_quantize, model_of, run_ort, run_reference

from mimiq_export.passes.patch_embedding_as_matmul import PatchEmbeddingAsMatmulPass
from mimiq_export.passes.quantize_activations import QuantizeActivationsPass
from mimiq_export.passes.quantize_weights import QuantizeWeightsPass

RANDOM = np.random.default_rng(5)
SCALE = np.asarray([0.05, 0.03, 0.04, 0.06, 0.02])
IMAGE = RANDOM.normal(size=(2, 3, 8, 12)).astype(np.float32)


def convolution(
    *,
    bias: bool = True,
    flattened: bool = True,
    quantized: bool = True,
    size: tuple[int, int] = (8, 12),
    **attributes: object,
) -> ir.Model:
    """Five channels of 4 x 2 patches, as a capture leaves them."""
    x = ir.val("x", ir.DataType.FLOAT, ["n", 3, *size])
    kernel = constant("w", RANDOM.normal(size=(5, 3, 4, 2)) * 0.2)
    nodes = []
    image = x
    if quantized:
        nodes.append(fake_quantize(x, constant("sx", 0.02), quantizer="i", qmin=-128, qmax=127))
        image = nodes[0].outputs[0]
    nodes.append(
        fake_quantize(kernel, constant("sw", SCALE), quantizer="k", qmin=-8, qmax=7, axis=0)
    )
    inputs = [image, nodes[-1].outputs[0]]
    if bias:
        inputs.append(constant("b", RANDOM.normal(size=5)))
    y = ir.val("y", ir.DataType.FLOAT, ["n", 5, size[0] // 4, size[1] // 2])
    nodes.append(
        ir.node("Conv", inputs, {"strides": [4, 2], **attributes}, outputs=[y], name="pe/Conv")
    )
    if not flattened:
        return model_of(nodes, [x], [y])
    patches = size[0] // 4 * (size[1] // 2)
    flat = ir.val("flat", ir.DataType.FLOAT, ["n", 5, patches])
    shape = ir.val("shape", const_value=ir.tensor(np.asarray([0, 5, patches]), name="shape"))
    tokens = ir.val("tokens", ir.DataType.FLOAT, ["n", patches, 5])
    nodes.append(ir.node("Reshape", [y, shape], outputs=[flat], name="pe/Reshape"))
    nodes.append(
        ir.node("Transpose", [flat], {"perm": [0, 2, 1]}, outputs=[tokens], name="pe/Transpose")
    )
    return model_of(nodes, [x], [tokens])


@pytest.mark.parametrize("flattened", [True, False], ids=["tokens", "picture"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_the_product_gives_what_the_convolution_gave(flattened: bool, bias: bool) -> None:
    model = convolution(flattened=flattened, bias=bias)
    (before,) = run_reference(model, {"x": IMAGE})
    assert PatchEmbeddingAsMatmulPass()(model).modified
    kinds = [node.op_type for node in model.graph]
    assert "Conv" not in kinds
    assert kinds.count("MatMul") == 1
    np.testing.assert_allclose(run_reference(model, {"x": IMAGE})[0], before, atol=1e-5)
    assert model.graph.outputs[0].name == ("tokens" if flattened else "y")


def test_tokens_need_no_way_back() -> None:
    """The Reshape and the Transpose behind the Conv are gone, not undone a second time."""
    model = convolution()
    PatchEmbeddingAsMatmulPass()(model)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Transpose") == 2  # the pixels of the picture, and the constant weight
    assert [node.name for node in model.graph][-1] == "pe/Add"


def test_onnx_runtime_runs_it_in_integers(tmp_path: object) -> None:
    model = convolution()
    (before,) = run_reference(model, {"x": IMAGE})
    for graph_pass in (
        PatchEmbeddingAsMatmulPass(),
        QuantizeWeightsPass(),
        QuantizeActivationsPass(),
    ):
        graph_pass(model)
    del model.opset_imports["mimiq_deploy"]
    optimized = tmp_path / "optimized.onnx"
    (after,) = run_ort(model, {"x": IMAGE}, optimized_path=optimized)
    assert "MatMulIntegerToFloat" in [node.op_type for node in ir.load(optimized).graph]
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"quantized": False},
        {"pads": [1, 1, 1, 1], "flattened": False},
        {"strides": [2, 2], "flattened": False},
        {"dilations": [1, 2], "flattened": False},
        {"size": (9, 12), "flattened": False},
    ],
    ids=["not-quantized", "padding", "overlap", "dilation", "remainder"],
)
def test_any_other_convolution_is_left_alone(arguments: dict[str, object]) -> None:
    model = convolution(**arguments)
    assert not PatchEmbeddingAsMatmulPass()(model).modified
    assert "Conv" in [node.op_type for node in model.graph]
