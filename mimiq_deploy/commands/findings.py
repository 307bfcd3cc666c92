"""How the commands print what a linter found."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from mimiq_deploy.commands.options import output_console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimiq_export.lint.finding import Finding

__all__ = ["print_findings"]

_SHOWN = 5


def print_findings(findings: Sequence[Finding], target: str, *, all_nodes: bool = False) -> None:
    """Print findings by rule: the nodes with their problems, and the remedy once.

    Args:
        findings: What the linter found.
        target: The target whose rules they are.
        all_nodes: Print every node, else the first five of a rule.
    """
    console = output_console()
    errors = sum(found.severity == "error" for found in findings)
    console.print(f"Lint for {target}: {errors} errors, {len(findings) - errors} warnings")
    by_rule: dict[str, list[Finding]] = defaultdict(list)
    for found in findings:
        by_rule[found.rule].append(found)
    for rule, group in by_rule.items():
        console.print(f"  {group[0].severity} {rule}: {group[0].remedy}")
        shown = group if all_nodes else group[:_SHOWN]
        for found in shown:
            console.print(f"    {found.node}: {found.problem}")
        if len(shown) < len(group):
            console.print(f"    and {len(group) - len(shown)} more")
