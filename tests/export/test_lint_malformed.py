"""Linters on files that are no ONNX model, or one without a meaning: one sentence, no traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from _helpers.linted_graphs import ATTENTION, LINEAR, Bad, half, tensor, write
from click.testing import CliRunner
from onnx import helper, parser

from mimiq_deploy.cli import cli
from mimiq_export.lint.linters import LINTERS, lint_file
from mimiq_runtime.errors import OnnxModelError


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256))], ids=repr)
def test_a_broken_file_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(OnnxModelError, match="is not an ONNX model, or is damaged"):
        lint_file(path, "trt")


HEAD = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1, "own" : 1]>'

MALFORMED = {
    "circle": ("a = Add(x, b) b = Neg(a) y = Relu(b)", "takes b before it is made"),
    "own-output": ("y = Add(y, x)", "takes y before it is made"),
    "unsorted": ("y = Relu(b) b = Neg(x)", "takes b before it is made"),
    "circle-of-quantizers": (
        "q = QuantizeLinear(d, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, d)",
        "takes d before it is made",
    ),
    "circle-around-softmax": (
        "p = Softmax(n) n = Add(p, x) m = MatMul(x, x) y = MatMul(p, m)",
        "takes n before it is made",
    ),
    "undefined": ("y = Relu(nowhere)", "takes nowhere, which nothing makes"),
    "no-output": ("a = Relu(x)", "its output y is made by no node"),
    "made-twice": ("y = Relu(x) y = Neg(x)", "cannot be read as an ONNX model"),
    "one-operand": ("y = MatMul(x)", "has 1 operand and needs 2"),
    "no-operand": ("y = Softmax()", "has 0 operands and needs 1"),
    "four-operands": ("y = DequantizeLinear(x, s, z, s)", "has 4 operands and needs 2 to 3"),
    "empty-operand": ('y = Mul("", x)', "lacks its operand A"),
    "empty-sum": ("y = Sum()", "has 0 operands and needs at least 1"),
    "no-attribute": ("y = Cast(x)", "lacks its attribute to"),
    "attribute-type": (
        "q = QuantizeLinear<axis = 0.5>(x, s, z) y = DequantizeLinear(q, s, z)",
        "the attribute axis of QuantizeLinear that makes q is FLOAT and not INT",
    ),
    "attribute-type-in-another-domain": (
        "q = com.microsoft.QuantizeLinear<axis = 0.5>(x, s, z) y = DequantizeLinear(q, s, z)",
        "the attribute axis of QuantizeLinear that makes q is FLOAT and not INT",
    ),
    "no-operand-in-another-domain": ("y = com.microsoft.Softmax()", "has 0 operands and needs 1"),
    "mixed-types": ("y = MatMul(x, z)", "MatMul that makes y takes int8 as B"),
    "floats-of-two-sizes": (
        "h = Cast<to = 10>(x) y = Add(x, h)",
        "Add that makes y takes float and float16, which must be one type",
    ),
    "product-of-codes": (
        "q = QuantizeLinear(x, s, z) y = MatMul(q, q)",
        "MatMul that makes y takes int8 as A",
    ),
}


def malformed(path: Path, body: str) -> Path:
    model = parser.parse_model(f"{HEAD} bad (float[N,N] x) => (float[N,N] y) {{ {body} }}")
    used = {name for node in model.graph.node for name in node.input}
    constants = {"s": np.float32(0.1), "z": np.int8(0)}
    model.graph.initializer.extend(
        tensor(name, value) for name, value in constants.items() if name in used
    )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("target", LINTERS)
@pytest.mark.parametrize(("body", "sentence"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_graph_without_a_meaning_is_one_sentence(
    body: str, sentence: str, target: str, tmp_path: Path
) -> None:
    path = malformed(tmp_path / "bad.onnx", body)
    result = CliRunner().invoke(cli, ["inspect", str(path), "--lint", target])
    assert result.exit_code == 2, result.output
    assert sentence in result.output.replace("\n", " ")
    assert result.output.count("\n") <= 4
    assert "Traceback" not in result.output


def test_functions_that_call_themselves_are_one_sentence(tmp_path: Path) -> None:
    model = parser.parse_model(
        f"{HEAD} bad (float[N] x) => (float[N] y) {{ y = own.f(x) }}"
        '<domain: "own", opset_import: ["" : 20, "own" : 1]> f (a) => (b) { b = own.f(a) }'
    )
    onnx.save(model, tmp_path / "recursive.onnx")
    with pytest.raises(OnnxModelError, match="cannot be read as an ONNX model"):
        lint_file(tmp_path / "recursive.onnx", "trt")


FOREIGN = Path(onnx.__file__).parent / "backend" / "test" / "data"


@pytest.mark.parametrize("folder", ["simple", "pytorch-operator", "pytorch-converted"])
def test_models_of_onnx_itself_are_not_refused(folder: str) -> None:
    """Sequences, strings, functions, old opsets, models without a name: all valid."""
    paths = sorted((FOREIGN / folder).glob("*/model.onnx"))
    if not paths:
        pytest.skip("this release of onnx has no such models with it")
    for path in paths:
        lint_file(path, "ort-cpu")


def with_subgraph(path: Path, operator: str, body: str) -> Path:
    """The body reads ``x``, ``s`` and ``u`` of the graph around it."""
    inner = parser.parse_graph(body)
    if operator == "If":
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    else:
        node = helper.make_node("Loop", ["n", "c", "x"], ["y"], body=inner)
    graph = helper.make_graph(
        [node],
        "outer",
        [
            helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("n", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4]),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])],
        [tensor("s", np.float32(0.1)), tensor("u", np.uint8(0))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


PAIR = "q = QuantizeLinear(v, s, u) o = DequantizeLinear(q, s, u)"
SUBGRAPHS = {
    "If": ("body () => (float o) { v = Neg(x) " + PAIR + " }", 4),
    "Loop": (
        "body (int64 i, bool d, float[4] v) => (bool e, float o) { e = Not(d) " + PAIR + " }",
        2,
    ),
}


@pytest.mark.parametrize("operator", SUBGRAPHS)
@pytest.mark.parametrize("target", LINTERS)
def test_nodes_inside_subgraphs_are_looked_at(operator: str, target: str, tmp_path: Path) -> None:
    body, count = SUBGRAPHS[operator]
    path = with_subgraph(tmp_path / "inner.onnx", operator, body)
    found = [each.rule for each in lint_file(path, target)]
    assert found.count("uint8-codes") == (count if target == "trt" else 0)


@pytest.mark.parametrize("operator", SUBGRAPHS)
def test_a_circle_inside_a_subgraph_is_one_sentence(operator: str, tmp_path: Path) -> None:
    body = SUBGRAPHS[operator][0].replace("(v, s, u)", "(o, s, u)")
    path = with_subgraph(tmp_path / "inner.onnx", operator, body)
    with pytest.raises(OnnxModelError, match="takes o before it is made"):
        lint_file(path, "trt")


@pytest.mark.parametrize("seed", range(8))
def test_damage_at_random_is_never_a_traceback(seed: int, tmp_path: Path) -> None:
    """Findings or a refusal; operands, operators, domains, types, attributes, order are damaged."""
    random = np.random.default_rng(seed)
    lines = LINEAR if seed % 2 else ATTENTION
    shape = "float16[N,32]" if seed % 2 else half("N,49,32")
    clean = onnx.load(write(tmp_path / "clean.onnx", Bad("", "", lines, x=shape)))
    refused = 0
    for _ in range(40):
        model = onnx.ModelProto.FromString(clean.SerializeToString())
        for _ in range(random.integers(1, 4)):
            damage(model.graph, random)
        path = tmp_path / "damaged.onnx"
        onnx.save(model, path)
        try:
            lint_file(path, random.choice(list(LINTERS)))
        except OnnxModelError:
            refused += 1
    assert 0 < refused < 40


def damage(graph: onnx.GraphProto, random: np.random.Generator) -> None:
    node = graph.node[random.integers(len(graph.node))]
    names = [*(name for each in graph.node for name in [*each.input, *each.output]), "", "nowhere"]
    name = names[random.integers(len(names))]
    operators = ["Add", "Cast", "Clip", "Conv", "Gemm", "If", "Mul", "Pow", "Softmax", "Warp"]
    wrong_constants = [np.int32(3), np.zeros((0, 4)), "text"]
    match random.integers(9):
        case 0:
            del node.input[random.integers(3) :]
        case 1 if node.input:
            node.input[random.integers(len(node.input))] = name
        case 2:
            node.input.append(name)
        case 3:
            node.op_type = operators[random.integers(len(operators))]
        case 4:
            node.domain = ["own", "com.microsoft", "trt.plugins"][random.integers(3)]
        case 5:
            value = [0.5, 1, -9, "x", [1, 2]][random.integers(5)]
            del node.attribute[:]
            attribute = ["axis", "to", "output_dtype", "block_size", "transB"][random.integers(5)]
            node.attribute.append(helper.make_attribute(attribute, value))
        case 6:
            graph.node.append(node)
            graph.node.remove(node)
        case 7:
            constant = graph.initializer[random.integers(len(graph.initializer))]
            constant.CopyFrom(tensor(constant.name, wrong_constants[random.integers(3)]))
        case _:
            del graph.output[:]
            kind = random.choice([1, 3, 10, 22])
            graph.output.append(helper.make_tensor_value_info(name or "y", int(kind), None))
