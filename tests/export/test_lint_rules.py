"""A hand-made bad graph for every rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from _helpers.linted_graphs import (
    ACTIVATION,
    ATTENTION,
    FLOAT,
    LINEAR,
    PRODUCT,
    WEIGHT,
    Bad,
    Int4,
    half,
    write,
)
from _helpers.onnx_graphs import run_ort
from click.testing import CliRunner
from onnx import helper

from mimiq_deploy.cli import cli
from mimiq_export.lint.finding import Severity
from mimiq_export.lint.linters import LINTERS, lint_file
from mimiq_export.lint.rule_table import rule_table
from mimiq_runtime.errors import InvalidInputError

BLOCK_WEIGHT = "wd = DequantizeLinear<axis = 0, block_size = 128>(w, ws)"

CASES = [
    Bad(
        "uint8-codes",
        "QuantizeLinear that makes xq",
        others={"z": np.uint8(0)},
    ),
    Bad(
        "codes-without-type",
        "QuantizeLinear that makes xq",
        ["xq = QuantizeLinear(x, s)", "xd = DequantizeLinear(xq, s)", *WEIGHT, *PRODUCT],
        # By ONNX they are uint8, and the DequantizeLinear takes them.
        apart_from=("uint8-codes",),
    ),
    Bad(
        "code-type",
        "DequantizeLinear that makes wd",
        opset=21,
        others={"w": np.zeros((32, 32), np.int16), "wz": np.zeros(32, np.int16)},
    ),
    Bad(
        "bias-in-int32",
        "DequantizeLinear that makes bd",
        [
            *ACTIVATION,
            *WEIGHT,
            "bd = DequantizeLinear<axis = 0>(b, ws)",
            "m = MatMul(xd, wd)",
            "y = Add(m, bd)",
        ],
        {"b": np.ones(32, np.int32)},
    ),
    Bad(
        "zero-point",
        "QuantizeLinear that makes xq",
        others={"z": np.int8(-128)},
    ),
    Bad(
        "zero-point",
        "DequantizeLinear that makes wd",
        others={"wz": np.eye(32, dtype=np.int8)[0]},
    ),
    Bad(
        "zero-point",
        "DequantizeLinear that makes wd",
        others={"wz": np.eye(32, dtype=np.int8)[31]},
    ),
    Bad(
        "zero-point",
        "QuantizeLinear that makes xq",
        ["zf = Constant<value_float = -3.0>()", "zi = Cast<to = 3>(zf)"]
        + [line.replace("s, z)", "s, zi)") for line in LINEAR],
    ),
    Bad(
        "zero-point-shape",
        "DequantizeLinear that makes wd",
        others={"wz": np.int8(0)},
    ),
    Bad(
        "zero-point-not-constant",
        "QuantizeLinear that makes xq",
        ["zz = Sub(z, z)", "xq = QuantizeLinear(x, s, zz)", *LINEAR[1:]],
    ),
    Bad("scale-not-positive", "QuantizeLinear that makes xq", others={"s": np.float16(0)}),
    Bad(
        "scale-not-positive",
        "DequantizeLinear that makes wd",
        others={"ws": np.linspace(-0.01, 0.3, 32).astype(np.float16)},
    ),
    Bad(
        "scale-not-positive",
        "QuantizeLinear that makes xq",
        others={"s": np.float16(np.inf)},
        apart_from=("constant-beyond-half",),
    ),
    Bad(
        "scale-not-positive",
        "DequantizeLinear that makes wd",
        others={"ws": np.where(np.arange(32) == 31, np.nan, 0.01).astype(np.float16)},
        apart_from=("constant-beyond-half",),
    ),
    Bad(
        "scale-not-positive",
        "QuantizeLinear that makes xq",
        # Half precision has no 1e-9: what the engine gets is 0.
        ["sf = Constant<value_float = 1e-9>()", "sh = Cast<to = 10>(sf)"]
        + [line.replace("s, z)", "sh, z)") for line in LINEAR],
    ),
    Bad(
        "scale-becomes-infinite",
        "QuantizeLinear that makes xq",
        others={"s": np.float32(1e5)},
        x=FLOAT,
        number=np.float32,
    ),
    Bad(
        "scale-becomes-zero",
        "QuantizeLinear that makes xq",
        others={"s": np.float32(2e-8)},
        x=FLOAT,
        number=np.float32,
    ),
    Bad(
        "scale-loses-bits",
        "DequantizeLinear that makes wd",
        others={"ws": np.full(32, 3e-5, np.float16)},
    ),
    Bad(
        "scale-not-constant",
        "QuantizeLinear that makes xq",
        [
            "top = ReduceMax<keepdims = 0>(x)",
            "step = Mul(top, s)",
            "xq = QuantizeLinear(x, step, z)",
            *LINEAR[1:],
        ],
    ),
    Bad(
        "scale-shape",
        "DequantizeLinear that makes wd",
        others={"ws": np.full(7, 0.01, np.float16), "wz": np.zeros(7, np.int8)},
    ),
    Bad(
        "scale-shape",
        "DequantizeLinear that makes wd",
        [*ACTIVATION, "wd = DequantizeLinear<axis = 5>(w, ws, wz)", *PRODUCT],
    ),
    Bad(
        "scale-shape",
        "DequantizeLinear that makes wd",
        others={"ws": np.ones((1, 32), np.float16), "wz": np.zeros((1, 32), np.int8)},
    ),
    Bad(
        "scale-shape",
        "DequantizeLinear that makes wd",
        [BLOCK_WEIGHT, "y = MatMul(x, wd)"],
        {"w": Int4(np.zeros((256, 32), np.int8)), "ws": np.ones((3, 32), np.float16)},
        x=half("N,256"),
        opset=21,
    ),
    Bad(
        "scale-axis",
        "DequantizeLinear that makes wd",
        [*ACTIVATION, "wd = DequantizeLinear<axis = 0>(w, ws, wz)", *PRODUCT],
    ),
    Bad(
        "scale-axis",
        "DequantizeLinear that makes wd",
        [*ACTIVATION, *WEIGHT, "y = Gemm<transB = 1>(xd, wd)"],
    ),
    Bad(
        "scale-axis",
        "DequantizeLinear that makes wd",
        [*ACTIVATION, "wd = DequantizeLinear<axis = -3>(w, ws, wz)", "y = Conv(xd, wd)"],
        {"w": np.zeros((32, 32, 2, 2), np.int8)},
        x=half("N,32,8,8"),
    ),
    Bad(
        "scale-axis",
        "DequantizeLinear that makes wd",
        [*ACTIVATION, "wd = DequantizeLinear<axis = 1>(w, ws, wz)", "y = MatMul(wd, xd)"],
        x=half("32,N"),
    ),
    Bad("scale-type", "QuantizeLinear that makes xq", others={"s": np.float32(0.05)}, opset=23),
    Bad(
        "activation-per-channel",
        "QuantizeLinear that makes xq",
        [
            "xq = QuantizeLinear<axis = 1>(x, ws, wz)",
            "xd = DequantizeLinear<axis = 1>(xq, ws, wz)",
            *WEIGHT,
            *PRODUCT,
        ],
    ),
    Bad(
        "axis-not-written",
        "DequantizeLinear that makes wd",
        [*ACTIVATION, "wd = DequantizeLinear(w, ws, wz)", *PRODUCT],
    ),
    Bad(
        "scalar-input",
        "QuantizeLinear that makes xq",
        ["xq = QuantizeLinear(x, s, z)", "xd = DequantizeLinear(xq, s, z)", "y = Neg(xd)"],
        x="float16",
    ),
    Bad("single-precision-product", "MatMul that makes y", x=FLOAT, number=np.float32),
    Bad(
        "constant-beyond-half",
        "Add that makes y",
        [*LINEAR[:3], "m = MatMul(xd, wd)", "y = Add(m, b)"],
        {"b": np.full(32, -np.inf, np.float16)},
    ),
    Bad(
        "cast-before-product",
        "Cast that makes xe",
        [
            "xw = Cast<to = 1>(x)",
            "xq = QuantizeLinear(xw, s, z)",
            "xd = DequantizeLinear(xq, s, z)",
            "xe = Cast<to = 10>(xd)",
            *WEIGHT,
            "we = Cast<to = 10>(wd)",
            "y = MatMul(xe, we)",
        ],
        number=np.float32,
    ),
    Bad(
        "cast-before-product",
        "Cast that makes xw",
        ["xw = Cast<to = 1>(x)", "xq = QuantizeLinear(xw, s32, z)", *LINEAR[1:]],
        {"s32": np.float32(0.05)},
    ),
    Bad(
        "layout-before-product",
        "Transpose that makes wt",
        [*ACTIVATION, *WEIGHT, "wt = Transpose(wd)", "y = MatMul(xd, wt)"],
    ),
    Bad(
        "one-operand-quantized",
        "MatMul that makes y",
        [*ACTIVATION, "y = MatMul(xd, f)"],
        {"f": np.ones((32, 32), np.float16)},
    ),
    Bad("one-operand-quantized", "MatMul that makes y", [*WEIGHT, "y = MatMul(x, wd)"]),
    Bad(
        "not-a-product",
        "DequantizeLinear that makes xd",
        [*ACTIVATION, "y = LayerNormalization(xd, g)"],
        {"g": np.ones(32, np.float16)},
    ),
    Bad(
        "quantized-residual",
        "DequantizeLinear that makes xd",
        [*ACTIVATION, "r = Neg(x)", "y = Add(xd, r)"],
    ),
    Bad(
        "quantized-residual",
        "QuantizeLinear that makes xq",
        [
            "r = Neg(x)",
            "sum = Add(x, r)",
            "low = Clip(sum, f, s)",
            "xq = QuantizeLinear(low, s, z)",
            "xd = DequantizeLinear(xq, s, z)",
            "n = Neg(xd)",
            "y = Add(xd, n)",
        ],
        {"f": np.float16(-1)},
    ),
    Bad(
        "small-product",
        "MatMul that makes y",
        others={"w": np.zeros((32, 10), np.int8), "ws": np.ones(10, np.float16)}
        | {"wz": np.zeros(10, np.int8)},
    ),
    Bad(
        "small-product",
        "Gemm that makes y",
        [*ACTIVATION, "wd = DequantizeLinear<axis = 0>(w, ws, wz)", "y = Gemm<transB = 1>(xd, wd)"],
        {
            "w": np.zeros((10, 32), np.int8),
            "ws": np.ones(10, np.float16),
            "wz": np.zeros(10, np.int8),
        },
    ),
    Bad(
        "small-product",
        "Conv that makes y",
        [*ACTIVATION, "wd = DequantizeLinear<axis = 0>(w, ws, wz)", "y = Conv(xd, wd)"],
        {"w": np.zeros((32, 3, 2, 2), np.int8)},
        x=half("N,3,8,8"),
    ),
    Bad("overflowing-square", "Pow that makes y", ["y = Pow(x, two)"], {"two": np.float16(2)}),
    Bad("overflowing-square", "Mul that makes y", ["y = Mul(x, x)"]),
    Bad("overflowing-square", "ReduceL2 that makes y", ["y = ReduceL2(x)"]),
    Bad("overflowing-square", "ReduceSumSquare that makes y", ["y = ReduceSumSquare(x)"]),
    Bad("attention-shape", "MatMul that makes scores", ATTENTION, x=half("N,577,64")),
    Bad("attention-shape", "MatMul that makes scores", ATTENTION, x=half("N,49,24")),
    Bad(
        "attention-in-part",
        "Softmax that makes p",
        [*ATTENTION[:7], "y = MatMul(p, x)"],
        x=half("N,49,32"),
    ),
    Bad(
        "scale-behind-scores",
        "Mul that makes scaled",
        [*ATTENTION[:6], "scaled = Mul(scores, s)", "p = Softmax(scaled)", *ATTENTION[7:]],
        x=half("N,49,32"),
    ),
    Bad(
        "operator-unknown",
        "MatMulInteger that makes y",
        ["xq = QuantizeLinear(x, s, z)", "y = MatMulInteger(xq, w)"],
    ),
    *[
        Bad(
            "operator-not-imported",
            f"{operator} that makes y",
            [f"y = {domain + '.' if domain else ''}{operator}(x)"],
            domain=domain,
        )
        for domain, operator in [
            ("com.microsoft", "QuickGelu"),
            # ONNX has it, too, with queries, keys and values as operands.
            ("com.microsoft", "Attention"),
            ("own", "Warp"),
            ("", "Warp"),
            ("", "Det"),
        ]
    ],
    Bad(
        "zero-point",
        "QuantizeLinear that makes xq",
        [f"{line}".replace("= Q", "= com.microsoft.Q", 1) for line in LINEAR],
        {"z": np.int8(7)},
        domain="com.microsoft",
    ),
    Bad("opset-too-old", "QuantizeLinear that makes xq", opset=17),
    Bad(
        "opset-too-old",
        "DequantizeLinear that makes wd",
        opset=12,
        x=FLOAT,
        number=np.float32,
    ),
    Bad(
        "block-type",
        "DequantizeLinear that makes wd",
        ["wd = DequantizeLinear<axis = 0, block_size = 16>(w, ws)", "y = MatMul(x, wd)"],
        {"ws": np.ones((2, 32), np.float16)},
        opset=21,
    ),
    Bad(
        "block-axis",
        "DequantizeLinear that makes wd",
        ["wd = DequantizeLinear<axis = 0, block_size = 64>(w, ws)", "y = MatMul(x, wd)"],
        {"w": Int4(np.zeros((64, 32, 32), np.int8)), "ws": np.ones((1, 32, 32), np.float16)},
        opset=21,
    ),
    Bad(
        "int4-block-size",
        "DequantizeLinear that makes wd",
        ["wd = DequantizeLinear<axis = 0, block_size = 32>(w, ws)", "y = MatMul(x, wd)"],
        {"w": Int4(np.zeros((32, 32), np.int8)), "ws": np.ones((1, 32), np.float16)},
        opset=21,
    ),
    Bad(
        "int4-activation",
        "QuantizeLinear that makes xq",
        others={"z": Int4(np.int8(0))},
        opset=21,
    ),
    Bad(
        "int4-odd",
        "DequantizeLinear that makes wd",
        [BLOCK_WEIGHT, "y = MatMul(x, wd)"],
        {"w": Int4(np.zeros((128, 31), np.int8)), "ws": np.ones((1, 31), np.float16)},
        x=half("N,128"),
        opset=21,
    ),
    Bad(
        "int4-elsewhere",
        "Cast that makes c",
        [*ACTIVATION, "c = Cast<to = 3>(w)", WEIGHT[0].replace("(w,", "(c,"), *PRODUCT],
        {"w": Int4(np.zeros((32, 32), np.int8))},
        opset=21,
    ),
    Bad(
        "int4-beside-codes",
        "MatMul that makes y",
        [*ACTIVATION, "wd = DequantizeLinear<axis = 1>(w, ws)", *PRODUCT],
        {"w": Int4(np.zeros((32, 32), np.int8))},
        opset=21,
    ),
    Bad(
        "codes-at-interface",
        "QuantizeLinear that makes y",
        [*LINEAR[:3], "m = MatMul(xd, wd)", "y = QuantizeLinear(m, s, z)"],
    ),
    Bad(
        "codes-at-interface",
        "DequantizeLinear that makes xd",
        ["xd = DequantizeLinear(x, s, z)", *LINEAR[2:]],
        x="int8[N,32]",
    ),
    Bad(
        "uint8-input",
        "Transpose that makes t",
        ["t = Transpose(x)", "y = Cast<to = 10>(t)"],
        x="uint8[N,32]",
    ),
    Bad(
        "uint8-input",
        "Cast that makes i",
        ["i = Cast<to = 6>(x)", "y = Cast<to = 10>(i)"],
        x="uint8[N,32]",
    ),
    Bad(
        "convolution-type",
        "Conv that makes y",
        [*ACTIVATION, "wd = DequantizeLinear<axis = 0>(w, ws)", "y = Conv(xd, wd)"],
        {"w": Int4(np.zeros((32, 16, 2, 2), np.int8))},
        x=half("N,16,8,8"),
        opset=21,
    ),
    Bad(
        "int8-at-opset-21",
        "DequantizeLinear that makes md",
        [
            *LINEAR[:3],
            "m = MatMul(xd, wd)",
            "mq = QuantizeLinear(m, s, z)",
            "md = DequantizeLinear(mq, s, z)",
            "y = Transpose(md)",
        ],
        x=FLOAT,
        target="ort-cpu",
        opset=21,
        number=np.float32,
    ),
    Bad(
        "output-type-twice",
        "QuantizeLinear that makes xq",
        ["xq = QuantizeLinear<output_dtype = 3>(x, s, z)", *LINEAR[1:]],
        x=FLOAT,
        target="ort-cpu",
        opset=21,
        number=np.float32,
    ),
    Bad(
        "bias-in-gemm",
        "Gemm that makes y",
        [*LINEAR[:3], "y = Gemm(xd, wd, b)"],
        {"b": np.ones(32, np.float32)},
        x=FLOAT,
        target="ort-cpu",
        number=np.float32,
    ),
    *[
        Bad(
            "scale-axis-ignored",
            "DequantizeLinear that makes wd",
            [*ACTIVATION, f"wd = DequantizeLinear<axis = {axis}>(w, ws, wz)", product],
            {"ws": np.linspace(0.01, 0.05, 32, dtype=np.float32)},
            x=FLOAT,
            target="ort-cpu",
            number=np.float32,
        )
        for axis, product in [(0, PRODUCT[0]), (1, "y = Gemm<transB = 1>(xd, wd)")]
    ],
    Bad("half-scales", "QuantizeLinear that makes xq", target="ort-cpu"),
    Bad(
        "int8-add",
        "Add that makes a",
        [
            *ACTIVATION,
            "a = Add(xd, xd)",
            "aq = QuantizeLinear(a, s, z)",
            "y = DequantizeLinear(aq, s, z)",
        ],
        x=FLOAT,
        target="ort-cpu",
        number=np.float32,
    ),
    Bad(
        "convolution-output",
        "Conv that makes y",
        [*ACTIVATION, "wd = DequantizeLinear<axis = 0>(w, ws, wz)", "y = Conv(xd, wd)"],
        {"w": np.zeros((32, 16, 2, 2), np.int8)},
        x="float[N,16,8,8]",
        target="ort-cpu",
        number=np.float32,
    ),
    Bad(
        "quantized-softmax",
        "Softmax that makes p",
        [
            *ACTIVATION,
            "p = Softmax(xd)",
            "pq = QuantizeLinear(p, s, z)",
            "y = DequantizeLinear(pq, s, z)",
        ],
        x=FLOAT,
        target="ort-cpu",
        number=np.float32,
    ),
    Bad(
        "saturating-pair",
        "MatMul that makes y",
        others={"z": np.uint8(128)},
        x=FLOAT,
        target="ort-cpu",
        number=np.float32,
    ),
    Bad(
        "no-cuda-kernel",
        "QLinearMatMul that makes yq",
        [
            "xq = QuantizeLinear(x, s, z)",
            "yq = QLinearMatMul(xq, s, z, w, s, z, s, z)",
            "y = DequantizeLinear(yq, s, z)",
        ],
        x=FLOAT,
        target="ort-cuda",
        number=np.float32,
    ),
    Bad(
        "unfused-pairs",
        "QuantizeLinear that makes xq",
        x=FLOAT,
        target="ort-cuda",
        number=np.float32,
    ),
    Bad(
        "dynamic-product",
        "MatMulInteger that makes y",
        ["xq = QuantizeLinear(x, s, z)", "y = MatMulInteger(xq, w)"],
        x=FLOAT,
        target="openvino",
        number=np.float32,
    ),
]
# Every target has these; the cases above are of trt.
CASES += [
    Bad(case.rule, case.node, case.lines, case.others, case.x, target, case.opset, case.number)
    for case in CASES
    if case.rule in {"scale-not-positive", "one-operand-quantized", "not-a-product"}
    for target in ("ort-cpu", "ort-cuda", "openvino")
]
CASES += [
    Bad(
        "layout-before-product",
        "Transpose that makes wt",
        [*ACTIVATION, *WEIGHT, "wt = Transpose(wd)", "y = MatMul(xd, wt)"],
        x=FLOAT,
        target="ort-cpu",
        number=np.float32,
    ),
    *[
        Bad(
            case.rule,
            case.node,
            case.lines,
            x=FLOAT,
            target="ort-cuda",
            opset=21,
            number=np.float32,
        )
        for case in CASES
        if case.rule in {"int8-at-opset-21", "output-type-twice"}
    ],
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.target}-{case.rule}")
def test_a_bad_graph_is_found_by_its_rule(case: Bad, tmp_path: Path) -> None:
    findings = lint_file(write(tmp_path / "bad.onnx", case), case.target)
    found = {finding.node for finding in findings if finding.rule == case.rule}
    assert case.node in found, findings
    (rule,) = (rule for rule in LINTERS[case.target] if rule.name == case.rule)
    errors = {finding.rule for finding in findings if finding.severity is Severity.ERROR}
    assert errors <= {case.rule, *case.apart_from}
    for finding in findings:
        assert finding.problem
        if finding.rule == case.rule:
            assert (finding.severity, finding.remedy) == (rule.severity, rule.remedy)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.target}-{case.rule}")
def test_a_bad_graph_is_rejected(case: Bad, tmp_path: Path) -> None:
    """By every rule where warnings count, and by errors anyway."""
    path = write(tmp_path / "bad.onnx", case)
    arguments = ["inspect", str(path), "--lint", case.target]
    strict = CliRunner().invoke(cli, [*arguments, "--strict"])
    assert strict.exit_code == 1
    assert case.rule in strict.output
    (rule,) = (rule for rule in LINTERS[case.target] if rule.name == case.rule)
    plain = CliRunner().invoke(cli, arguments)
    assert plain.output == strict.output
    assert plain.exit_code == (rule.severity is Severity.ERROR)


def test_every_rule_of_every_target_has_a_bad_graph() -> None:
    rules = {(target, rule.name) for target, rules in LINTERS.items() for rule in rules}
    assert {(case.target, case.rule) for case in CASES} == rules


def test_errors_come_first(tmp_path: Path) -> None:
    case = Bad("", "", others={"z": np.int8(1), "ws": np.full(32, 3e-5, np.float16)})
    severities = [found.severity for found in lint_file(write(tmp_path / "bad.onnx", case), "trt")]
    assert severities == sorted(severities, key=list(Severity).index)
    assert len(set(severities)) == 2


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.rule == "scale-axis-ignored"],
    ids=lambda case: case.lines[-1],
)
def test_onnx_runtime_computes_something_else_along_another_axis(case: Bad, tmp_path: Path) -> None:
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version != (1, 32):
        pytest.skip(f"known of ONNX Runtime 1.32, and this is {onnxruntime.__version__}")
    model = ir.load(write(tmp_path / "bad.onnx", case))
    model.graph.outputs[0].dtype = ir.DataType.FLOAT
    feeds = {"x": np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)}
    as_written, optimized = (run_ort(model, feeds, optimize=each)[0] for each in (False, True))
    assert np.abs(optimized - as_written).max() > 0.5 * np.abs(as_written).max()


@pytest.mark.parametrize("rule", ["int8-at-opset-21", "output-type-twice"])
def test_onnx_runtime_refuses_what_these_rules_call_an_error(rule: str, tmp_path: Path) -> None:
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if not (1, 31) <= version <= (1, 32):
        pytest.skip(f"known of ONNX Runtime 1.31 and 1.32, and this is {onnxruntime.__version__}")
    case = next(case for case in CASES if case.rule == rule)
    path = write(tmp_path / "bad.onnx", case)
    model = onnx.load(path)
    model.graph.output[0].type.CopyFrom(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match="QuantizeLinear"):
        onnxruntime.InferenceSession(model.SerializeToString(), options)


def test_a_target_without_rules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="trt, ort-cpu, ort-cuda, openvino to lint for"):
        lint_file(tmp_path / "any.onnx", "tpu")


def test_the_page_of_rules_is_in_step_with_the_rules() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lint-rules.md").read_text()
    assert rule_table() in page, "python -m mimiq_export.lint.rule_table prints the table"


def test_rules_of_one_name_are_one_rule() -> None:
    rules = {rule.name: rule for rules in LINTERS.values() for rule in rules}
    for group in LINTERS.values():
        assert len({rule.name for rule in group}) == len(group)
        assert all(rules[rule.name] is rule for rule in group)
