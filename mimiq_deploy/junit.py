"""Gates as JUnit XML, the form that CI servers read: one suite an engine, one case a gate."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from mimiq_deploy.gate_sentences import describe_gate
from mimiq_runtime.atomic import write_bytes
from mimiq_runtime.errors import InvalidInputError, MimiqDeployError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mimiq_deploy.validation import EngineReport, ValidationReport
    from mimiq_runtime.gates import GateLimits

__all__ = ["check_there_are_gates", "junit_of", "junit_of_error", "write_junit"]

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


def write_junit(report: ValidationReport | MimiqDeployError, path: Path) -> None:
    """Write :func:`junit_of`, or :func:`junit_of_error`, atomically.

    Raises:
        InvalidInputError: The file cannot be written.
    """
    if isinstance(report, MimiqDeployError):
        write_bytes(path, junit_of_error(report))
    else:
        write_bytes(path, junit_of(report))


def junit_of_error(error: MimiqDeployError) -> bytes:
    """A validation that came to no verdict, as JUnit XML: one case, in error.

    A CI server that finds no report tells its user nothing, or shows the last one.
    """
    counts = {"tests": "1", "failures": "0", "errors": "1"}
    name = "mimiq-deploy.validate"
    root = ElementTree.Element("testsuites", {"name": "mimiq-deploy validate", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts, "skipped": "0"})
    case = ElementTree.SubElement(suite, "testcase", classname=name, name="validation")
    sentence = _clean(str(error))
    kind = type(error).__name__
    ElementTree.SubElement(case, "error", message=sentence, type=kind).text = sentence
    return _document(root)


def junit_of(report: ValidationReport) -> bytes:
    """The gates of a validation as JUnit XML, UTF-8.

    A suite has the engine's versions as properties. A case that failed says what was expected and
    what came, and where the engine and its reference part, if that was looked for.
    """
    gates = [gate for engine in report.engines.values() for gate in engine.gates]
    root = ElementTree.Element(
        "testsuites",
        name="mimiq-deploy validate",
        tests=str(len(gates)),
        failures=str(sum(not gate.passed for gate in gates)),
        errors="0",
    )
    for name, engine in report.engines.items():
        root.append(_suite(name, engine))
    return _document(root)


def _document(root: ElementTree.Element) -> bytes:
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _suite(name: str, engine: EngineReport) -> ElementTree.Element:
    failures = sum(not gate.passed for gate in engine.gates)
    suite = ElementTree.Element(
        "testsuite",
        name=_clean(f"mimiq-deploy.validate.{name}"),
        tests=str(len(engine.gates)),
        failures=str(failures),
        errors="0",
        skipped="0",
    )
    properties = ElementTree.SubElement(suite, "properties")
    session = engine.session
    facts = {"device": session.device, "provider": session.provider, **session.libraries}
    for key, value in {**facts, "model_sha256": session.model_sha256}.items():
        ElementTree.SubElement(properties, "property", name=_clean(key), value=_clean(value))
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
