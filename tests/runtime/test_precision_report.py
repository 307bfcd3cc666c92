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
]


def sample(version: int) -> list[EngineLayer]:
    return parse_engine_information((SAMPLES / f"trt{version}.json").read_text())


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
    "kernel", ["", "_gemm_mha_v2_0x9c81", "__myl_AddCastMeanSub_0x1f", "0x00000000000003e8"]
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
    assert attention[0].evidence == "its inputs are int8, int8, int8"
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


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (["Int8", "Int8"], Verdict.INT8),
        (["Int8", "Half"], Verdict.NOT_INT8),
        (["Int8", "Int8", "Half"], Verdict.NOT_INT8),
        (["Int8", "Int8", "Int8", "Bool"], Verdict.INT8),
    ],
)
def test_attention_needs_all_operands(types: list[str], expected: Verdict) -> None:
    layer = {
        "Name": "_gemm_mha_v2",
        "LayerType": "kgen",
        "Metadata": "[ONNX Layer: node]",
        "Inputs": [{"Name": str(i), "Datatype": name} for i, name in enumerate(types)],
    }
    assert verdict_of(ProductKind.ATTENTION, layer) is expected


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
