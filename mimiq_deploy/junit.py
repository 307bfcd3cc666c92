"""Gates as JUnit XML, which CI servers read: one suite an engine, one case a gate or a speed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from mimiq_deploy.gate_sentences import describe_change, describe_gate
from mimiq_runtime.atomic import write_bytes
from mimiq_runtime.benchmark import BenchmarkReport
from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mimiq_deploy.validation import EngineReport, ValidationReport
    from mimiq_runtime.benchmark import BenchmarkChange
    from mimiq_runtime.errors import MimiqDeployError
    from mimiq_runtime.gates import GateLimits
    from mimiq_runtime.session import SessionInfo

__all__ = [
    "check_there_are_gates",
    "junit_of",
    "junit_of_benchmark",
    "junit_of_error",
    "write_junit",
    "write_junit_of_error",
]

# XML 1.0, production 2: everything else cannot be written, not even as a reference.
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def check_there_are_gates(limits: Iterable[GateLimits]) -> None:
    """Refuse a report that could only be empty, before any work.

    Raises:
        InvalidInputError: No limit is set.
    """
    if not any(each.given for each in limits):
        raise InvalidInputError(
            "A JUnit report lists gates, and none is set; give one, such as --min-agreement 0.98, "
            "or a --gates file."
        )


def write_junit(report: ValidationReport | BenchmarkReport, path: Path) -> None:
    """Write :func:`junit_of` or :func:`junit_of_benchmark`, atomically.

    Raises:
        InvalidInputError: The file cannot be written.
    """
    if isinstance(report, BenchmarkReport):
        write_bytes(path, junit_of_benchmark(report))
    else:
        write_bytes(path, junit_of(report))


def write_junit_of_error(error: MimiqDeployError, path: Path, *, command: str) -> None:
    """Write :func:`junit_of_error`, atomically.

    Raises:
        InvalidInputError: The file cannot be written.
    """
    write_bytes(path, junit_of_error(error, command=command))


def junit_of_error(error: MimiqDeployError, *, command: str) -> bytes:
    """A gate that came to no verdict, as JUnit XML: one case, in error.

    A CI server that finds no report tells its user nothing, or shows the last one.
    """
    counts = {"tests": "1", "failures": "0", "errors": "1"}
    name = f"mimiq-deploy.{command}"
    root = ElementTree.Element("testsuites", {"name": f"mimiq-deploy {command}", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts, "skipped": "0"})
    case = ElementTree.SubElement(suite, "testcase", classname=name, name="verdict")
    sentence = _clean(str(error))
    kind = type(error).__name__
    ElementTree.SubElement(case, "error", message=sentence, type=kind).text = sentence
    return _document(root)


def junit_of_benchmark(report: BenchmarkReport) -> bytes:
    """The comparison of a benchmark with an older one as JUnit XML, UTF-8.

    A suite a session, a case a batch size and number of threads of the older one.
    """
    comparison = report.comparison
    changes = [] if comparison is None else comparison.changes
    tolerance = 0.0 if comparison is None else comparison.tolerance
    by_session: dict[str, list[BenchmarkChange]] = {}
    for change in changes:
        by_session.setdefault(change.session, []).append(change)
    root = _root("bench", len(changes), sum(change.regressed for change in changes))
    for session, own in by_session.items():
        regressed = sum(change.regressed for change in own)
        suite = _suite(f"mimiq-deploy.bench.{session}", len(own), regressed)
        if session in report.sessions:
            _add_properties(suite, report.sessions[session])
        for change in own:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=suite.attrib["name"],
                name=f"batch {change.batch_size}, {change.threads} threads",
            )
            if change.regressed:
                sentence = _clean(describe_change(change, tolerance))
                failure = ElementTree.SubElement(
                    case, "failure", message=sentence, type="regression"
                )
                failure.text = sentence
        root.append(suite)
    return _document(root)


def junit_of(report: ValidationReport) -> bytes:
    """The gates of a validation as JUnit XML, UTF-8.

    A suite has the engine's versions as properties. A case that failed says what was expected and
    what came, and where the engine and its reference part, if that was looked for.
    """
    gates = [gate for engine in report.engines.values() for gate in engine.gates]
    root = _root("validate", len(gates), sum(not gate.passed for gate in gates))
    for name, engine in report.engines.items():
        root.append(_suite_of_engine(name, engine))
    return _document(root)


def _root(command: str, tests: int, failures: int) -> ElementTree.Element:
    return ElementTree.Element(
        "testsuites",
        name=f"mimiq-deploy {command}",
        tests=str(tests),
        failures=str(failures),
        errors="0",
    )


def _document(root: ElementTree.Element) -> bytes:
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _suite(name: str, tests: int, failures: int) -> ElementTree.Element:
    return ElementTree.Element(
        "testsuite",
        name=_clean(name),
        tests=str(tests),
        failures=str(failures),
        errors="0",
        skipped="0",
    )


def _add_properties(suite: ElementTree.Element, session: SessionInfo) -> None:
    """What ran: device, provider, versions and the digest of the model."""
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"device": session.device, "provider": session.provider, **session.libraries}
    for key, value in {**facts, "model_sha256": session.model_sha256}.items():
        ElementTree.SubElement(properties, "property", name=_clean(key), value=_clean(value))


def _suite_of_engine(name: str, engine: EngineReport) -> ElementTree.Element:
    failures = sum(not gate.passed for gate in engine.gates)
    suite = _suite(f"mimiq-deploy.validate.{name}", len(engine.gates), failures)
    _add_properties(suite, engine.session)
    for gate in engine.gates:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_clean(f"mimiq-deploy.validate.{name}"), name=gate.name
        )
        if not gate.passed:
            sentence = _clean(describe_gate(gate))
            failure = ElementTree.SubElement(case, "failure", message=sentence, type=gate.name)
            failure.text = sentence if engine.layers is None else _with_layers(sentence, engine)
    return suite


def _with_layers(sentence: str, engine: EngineReport) -> str:
    parts = [] if engine.layers is None else engine.layers.sentences()
    return _clean("\n".join((sentence, *parts)))


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)
