"""``mimiq-deploy inspect --lint``."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from _helpers.runs import make_run, write_classifier
from click.testing import CliRunner, Result

from mimiq_deploy.cli import cli

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    path = tmp_path / "colours.onnx"
    write_classifier(path)
    return path


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


def with_zero_point(path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "zero")
    zero.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(zero) + 3, "zero"))
    onnx.save(model, path)


def test_warnings_are_printed_and_the_exit_code_is_0(onnx_file: Path) -> None:
    result = inspect(onnx_file, "--lint", "ort-cpu")
    assert result.exit_code == 0
    assert "Lint for ort-cpu: 0 errors, 1 warnings" in result.output
    assert "warning layout-before-product: Transpose weights before" in result.output
    assert "Transpose that makes transposed: it stands between" in result.output


def test_strictness_makes_warnings_exit_code_1(onnx_file: Path) -> None:
    result = inspect(onnx_file, "--lint", "ort-cpu", "--strict")
    assert result.exit_code == 1
    assert "Lint for ort-cpu: 0 errors, 1 warnings" in result.output
    assert inspect(onnx_file, "--lint", "openvino", "--strict").exit_code == 0


def test_strictness_without_a_linter_is_a_mistake(onnx_file: Path) -> None:
    result = inspect(onnx_file, "--strict")
    assert result.exit_code == 2
    assert "give --lint and a target" in result.output


def test_errors_are_exit_code_1(onnx_file: Path) -> None:
    with_zero_point(onnx_file)
    result = inspect(onnx_file, "--lint", "trt")
    assert result.exit_code == 1
    assert "error zero-point: Quantize symmetrically" in result.output
    assert "QuantizeLinear that makes codes: its zero point is 3" in result.output


def test_json_has_every_finding(onnx_file: Path) -> None:
    with_zero_point(onnx_file)
    result = inspect(onnx_file, "--lint", "trt", "--json")
    assert result.exit_code == 1
    report = json.loads(result.output)
    assert (report["path"], report["target"]) == (str(onnx_file), "trt")
    zero_points = [row for row in report["findings"] if row["rule"] == "zero-point"]
    assert len(zero_points) == 3
    assert set(zero_points[0]) == {"rule", "severity", "node", "problem", "remedy"}


def test_mistakes_are_exit_code_2(onnx_file: Path, tmp_path: Path) -> None:
    result = inspect(onnx_file, "--lint", "tpu")
    assert result.exit_code == 2
    assert "Expected one of the targets trt, ort-cpu" in result.output
    run = make_run(tmp_path / "run")
    result = inspect(run.root, "--lint", "trt")
    assert result.exit_code == 2
    assert "--lint looks at an ONNX file" in result.output
    onnx_file.write_bytes(b"broken")
    assert inspect(onnx_file, "--lint", "trt").exit_code == 2


def test_no_torch_is_needed(onnx_file: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mimiq_export.lint.linters import lint_file\n"
        "from pathlib import Path\n"
        f"print(len(lint_file(Path({str(onnx_file)!r}), 'ort-cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
