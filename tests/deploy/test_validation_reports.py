"""JUnit XML and Markdown of a validation and a benchmark that were made by hand."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from _helpers.report_runs import bench, make_bare_run
from click.testing import CliRunner

from mimiq_deploy.cli import cli
from mimiq_deploy.comparison_data import DataKind, DataRecord
from mimiq_deploy.junit import junit_of, junit_of_benchmark, write_junit
from mimiq_deploy.step_summary import markdown_of, markdown_of_benchmark, write_step_summary
from mimiq_deploy.validation import Accuracy, EngineReport, ValidationReport
from mimiq_runtime.benchmark_compare import compare_benchmarks
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.gates import Gate, GateResult
from mimiq_runtime.layer_parity import FirstFault, LayerReport, LayerRow
from mimiq_runtime.parity import LogitParity
from mimiq_runtime.session import SessionInfo

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_runtime.benchmark import BenchmarkReport

PARITY = LogitParity(
    n=4,
    agreement=0.75,
    top5_overlap=0.9,
    sqnr_db=31.25,
    kl=0.001,
    max_abs_error=0.5,
    mean_abs_error=0.1,
)
SAME = PARITY.model_copy(update={"sqnr_db": None, "kl": 0.0, "max_abs_error": 0.0})


def gate(name: Gate, limit: float, measured: float | None, passed: bool) -> GateResult:
    return GateResult(name=name, limit=limit, measured=measured, passed=passed, against="torch")


def engine(name: str, *gates: GateResult, layers: LayerReport | None = None) -> EngineReport:
    return EngineReport(
        session=SessionInfo(
            engine=name,
            device="cpu <1> & \x1b|more",
            provider="provider",
            libraries={"library": "1.2"},
            threads=1,
            model="model.onnx",
            model_sha256="0" * 64,
            input_shape=(None, 3, 8, 8),
        ),
        recorded=SAME,
        parity={"full-precision": PARITY},
        accuracy=Accuracy(top1=0.5, top5=1.0),
        gates=list(gates),
        layers=layers,
    )


LAYERS = LayerReport(
    against="fake-quantized",
    images=4,
    stepwise=True,
    undisturbed=1.0,
    threshold_db=45,
    rows=[LayerRow(name="a", made_by="b", n=3, sqnr_db=9.0, equal=0.5, scale_ratio=1.0)],
    not_compared=[],
    first=FirstFault(tensor="a", layer="blocks.0", reason="it is <wrong>"),
)
REPORT = ValidationReport(
    machine={},
    pictures=None,
    data=DataRecord(kind=DataKind.PHOTOGRAPHS, origin="a|b <i>", n=4, labelled=True),
    references={"full-precision": Accuracy(top1=0.75, top5=1.0)},
    reference_agreement={},
    skipped={},
    engines={
        "one": engine(
            "one",
            gate(Gate.MIN_AGREEMENT, 0.98, 0.75, False),
            gate(Gate.MIN_SQNR, 20, None, True),
            layers=LAYERS,
        ),
        "two": engine(
            "two", gate(Gate.MAX_DROP, 1, 25.0, False), gate(Gate.MAX_KL, 1, None, False)
        ),
    },
    passed=False,
)


# What Jenkins' junit-10.xsd and pytest's writer agree on: attributes, which of them must be
# there, and the children in their order.
STRUCTURE: dict[str, tuple[set[str], set[str], list[str]]] = {
    "testsuites": ({"name"}, {"tests", "failures", "errors"}, ["testsuite"]),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"skipped"},
        ["properties", "testcase"],
    ),
    "properties": (set(), set(), ["property"]),
    "property": ({"name", "value"}, set(), []),
    "testcase": ({"name"}, {"classname"}, ["error", "failure"]),
    "error": (set(), {"message", "type"}, []),
    "failure": (set(), {"message", "type"}, []),
}


def check_structure(element: ElementTree.Element) -> None:
    required, optional, children = STRUCTURE[element.tag]
    assert required <= set(element.attrib) <= required | optional, element.tag
    order = [children.index(child.tag) for child in element]
    assert order == sorted(order)
    if element.tag in ("testsuites", "testsuite"):
        assert int(element.attrib["tests"]) == len(element.findall(".//testcase"))
        assert int(element.attrib["failures"]) == len(element.findall(".//failure"))
        assert int(element.attrib["errors"]) == len(element.findall(".//error"))
    for child in element:
        check_structure(child)


def test_the_xml_has_the_structure_that_ci_servers_read() -> None:
    data = junit_of(REPORT)
    assert data.startswith(b"<?xml version='1.0' encoding='utf-8'?>\n")
    root = ElementTree.fromstring(data)
    assert root.tag == "testsuites"
    check_structure(root)
    assert [suite.get("name") for suite in root] == [
        "mimiq-deploy.validate.one",
        "mimiq-deploy.validate.two",
    ]
    # A control character has no place in XML 1.0.
    assert root.find(".//property[@name='device']").get("value") == "cpu <1> & ?|more"  # type: ignore[union-attr]


def test_a_failure_says_what_was_expected_what_came_and_where_to_look() -> None:
    root = ElementTree.fromstring(junit_of(REPORT))
    agreement, drop, divergence = root.findall(".//failure")
    assert agreement.get("message") == (
        "min_agreement against torch: expected at least 0.98, got 0.75"
    )
    assert "Look at blocks.0: it is <wrong>." in (agreement.text or "")
    assert drop.text == "max_drop against torch: expected at most 1 points, got 25 points"
    assert "got no finite value" in (divergence.text or "")


def test_a_validation_without_a_verdict_is_an_error_in_the_xml(tmp_path: Path) -> None:
    """By the command: nothing was exported, so that no gate could be looked at."""
    path = tmp_path / "parity.xml"
    path.write_text("of yesterday")
    run = make_bare_run(tmp_path / "run").root
    arguments = ["validate", str(run), "--engine", "openvino", "--min-agreement", "0.9"]
    result = CliRunner().invoke(cli, [*arguments, "--junit", str(path)])
    assert result.exit_code == 2, result.output
    root = ElementTree.fromstring(path.read_bytes())
    check_structure(root)
    (error,) = root.findall(".//error")
    assert "mimiq-deploy export" in (error.get("message") or "")
    assert root.get("errors") == "1"


def test_the_markdown_holds_gates_parity_accuracy_and_layers() -> None:
    lines = markdown_of(REPORT).splitlines()
    assert lines[0] == "## mimiq-deploy validate: FAILED"
    assert "On 4 photographs (a\\|b &lt;i>)." in lines
    assert "| one | recorded answers | 4 | 75.00 | 90.00 | identical | 0.00e+00 |" in lines
    assert "| two | full-precision | 4 | 75.00 | 90.00 | 31.2 | 1.00e-03 |" in lines
    assert "| full-precision | 75.00 | 100.00 |" in lines
    assert (
        "| one | min_sqnr against torch: expected at least 20 dB, got equal logits | passed |"
        in (lines)
    )
    assert any("**FAILED**" in line for line in lines)
    assert "Look at blocks.0: it is &lt;wrong>." in lines


def test_githubs_summary_is_appended_to_and_any_other_file_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, other = tmp_path / "shared.md", tmp_path / "other.md"
    for path in (shared, other):
        path.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(shared))
    monkeypatch.chdir(tmp_path)
    write_step_summary(REPORT, type(shared)("shared.md"))
    write_step_summary(REPORT, other)
    assert shared.read_text() == "before\n" + markdown_of(REPORT)
    assert other.read_text() == markdown_of(REPORT)
    assert sorted(os.listdir(tmp_path)) == ["other.md", "shared.md"]


def test_a_file_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "report"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place))
    for write in (write_junit, write_step_summary):
        with pytest.raises(InvalidInputError, match="Cannot"):
            write(REPORT, place)


def slower_at_batch_8() -> BenchmarkReport:
    """Twice as fast before; now a quarter of that is lost at batch 8, and a tenth may be."""
    older = bench(2.0)
    rows = [
        row.model_copy(
            update={"speedup": row.speedup.model_copy(update={"median": 1.5, "low": 1.4})}
        )
        if row.batch_size == 8 and row.session != older.baseline
        else row
        for row in older.rows
    ]
    session = REPORT.engines["one"].session
    newer = older.model_copy(update={"rows": rows, "sessions": {"w4a8 in ort-cpu": session}})
    # Its names are those that are measured.
    measured = newer.model_copy(
        update={"sessions": dict.fromkeys(("fp32 in ort-cpu", "w4a8 in ort-cpu"), session)}
    )
    comparison = compare_benchmarks(measured, older, against="a|b.json", tolerance=0.1)
    return measured.model_copy(update={"comparison": comparison})


def test_a_benchmark_has_a_case_for_each_row_of_the_older_one() -> None:
    root = ElementTree.fromstring(junit_of_benchmark(slower_at_batch_8()))
    check_structure(root)
    (suite,) = root
    assert suite.get("name") == "mimiq-deploy.bench.w4a8 in ort-cpu"
    assert suite.find(".//property[@name='library']") is not None
    failed = {case.get("name"): case.find("failure") for case in suite.findall("testcase")}
    assert [name for name, failure in failed.items() if failure is not None] == [
        "batch 8, 1 threads",
        "batch 8, 2 threads",
    ]
    assert len(failed) == 4
    message = failed["batch 8, 1 threads"].get("message")  # type: ignore[union-attr]
    assert message == (
        "batch 8, 1 threads: expected at least 1.8 times as fast as the baseline (2 before), "
        "got 1.5 (-25.0 %)"
    )


def test_the_markdown_of_a_benchmark() -> None:
    lines = markdown_of_benchmark(slower_at_batch_8()).splitlines()
    assert lines[0] == "## mimiq-deploy bench: REGRESSED"
    assert "Compared with a\\|b.json." in lines
    assert sum(line.endswith("| **REGRESSED** |") for line in lines) == 2
    assert sum(line.endswith("| kept |") for line in lines) == 2
    assert any(
        line.startswith("| 8 | 2 | w4a8 in ort-cpu | ") and "| 1.50 | 1.40 to" in line
        for line in lines
    )
    plain = markdown_of_benchmark(bench(2.0))
    assert plain.startswith("## mimiq-deploy bench: measured\n")
    assert "Comparison" not in plain


def test_a_benchmark_without_a_verdict_is_an_error_in_the_xml(tmp_path: Path) -> None:
    path = tmp_path / "bench.xml"
    run = make_bare_run(tmp_path / "run").root
    arguments = ["bench", str(run), "--compare", str(tmp_path / "nowhere.json")]
    result = CliRunner().invoke(cli, [*arguments, "--junit", str(path)])
    assert result.exit_code == 2, result.output
    root = ElementTree.fromstring(path.read_bytes())
    check_structure(root)
    assert root.get("name") == "mimiq-deploy bench"
    assert root.get("errors") == "1"


def test_a_benchmark_that_is_no_gate_has_no_xml(tmp_path: Path) -> None:
    path = tmp_path / "bench.xml"
    result = CliRunner().invoke(cli, ["bench", "run", "--junit", str(path)])
    assert result.exit_code == 2
    assert "--junit counts only with --compare" in result.output
    assert not path.exists()
