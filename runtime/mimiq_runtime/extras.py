"""Which optional libraries are installed, and whether they are new enough.

The bounds are those of our own distribution's metadata, so that they are written down once, in
``pyproject.toml``. Nothing is imported to find out.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata, util

from mimiq_runtime.schema import Schema

__all__ = [
    "ExtraState",
    "LibraryState",
    "Requirement",
    "State",
    "describe_extras",
    "installed_version",
    "parse_requirement",
    "satisfies",
]

DISTRIBUTION = "mimiq-deploy"

EXTRAS = ("calib", "export", "ort", "ort-gpu", "trt", "openvino", "report", "demo")
"""The extras that are reported, in this order; ``all`` is only a sum of others."""

# Vendors install these without metadata of a wheel; the module's name is that of the wheel.
_MODULES_WITHOUT_WHEEL = frozenset({"openvino", "polygraphy", "tensorrt", "torch", "torchvision"})

# The same module under names that say what it was made for; pip is asked for either.
_OTHER_WHEELS = {"tensorrt": ("tensorrt-cu13", "tensorrt-cu12")}

_REQUIREMENT = re.compile(
    r"^\s*(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*"
    r"\(?(?P<specifiers>[^;()@]*)\)?\s*(?:;(?P<marker>.*))?$"
)
_EXTRA = re.compile(r"""extra\s*==\s*['"](?P<extra>[^'"]+)['"]""")
_SPECIFIER = re.compile(r"^(?P<operator>>=|<=|==|!=|>|<)\s*(?P<version>[0-9][^*\s]*)$")
_VERSION = re.compile(r"^v?(?:[0-9]+!)?(?P<release>[0-9]+(?:\.[0-9]+)*)(?P<rest>.*)$")
_PRE_RELEASE = re.compile(r"^[._-]?(?:a|b|c|rc|alpha|beta|pre|preview|dev)[._-]?[0-9]*", re.I)


class State(StrEnum):
    """Whether a library can be used."""

    INSTALLED = "installed"
    MISSING = "missing"
    TOO_OLD = "too old"


class LibraryState(Schema):
    """One library of an extra.

    Attributes:
        name: As pip knows it.
        state: Installed, missing or too old.
        version: The installed one; ``unknown`` where the module is there without metadata, None
            when missing.
        bounds: What our metadata ask for, such as ``>=1.20``.
    """

    name: str
    state: State
    version: str | None
    bounds: str


class ExtraState(Schema):
    """One extra of mimiq-deploy.

    Attributes:
        name: Its name.
        state: Missing when any library is missing, else too old when any is.
        libraries: Its libraries, by name.
        remedy: The command that installs or updates it; None when nothing needs to be done.
    """

    name: str
    state: State
    libraries: list[LibraryState]
    remedy: str | None


@dataclass(frozen=True)
class Requirement:
    """One line of ``Requires-Dist``.

    Attributes:
        name: The library, as pip knows it.
        bounds: Its version specifiers without spaces, such as ``>=2.9,<3``; may be empty.
        extra: The extra that asks for it, or None.
    """

    name: str
    bounds: str
    extra: str | None


def describe_extras() -> list[ExtraState]:
    """The state of each of :data:`EXTRAS`; empty when mimiq-deploy itself is not installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    requirements = [requirement for line in lines if (requirement := parse_requirement(line))]
    return [
        _describe_extra(name, [item for item in requirements if item.extra == name])
        for name in EXTRAS
    ]


def installed_version(name: str) -> str | None:
    """Version of a distribution, ``unknown`` for a module without metadata, None when missing."""
    for wheel in (name, *_OTHER_WHEELS.get(name, ())):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(wheel)
    there = name in _MODULES_WITHOUT_WHEEL and util.find_spec(name) is not None
    return "unknown" if there else None


def parse_requirement(line: str) -> Requirement | None:
    """Read one line of ``Requires-Dist``; None when it is not of the usual form.

    >>> parse_requirement("torch (>=2.9,<3) ; extra == 'calib'")
    Requirement(name='torch', bounds='>=2.9,<3', extra='calib')
    """
    match = _REQUIREMENT.match(line)
    if match is None:
        return None
    extra = _EXTRA.search(match["marker"] or "")
    bounds = "".join(match["specifiers"].split())
    return Requirement(match["name"], bounds, extra["extra"] if extra else None)


def satisfies(version: str, bounds: str) -> bool:
    """Whether a version lies within bounds such as ``>=2.9,!=2.10.1``.

    Releases are compared number by number; a pre-release comes before its release, and what
    follows ``+`` is of no account. What cannot be read (``~=``, wildcards, an unknown version)
    counts as satisfied: a doctor does not guess at an illness.

    >>> satisfies("2.10.0+cu130", ">=2.9"), satisfies("2.9.0rc1", ">=2.9")
    (True, False)
    """
    got = _key(version)
    return got is None or all(_holds(got, bound) for bound in bounds.split(","))


def _holds(got: tuple[tuple[int, ...], bool], bound: str) -> bool:
    match = _SPECIFIER.match(bound)
    limit = _key(match["version"]) if match else None
    if match is None or limit is None:
        return True
    return {
        ">=": got >= limit,
        "<=": got <= limit,
        "==": got == limit,
        "!=": got != limit,
        ">": got > limit,
        "<": got < limit,
    }[match["operator"]]


def _key(version: str) -> tuple[tuple[int, ...], bool] | None:
    """What versions are ordered by: the release without trailing zeros, then whether it is final.

    Pre-releases of one release are not told apart.
    """
    match = _VERSION.match(version)
    if match is None:
        return None
    release = [int(part) for part in match["release"].split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    return tuple(release), not _PRE_RELEASE.match(match["rest"])


def _describe_extra(name: str, requirements: list[Requirement]) -> ExtraState:
    libraries = [_describe_library(requirement) for requirement in requirements]
    states = {library.state for library in libraries}
    state = next((bad for bad in (State.MISSING, State.TOO_OLD) if bad in states), State.INSTALLED)
    return ExtraState(
        name=name,
        state=state,
        libraries=libraries,
        remedy=None if state is State.INSTALLED else _remedy(name, state),
    )


def _describe_library(requirement: Requirement) -> LibraryState:
    version = installed_version(requirement.name)
    if version is None:
        state = State.MISSING
    else:
        state = State.INSTALLED if satisfies(version, requirement.bounds) else State.TOO_OLD
    return LibraryState(
        name=requirement.name, state=state, version=version, bounds=requirement.bounds
    )


def _remedy(extra: str, state: State) -> str:
    upgrade = "--upgrade " if state is State.TOO_OLD else ""
    return f"pip install {upgrade}'{DISTRIBUTION}[{extra}]'"
