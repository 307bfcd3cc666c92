"""The command line and the wiring of mimiq-deploy; the work is done in the other three packages."""

from __future__ import annotations

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> str:
    # importlib.metadata takes longer to import than all else that `--help` needs.
    if name == "__version__":
        from importlib.metadata import version

        return version("mimiq-deploy")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
