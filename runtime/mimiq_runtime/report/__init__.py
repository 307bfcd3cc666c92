"""One self-contained HTML page about one run or several (docs/report.md)."""
