"""YAML that a user wrote, read safely: no objects, no aliases, no repeated keys, not too much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from mimiq_runtime.bounded_file import read_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LARGEST_FILE", "YAML_ERRORS", "parse_yaml", "read_small_file"]

LARGEST_FILE = 64 * 1024
"""A file of settings has a few dozen lines; anything larger is a mistake or an attack."""

# PyYAML has no errors of its own for what it reads as dates, numbers or explicit types.
YAML_ERRORS = (yaml.YAMLError, AttributeError, LookupError, RecursionError, ValueError)
"""What reading YAML can raise."""


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases (they can grow without bound) and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not accepted")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {str(key) for key in keys if keys.count(key) > 1}
        if repeated:
            raise yaml.YAMLError(f"the key {', '.join(sorted(repeated))} is there more than once")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """What a text says.

    Raises:
        YAML_ERRORS: It is not YAML, or has aliases or repeated keys.
    """
    return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader, and stricter


def read_small_file(path: Path) -> str:
    """The text of a file of settings.

    Raises:
        ValueError: It is larger than :data:`LARGEST_FILE`, is no regular file, or is not UTF-8.
    """
    try:
        return read_text(path, LARGEST_FILE)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"the file cannot be read as text: {reason}") from error
