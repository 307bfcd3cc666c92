"""Asking a hub: what fails is told once, and nobody waits for a hub that is not there."""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ask_hub"]

_SECONDS = 10.0
"""How long a hub may take to answer to a connection."""

_PORTS = {"http": 80, "https": 443}


@contextlib.contextmanager
def ask_hub() -> Iterator[None]:
    """Load from a hub within the block, without a word of its library.

    The library repeats what fails, and warns of each attempt, for half a minute a file. A hub that
    takes no connection is not asked at all: what is in the cache is taken, and the rest fails.

    Raises:
        ConnectionError: What was asked for is not in the cache, and the hub cannot be reached.
    """
    logger = logging.getLogger("huggingface_hub")
    level, offline = logger.level, constants.HF_HUB_OFFLINE
    reason = None if offline else _why_not_reached(constants.ENDPOINT)
    logger.setLevel(logging.CRITICAL)
    constants.HF_HUB_OFFLINE = offline or reason is not None
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if reason is None:
            raise
        raise ConnectionError(reason) from error
    finally:
        constants.HF_HUB_OFFLINE = offline
        logger.setLevel(level)


def _why_not_reached(endpoint: str) -> str | None:
    """None where the hub takes a connection; or may do so, behind a proxy that is asked instead."""
    place = urlsplit(endpoint)
    if place.hostname is None or {place.scheme, "all"} & getproxies().keys():
        return None
    try:
        port = place.port or _PORTS[place.scheme]
        socket.create_connection((place.hostname, port), timeout=_SECONDS).close()
    except OSError as error:
        return f"{place.hostname} cannot be reached: {error.strerror or error}"
    return None
