"""What a rule is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from mimiq_export.lint.finding import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx_ir as ir

    from mimiq_export.lint.linted_graph import LintedGraph

__all__ = ["Fault", "Rule"]

Fault: TypeAlias = "tuple[ir.Node, str]"
"""A node, and what is wrong with it in one clause."""


@dataclass(frozen=True)
class Rule:
    """One rule of one or more engines.

    Attributes:
        name: As in findings and in docs/lint-rules.md; unique.
        severity: How bad it is to break it.
        demands: What must hold, in one sentence.
        remedy: What to do where it does not hold, in one sentence.
        source: Where the rule comes from.
        check: Finds the nodes that break it.
    """

    name: str
    severity: Severity
    demands: str
    remedy: str
    source: str
    check: Callable[[LintedGraph], Iterator[Fault]]

    def findings(self, graph: LintedGraph) -> Iterator[Finding]:
        """Every node of a graph that breaks the rule."""
        for node, problem in self.check(graph):
            yield Finding(
                rule=self.name,
                severity=self.severity,
                node=graph.name_of(node),
                problem=problem,
                remedy=self.remedy,
            )
