"""The engine inspector's JSON in both forms, and what is proved by it.

The samples in ``inspector/`` were written down by hand after NVIDIA's description of the two
forms and after layers in public bug reports; no engine was built for them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mimiq_runtime.errors import EngineError
from mimiq_runtime.precision_report import Verdict, kernel_precision, prove_precision
from mimiq_runtime.trt_inspector import EngineLayer, parse_engine_information
from mimiq_runtime.trt_network import NetworkProduct, ProductKind

SAMPLES = Path(__file__).parent / "inspector"

PRODUCTS = [
    NetworkProduct(name="patch_embed/Conv", kind=ProductKind.CONVOLUTION, quantized=False),
    NetworkProduct(name="blocks.0/attn/qkv/MatMul", kind=ProductKind.LINEAR, quantized=True),
    NetworkProduct(name="blocks.0/attn/scores/MatMul", kind=ProductKind.ATTENTION, quantized=True),
    NetworkProduct(name="blocks.0/attn/values/MatMul", kind=ProductKind.ATTENTION, quantized=True),
    NetworkProduct(name="head/MatMul", kind=ProductKind.LINEAR, quantized=True),
]

INT8_KERNELS = [
    "sm80_xmma_gemm_i8f16_i8i32_f16_tn_n_tilesize128x64x64_stage4_warpsize2x2x1_tensor16x8x32",
    "sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize64x64x64_fused",
    "sm90_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize64x128x64_warpgroupsize1x1x1",
    "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32",
    "ampere_int8_i16832gemm_int8_128x128_ldg16_relu_stages_32x6_tn_v1",
    "turing_int8_i8816cudnn_int8_256x128_ldg16_relu_interior_nt_v1",
    "cutlass_80_tensorop_i16832gemm_s8_128x256_64x3_tn_align16",
    "fmha_v2_int8_S_128_64_sm87_kernel",
    "volta_fp32_icudnn_int8x4_128x64_relu_small_nn_v1",
    "volta_int8x4_icudnn_int8x4_128x32_relu_small_nn_v1",
    "volta_int8_i8816cudnn_int8_256x64_ldg16_relu_singleBuffer_medium_nt_v1",
    "gemm_s8s8s32_nt_128x64",
    "sm90_xmma_gemm_i8i32_i8i32_i32_tn_n_tilesize256x128x128_cublas",
    "cutlass_80_wmma_tensorop_i161616gemm_s8_64x64_32x1_tn_align16",
]
FLOAT_KERNELS = [
    "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64_stage6_warpsize2x2x1_tensor16x8x16",
    "sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize32x32x64",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64",
    "ampere_h16816gemm_256x128_ldg8_nn_v1",
    "ampere_sgemm_32x32_sliced1x4_relu_nn_v1",
    "fmha_v2_flash_attention_fp16_S_32_sm86_kernel",
    "sm50_xmma_cublas_gemvx_f16f16_f32",
    "sm89_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn_n_tilesize64x64x64",
    # Its output is INT8, what it multiplies is not.
    "sm80_xmma_gemm_f16i8_f16f32_f32_tn_n_tilesize64x64x64",
    # One operand is INT8, and is widened.
    "cutlass_80_tensorop_s16816gemm_f16_s8_128x128_32x4_tn_align8",
    "ampere_h16816gemm_int8_128x128_ldg8_stages_32x5_tn_v1",
    "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT",
    "nvjet_sm100_tst_64x32_64x16_2x1_2cta_h_bz_TNT",
    "nvjet_qqtst_128x128_128x6_1x2_h_bz_TNT",
]


def sample(version: int) -> list[EngineLayer]:
    return parse_engine_information((SAMPLES / f"trt{version}.json").read_text())


Tensor = tuple[str, list[int] | None]
"""Type and shape as the inspector says them; no shape where it does not."""


def tensor_in(version: int, tensor: Tensor) -> dict[str, Any]:
    """A tensor in the form of a version of TensorRT."""
    dtype, shape = tensor
    named = {10: {"Format/Datatype": dtype}, 11: {"Format": "Row major", "Datatype": dtype}}
    return {"Name": "t", **named[version], **({} if shape is None else {"Dimensions": shape})}


def layer_in(
    version: int, kind: str, inputs: list[Tensor], output: Tensor, **fields: str
) -> dict[str, Any]:
    """A layer of the ONNX node ``node``, in the form of a version of TensorRT."""
    return {
        "Name": "node_myl0_1",
        "LayerType": kind,
        "Inputs": [tensor_in(version, tensor) for tensor in inputs],
        "Outputs": [tensor_in(version, output)],
        "Metadata": "[ONNX Layer: node]",
        **fields,
    }


def layers_of(*layers: dict[str, Any]) -> list[EngineLayer]:
    return parse_engine_information(json.dumps({"Layers": list(layers)}))


def verdict_of(kind: ProductKind, *layers: dict[str, Any]) -> Verdict:
    product = NetworkProduct(name="node", kind=kind, quantized=True)
    (proof,) = prove_precision([product], layers_of(*layers)).products
    return proof.verdict


@pytest.mark.parametrize("kernel", INT8_KERNELS)
def test_kernels_that_multiply_bytes(kernel: str) -> None:
    assert kernel_precision(kernel) == "int8"


@pytest.mark.parametrize("kernel", FLOAT_KERNELS)
def test_kernels_that_multiply_floats(kernel: str) -> None:
    assert kernel_precision(kernel) == "float"


@pytest.mark.parametrize(
    "kernel",
    [
        *("", "_gemm_mha_v2_0x9c81", "__myl_AddCastMeanSub_0x1f", "0x00000000000003e8"),
        # Reads one and writes the other, or the other way round.
        "fmha_v2_fp16_int8_S_128_64_kernel",
        "nvjet_isi_128x256_64x4_1x2_h_bz_TNT",
    ],
)
def test_kernels_that_do_not_say(kernel: str) -> None:
    assert kernel_precision(kernel) is None


def test_both_forms_give_the_same_records() -> None:
    """Version 10 says ``Format/Datatype``, version 11 splits it; only the head's kernel differs."""
    ten, eleven = sample(10), sample(11)
    assert [layer.name for layer in ten] == [layer.name for layer in eleven]
    for old, new in zip(ten[:-1], eleven[:-1], strict=True):
        assert old == new
    qkv = ten[3]
    assert (qkv.kind, qkv.inputs[0].dtype, qkv.outputs[0].dtype) == ("gemm", "int8", "int8")
    assert qkv.onnx_nodes[1] == "blocks.0/attn/qkv/MatMul"
    assert (ten[0].inputs[0].dtype, ten[0].outputs[0].dtype) == ("fp32", "fp16")
    assert ten[0].inputs[0].shape == (8, 3, 8, 8)
    assert ten[1].weights == "fp16"


def test_a_sample_that_is_proved() -> None:
    report = prove_precision(PRODUCTS, sample(10))
    assert report.proved
    assert report.unproved() == []
    assert report.floating_point == ["patch_embed/Conv"]
    assert (report.kernels, report.reformats) == ({"float": 1, "int8": 2, "unknown": 1}, 1)
    attention = [proof for proof in report.products if proof.kind is ProductKind.ATTENTION]
    assert [proof.fused_attention for proof in attention] == [True, True]
    assert {proof.layer for proof in attention} == {"_gemm_mha_v2_myl0_4"}
    assert attention[0].evidence == "its operands are int8, int8, int8"
    assert len(report.layers) == 6


def test_a_sample_whose_head_runs_in_half_precision() -> None:
    report = prove_precision(PRODUCTS, sample(11))
    assert not report.proved
    (head,) = report.unproved()
    assert (head.product, head.verdict) == ("head/MatMul", Verdict.NOT_INT8)
    assert head.evidence == "the kernel multiplies float"


def test_bytes_into_a_float_kernel_are_no_proof() -> None:
    layer = {
        "Name": "node",
        "LayerType": "gemm",
        "Inputs": [{"Name": "a", "Format/Datatype": "Int8"}],
        "TacticName": FLOAT_KERNELS[0],
    }
    assert verdict_of(ProductKind.LINEAR, layer) is Verdict.NOT_INT8
    assert verdict_of(ProductKind.LINEAR, {**layer, "TacticName": INT8_KERNELS[0]}) is Verdict.INT8


INT8, FLOAT, SILENT = INT8_KERNELS[2], FLOAT_KERNELS[0], "_gemm_0x9c81"

X, HALF_X = ("Int8", [8, 5, 32]), ("Half", [8, 5, 32])
W, HALF_W = ("Int8", [96, 32]), ("Half", [96, 32])
BIAS, RESIDUAL = ("Half", [96]), ("Half", [8, 5, 96])
OUTPUT = ("Half", [8, 5, 96])


@pytest.mark.parametrize("version", [10, 11])
@pytest.mark.parametrize(
    ("inputs", "kernel", "expected"),
    [
        pytest.param([X, W], SILENT, True, id="both operands"),
        pytest.param([X, W], INT8, True, id="both operands and the kernel"),
        pytest.param([X, W], FLOAT, False, id="dequantized within the kernel"),
        pytest.param([X, W, BIAS], SILENT, True, id="a bias is no operand"),
        pytest.param([X, W, RESIDUAL], SILENT, True, id="a residual is no operand"),
        pytest.param([X, W, HALF_W], SILENT, False, id="two products in one layer"),
        pytest.param([X, HALF_W], SILENT, False, id="mixed"),
        pytest.param([X, HALF_W], INT8, False, id="mixed, and the kernel says INT8"),
        pytest.param([HALF_X, W], INT8, False, id="only the weight"),
        pytest.param([HALF_X, HALF_W], INT8, False, id="none"),
        pytest.param([X], INT8, True, id="the weight is inside the layer"),
        pytest.param([X], SILENT, False, id="the weight is inside, the kernel silent"),
        pytest.param([X, BIAS], SILENT, False, id="a bias in place of the weight"),
        pytest.param([X, BIAS], INT8, True, id="the weight inside, a bias"),
        pytest.param([X, RESIDUAL], INT8, True, id="the weight inside, a residual"),
        pytest.param([X, ("Int8", [8, 5, 96])], SILENT, False, id="an INT8 residual"),
        pytest.param([X, ("Half", None)], INT8, False, id="of unknown shape"),
        pytest.param([("Int8", [1, 32]), W], SILENT, True, id="one row"),
    ],
)
def test_a_linear_needs_both_operands(
    inputs: list[Tensor], kernel: str, expected: bool, version: int
) -> None:
    layer = layer_in(version, "gemm", inputs, OUTPUT, TacticName=kernel)
    assert (verdict_of(ProductKind.LINEAR, layer) is Verdict.INT8) == expected


def test_the_reason_names_the_operands() -> None:
    product = NetworkProduct(name="node", kind=ProductKind.LINEAR, quantized=True)
    for inputs, words in (([X, HALF_W], "int8, fp16"), ([X], "int8, and the kernel's name does")):
        layer = layer_in(11, "gemm", inputs, OUTPUT, TacticName=SILENT)
        (proof,) = prove_precision([product], layers_of(layer)).unproved()
        assert proof.evidence.startswith(f"its operands are {words}")


HEAD, HALF_HEAD = ("Int8", [8, 2, 5, 16]), ("Half", [8, 2, 5, 16])
MASK, ROWS = ("Bool", [1, 1, 5, 5]), ("Half", [1, 2, 5, 5])


@pytest.mark.parametrize("version", [10, 11])
@pytest.mark.parametrize(
    ("name", "inputs", "expected"),
    [
        pytest.param("_gemm_mha_v2", [HEAD] * 3, True, id="fused"),
        pytest.param("_gemm_mha_v2", [HEAD] * 2, True, id="fused, key and value in one tensor"),
        pytest.param("_gemm_mha_v2", [HEAD, HEAD, HALF_HEAD], False, id="fused, half values"),
        pytest.param("_gemm_mha_v2", [HEAD] * 3 + [MASK], True, id="fused, a mask"),
        pytest.param("_gemm_mha_v2", [HEAD] * 3 + [ROWS], True, id="fused, a bias of positions"),
        pytest.param("_gemm_mha_v2", [HEAD, HALF_HEAD, HALF_HEAD], False, id="fused, half keys"),
        pytest.param("node_myl0_3", [HEAD, HEAD], True, id="one product"),
        pytest.param("node_myl0_3", [HEAD, HEAD, ROWS], True, id="one product, a bias"),
        pytest.param("node_myl0_3", [HEAD, HALF_HEAD], False, id="one product, mixed"),
        pytest.param("node_myl0_3", [HEAD], False, id="one product, one tensor"),
    ],
)
def test_attention_needs_all_operands(
    name: str, inputs: list[Tensor], expected: bool, version: int
) -> None:
    layer = layer_in(version, "gemm", inputs, ("Int8", [8, 2, 5, 16]), Name=name)
    assert (verdict_of(ProductKind.ATTENTION, layer) is Verdict.INT8) == expected


def test_two_products_in_one_layer_are_a_fused_attention() -> None:
    """Whatever the layer's name: three operands are needed then."""
    names = ("scores", "values")
    products = [
        NetworkProduct(name=name, kind=ProductKind.ATTENTION, quantized=True) for name in names
    ]
    metadata = "".join(f"[ONNX Layer: {name}]" for name in names)
    layer = layer_in(11, "gemm", [HEAD, HEAD, HALF_HEAD], HALF_HEAD, Metadata=metadata)
    report = prove_precision(products, layers_of(layer))
    assert [proof.verdict for proof in report.products] == [Verdict.NOT_INT8] * 2
    assert all(proof.fused_attention for proof in report.products)


def test_the_names_of_onnx_nodes_make_no_fused_attention() -> None:
    layer = layer_in(10, "gemm", [X, W], OUTPUT, Name="/mha/attention/node_myl0_2")
    product = NetworkProduct(name="node", kind=ProductKind.LINEAR, quantized=True)
    (proof,) = prove_precision([product], layers_of(layer)).products
    assert (proof.verdict, proof.fused_attention) == (Verdict.INT8, False)


@pytest.mark.parametrize("version", [10, 11])
@pytest.mark.parametrize("order", [1, -1])
def test_every_layer_of_a_product_counts(order: int, version: int) -> None:
    """TensorRT may take a product apart; the order of its parts says nothing."""
    whole = layer_in(version, "gemm", [X, W], OUTPUT, Name="first", TacticName=INT8)
    part = layer_in(version, "gemm", [HALF_X, HALF_W], OUTPUT, Name="second", TacticName=FLOAT)
    product = NetworkProduct(name="node", kind=ProductKind.LINEAR, quantized=True)
    (proof,) = prove_precision([product], layers_of(*[whole, part][::order])).products
    assert (proof.verdict, proof.layer) == (Verdict.NOT_INT8, "second")
    assert proof.evidence == "the kernel multiplies float (in second, one of 2 layers)"
    assert verdict_of(ProductKind.LINEAR, whole, whole) is Verdict.INT8


@pytest.mark.parametrize("boundary", ["ATTENTION_INPUT", "AttentionOutput"])
def test_the_boundaries_of_an_attention_compute_nothing(boundary: str) -> None:
    """TensorRT 11's IAttention has two layers around what it is; neither is a product."""
    outside = layer_in(11, boundary, [HEAD] * 3, HEAD)
    assert verdict_of(ProductKind.ATTENTION, outside) is Verdict.NOT_FOUND
    inside = layer_in(11, "Attention", [HEAD, HEAD, HALF_HEAD], HALF_HEAD)
    assert verdict_of(ProductKind.ATTENTION, outside, inside) is Verdict.NOT_INT8
    inside = layer_in(11, "Attention", [HEAD] * 3, HALF_HEAD)
    product = NetworkProduct(name="node", kind=ProductKind.ATTENTION, quantized=True)
    (proof,) = prove_precision([product], layers_of(outside, inside)).products
    assert (proof.verdict, proof.fused_attention) == (Verdict.INT8, True)


def test_float_weights_are_no_proof() -> None:
    layer = {
        "Name": "node",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "a", "Format/Datatype": "Row major Int8 format"}],
        "Weights": {"Type": "Half"},
    }
    assert verdict_of(ProductKind.CONVOLUTION, layer) is Verdict.NOT_INT8
    layer["Weights"] = {"Type": "Int8"}
    assert verdict_of(ProductKind.CONVOLUTION, layer) is Verdict.INT8


def test_the_layer_that_multiplies_is_looked_at() -> None:
    """TensorRT names a node also in the layers around it, which only convert."""
    around = {
        "Name": "__myl_CastMul_myl0_1",
        "LayerType": "kgen",
        "Metadata": "[ONNX Layer: node]\x1f[ONNX Layer: other]",
        "Inputs": [{"Name": "a", "Format/Datatype": "Int8"}],
    }
    product = {
        "Name": "__myl_FcCastAdd_myl0_2",
        "LayerType": "fusion",
        "Metadata": "[ONNX Layer: other]\x1e[ONNX Layer: node]",
        "TacticName": FLOAT_KERNELS[0],
    }
    assert verdict_of(ProductKind.LINEAR, around, product) is Verdict.NOT_INT8
    assert verdict_of(ProductKind.LINEAR, around) is Verdict.NOT_FOUND


def test_names_that_are_only_alike_are_not_mixed_up() -> None:
    longer = {"Name": "node_1", "LayerType": "gemm", "TacticName": INT8_KERNELS[0]}
    assert verdict_of(ProductKind.LINEAR, longer) is Verdict.NOT_FOUND
    joined = {**longer, "Name": "bias + node + relu"}
    assert verdict_of(ProductKind.LINEAR, joined) is Verdict.INT8


def test_a_network_without_quantized_products_is_not_proved() -> None:
    assert not prove_precision(PRODUCTS[:1], sample(10)).proved


def test_unsigned_bytes_are_not_int8() -> None:
    (layer,) = layers_of({"Name": "x", "Inputs": [{"Name": "a", "Datatype": "UInt8"}]})
    assert layer.inputs[0].dtype == "uint8"


@pytest.mark.parametrize("text", ["", "[]", '{"Bindings": []}', "no JSON"])
def test_what_is_no_inspector_output_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match="list of Layers"):
        parse_engine_information(text)


def test_an_engine_without_details_is_refused() -> None:
    with pytest.raises(EngineError, match="names of its layers only"):
        parse_engine_information('{"Layers": ["gemm 1", "gemm 2"]}')
