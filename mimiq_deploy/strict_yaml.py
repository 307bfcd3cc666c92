"""YAML that a user wrote, read safely: no objects, aliases or repeated keys, not too much."""

from __future__ import annotations

import re
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

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        if isinstance(text, str) and _SURROGATE.search(text):
            raise yaml.YAMLError("a text has half of a character, a lone surrogate")
        return text

    def construct_yaml_int(self, node: Any) -> int:
        # Digits to the base of 16, 8 or 2 are not counted by Python, and cannot be printed.
        value = super().construct_yaml_int(node)
        if abs(value) >= 2**64:
            raise yaml.YAMLError("a number is beyond 64 bits")
        return int(value)


_SURROGATE = re.compile("[\ud800-\udfff]")
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)
# YAML 1.1, and so PyYAML, takes 1e-3 for a text; 1.2, JSON and everybody else for a number.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str) -> Any:
    """What a text says.

    Raises:
        YAML_ERRORS: It is not YAML, or has aliases, repeated keys, integers beyond 64 bits or
            texts that cannot be encoded.
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
