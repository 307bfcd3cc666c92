"""``mimiq-deploy inspect`` on a run and on an ONNX file."""

from __future__ import annotations

import builtins
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _helpers.runs import ONNX_PATH, SIZE, make_run, make_table, write_classifier
from click.testing import CliRunner, Result

from mimiq_deploy.cli import cli
from mimiq_deploy.onnx_summary import summarise_onnx
from mimiq_deploy.run_summary import summarise_run, summarise_table, verify_run
from mimiq_runtime.errors import MissingDependencyError, OnnxModelError, RunDirectoryError
from mimiq_runtime.estimate import ESTIMATE_PATH, estimate_from_logits
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run")


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    path = tmp_path / "colours.onnx"
    write_classifier(path)
    return path


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


def inspect_json(*arguments: object) -> dict[str, Any]:
    result = inspect(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.output))


def test_json_of_a_run(run: RunDirectory) -> None:
    summary = inspect_json(run.root)
    assert summary["bits"] == "w4a8"
    assert summary["model"]["name"] == "tiny_colours"
    assert summary["preprocessing"]["input_size"] == [3, SIZE, SIZE]
    assert summary["stages"]["calibrate"] == {"state": "done", "seconds": 12.5, "details": {}}
    assert summary["exports"] == [
        {
            "target": "ort-cpu",
            "path": ONNX_PATH,
            "bytes": run.path(ONNX_PATH).stat().st_size,
            "finished": True,
        }
    ]
    assert {file["path"] for file in summary["files"]} == {
        ONNX_PATH,
        "quantization.json",
        "quantized.safetensors",
    }
    assert summary["verification"] is None


def test_tables_of_a_run(run: RunDirectory) -> None:
    output = inspect(run.root).output
    for word in ("tiny_colours", "w4a8", "quick", "12.5", ONNX_PATH, "activation", "0.002"):
        assert word in output


def test_estimate_of_a_run(run: RunDirectory) -> None:
    assert inspect_json(run.root)["estimate"] is None
    assert "none was made" in inspect(run.root).output
    reference = np.eye(4, 3) * 9
    estimate = estimate_from_logits(
        reference, -reference, source="mimiq", blocks={"blocks.7": 12.34, "blocks.8": None}, seed=0
    )
    run.write_json(ESTIMATE_PATH, estimate.model_dump(mode="json"))
    assert inspect_json(run.root)["estimate"] == estimate.model_dump(mode="json")
    output = " ".join(inspect(run.root).output.split())
    assert f"keeps about {100 * estimate.accuracy_kept:.0f} %" in output
    for word in ("4 held-out images (mimiq)", "no photograph was seen", "blocks.7", "12.3"):
        assert word in output
    run.path(ESTIMATE_PATH).write_text("{}")
    assert inspect(run.root).exit_code == 2
    verified = inspect(run.root, "--verify")
    assert "estimate.json changed" in " ".join(verified.output.split()), "and not a fault of JSON"


def test_quantizers_are_grouped_by_kind_and_bits() -> None:
    groups = [
        (g.kind, g.bits, g.quantizers, g.with_zero_point, g.smallest_scale, g.largest_scale)
        for g in summarise_table(make_table())
    ]
    assert groups == [
        ("weight", 4, 2, 0, 0.002, 0.75),
        ("weight", 8, 1, 0, 0.01, 0.01),
        ("activation", 8, 2, 1, 0.03, 0.5),
    ]


def test_coverage_counts_products_and_names_those_left_out(run: RunDirectory) -> None:
    products = [
        {"name": "embed", "kind": "convolution", "quantizers": [None, "embed.weight"]}
        | {"reason": "the recipe leaves its input in floating point"},
        {"name": "a", "kind": "linear", "quantizers": ["a.input", "a.weight"], "reason": None},
        {"name": "b", "kind": "linear", "quantizers": ["b.input", "b.weight"], "reason": None},
    ]
    table = make_table().model_dump(mode="json") | {"products": products}
    run.write_json(run.TABLE, table)
    assert inspect_json(run.root)["coverage"] == [
        {"kind": "convolution", "products": 1, "quantized": 0, "others": products[:1]},
        {"kind": "linear", "products": 2, "quantized": 2, "others": []},
    ]
    output = " ".join(inspect(run.root).output.split())
    assert "embed: the recipe leaves" in output
    assert "│ linear │ 2 │ 2 │ - │" in output


def test_a_table_without_products_has_no_coverage(run: RunDirectory) -> None:
    table = json.loads(run.path(run.TABLE).read_text())
    del table["products"]
    run.write_json(run.TABLE, table)
    assert inspect_json(run.root)["coverage"] is None
    assert "Products" not in inspect(run.root).output


def test_an_unfinished_run_has_no_quantizers(run: RunDirectory) -> None:
    files = {path: run.manifest.files[path] for path in [run.QUANTIZED]}
    unfinished = RunDirectory(run.root, run.manifest.model_copy(update={"files": files}))
    summary = summarise_run(unfinished)
    assert summary.quantizers is None
    assert summary.coverage is None
    assert [export.finished for export in summary.exports] == [False]
    assert [file.path for file in summary.files if not file.recorded] == [
        ONNX_PATH,
        "quantization.json",
    ]


def test_a_recipe_without_bits_is_one_sentence(run: RunDirectory) -> None:
    manifest = json.loads(run.path(run.MANIFEST).read_text())
    manifest["recipe"] = {}
    run.path(run.MANIFEST).write_text(json.dumps(manifest))
    result = inspect(run.root)
    assert result.exit_code == 2
    assert "recipe without bit widths" in result.output


def test_verify_an_intact_run(run: RunDirectory) -> None:
    run.path("notes.txt").write_text("mine")
    summary = inspect_json(run.root, "--verify")
    assert summary["verification"] == {
        "checked": 3,
        "missing": [],
        "changed": [],
        "unrecorded": ["notes.txt"],
    }
    output = inspect(run.root, "--verify").output
    assert output.count("│ intact ") == 3
    assert "not recorded" in output


def test_verify_names_what_is_damaged(run: RunDirectory) -> None:
    run.path(ONNX_PATH).unlink()
    # Of the same length: only the digest can tell. The table of quantizers is not read then.
    table = run.path(run.TABLE)
    table.write_bytes(b"?" * table.stat().st_size)
    result = inspect(run.root, "--verify")
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == (
        f"Error: {run.root} is damaged: {ONNX_PATH} missing and quantization.json changed since "
        "recorded; make them again."
    )
    assert inspect(run.root).output.startswith(f"Error: {table} is damaged")


def test_verify_calls_back_for_each_file(run: RunDirectory) -> None:
    seen: list[str] = []
    verify_run(run, on_file=seen.append)
    assert sorted(seen) == [ONNX_PATH, "quantization.json", "quantized.safetensors"]


def test_a_damaged_table_is_an_error_without_verify(run: RunDirectory) -> None:
    run.path(run.TABLE).write_text("{}")
    with pytest.raises(RunDirectoryError, match=r"quantization\.json is damaged"):
        summarise_run(run)


def test_json_of_an_onnx_file(onnx_file: Path) -> None:
    summary = inspect_json(onnx_file)
    assert summary["opsets"] == {"ai.onnx": 20}
    assert summary["ir_version"] == 9
    assert summary["producer"] == "tests 1"
    assert summary["bytes"] == onnx_file.stat().st_size
    assert summary["inputs"] == [{"name": "images", "type": "float", "shape": ["N", 3, SIZE, SIZE]}]
    assert summary["outputs"] == [{"name": "logits", "type": "float", "shape": ["N", 3]}]
    assert summary["operators"]["DequantizeLinear"] == 2
    assert summary["metadata"] == {"mimiq.bits": "w4a8"}
    assert summary["quantized_share"] == 0.5


def test_quantized_operators_have_both_operands_dequantized(onnx_file: Path) -> None:
    rows = {row.operator: row for row in summarise_onnx(onnx_file).quantization}
    assert set(rows) == {"MatMul", "Gemm"}
    assert (rows["MatMul"].total, rows["MatMul"].quantized) == (1, 1)
    assert (rows["Gemm"].quantized, rows["Gemm"].others) == (0, ["head/Gemm"])


def test_one_dequantized_operand_is_not_enough(onnx_file: Path) -> None:
    import onnx

    model = onnx.load(onnx_file)
    matmul = next(node for node in model.graph.node if node.op_type == "MatMul")
    matmul.input[0] = "flat"  # past the quantizer of the activation
    onnx.save(model, onnx_file)
    rows = {row.operator: row for row in summarise_onnx(onnx_file).quantization}
    assert rows["MatMul"].others == ["body/MatMul"]


def test_nodes_of_subgraphs_are_counted(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    value = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "branch", [], [value])
    condition = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    output = helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph([condition], "main", [], [output])
    onnx.save(helper.make_model(graph), tmp_path / "if.onnx")
    summary = summarise_onnx(tmp_path / "if.onnx")
    assert summary.operators == {"Relu": 2, "If": 1}
    assert summary.quantized_share is None
    assert summary.outputs[0].shape is None
    assert "nothing to quantize" in inspect(tmp_path / "if.onnx").output


def test_tables_of_an_onnx_file(onnx_file: Path) -> None:
    output = inspect(onnx_file).output
    for words in ("images: float (N, 3, 8, 8)", "50.0% of the operators", "head/Gemm", "w4a8"):
        assert words in output


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256))], ids=repr)
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    result = inspect(path)
    assert result.exit_code == 2
    assert result.output == (
        f"Error: {path} is not an ONNX model, or is damaged; export it again.\n"
    )


def test_half_a_file_is_an_error(onnx_file: Path) -> None:
    content = onnx_file.read_bytes()
    onnx_file.write_bytes(content[: len(content) // 2])
    with pytest.raises(OnnxModelError, match="is damaged"):
        summarise_onnx(onnx_file)


def test_a_damaged_text_is_an_error(onnx_file: Path) -> None:
    content = onnx_file.read_bytes()
    assert content.count(b"mimiq.bits") == 1
    onnx_file.write_bytes(content.replace(b"mimiq.bits", b"mimiq\xffbits"))
    with pytest.raises(OnnxModelError, match="is damaged"):
        summarise_onnx(onnx_file)


def test_without_onnx_the_extra_is_named(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_onnx(name: str, *arguments: Any) -> Any:
        if name == "onnx":
            raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return real_import(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    with pytest.raises(MissingDependencyError, match=r"mimiq-deploy\[export\]"):
        summarise_onnx(onnx_file)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    result = inspect(tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "nowhere does not exist" in result.output


def test_verify_is_for_runs(onnx_file: Path) -> None:
    result = inspect(onnx_file, "--verify")
    assert result.exit_code == 2
    assert "give the run" in result.output


def test_a_path_is_no_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path / "[bold]run", exported=False)
    # A path that is too long for its line goes on in the next one.
    assert "[bold]run" in "".join(inspect(run.root).output.split())
