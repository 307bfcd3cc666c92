"""The table of docs/lint-rules.md; ``python -m mimiq_export.lint.rule_table`` prints it."""

from __future__ import annotations

from mimiq_export.lint.linters import LINTERS

__all__ = ["rule_table"]


def rule_table() -> str:
    """All rules as Markdown, one row each: name, severity, targets, demand, remedy, source."""
    targets: dict[str, list[str]] = {}
    for target, rules in LINTERS.items():
        for rule in rules:
            targets.setdefault(rule.name, []).append(target)
    rules_by_name = {rule.name: rule for rules in LINTERS.values() for rule in rules}
    lines = ["| rule | severity | targets | what must hold | remedy | source |", "|" + "---|" * 6]
    for name, rule in rules_by_name.items():
        where = "all" if len(targets[name]) == len(LINTERS) else ", ".join(targets[name])
        cells = (f"`{name}`", rule.severity, where, rule.demands, rule.remedy, rule.source)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(rule_table())
