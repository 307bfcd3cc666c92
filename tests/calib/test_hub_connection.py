"""A hub that is not there: one sentence, soon, and nothing of its library's."""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants, hf_hub_download

from mimiq_calib.hub_connection import ask_hub
from mimiq_calib.hub_names import look_up
from mimiq_calib.model_loading import create_model
from mimiq_runtime.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOON = 10.0
"""Seconds; the library alone waits for 23 a file, and looks for two of them."""


@pytest.fixture
def closed_port() -> Iterator[str]:
    """A hub's address that refuses every connection: bound, and nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed_port: str) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", closed_port)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_pretrained_weights_are_refused_in_one_sentence_and_soon(
    capfd: pytest.CaptureFixture[str],
) -> None:
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=r"127\.0\.0\.1 cannot be reached: .*refused"):
        create_model(
            "vit_tiny_patch16_224", num_classes=None, arguments={"depth": 1}, pretrained=True
        )
    assert time.monotonic() - begun < SOON
    assert capfd.readouterr() == ("", "")


def test_a_configuration_too(capfd: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=r"127\.0\.0\.1 cannot be reached: .*refused"):
        look_up("hf-hub:somebody/something")
    assert time.monotonic() - begun < SOON
    assert capfd.readouterr() == ("", "")


def test_a_name_that_cannot_be_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://name.invalid")
    with pytest.raises(CheckpointError, match=r"name\.invalid cannot be reached"):
        look_up("hf-hub:somebody/something")


def test_what_is_in_the_cache_needs_no_hub(tmp_path: Path) -> None:
    place = tmp_path / "models--somebody--something"
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "snapshots" / "abc" / "config.json").write_text("{}")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    with ask_hub():
        found = hf_hub_download("somebody/something", "config.json", cache_dir=tmp_path)
    assert found.endswith("abc/config.json")


def test_nothing_stays_changed() -> None:
    logger = logging.getLogger("huggingface_hub")
    level = logger.level

    def fail() -> None:
        with ask_hub():
            assert constants.HF_HUB_OFFLINE
            raise KeyError("of the block")

    with pytest.raises(KeyError):
        fail()
    assert (logger.level, constants.HF_HUB_OFFLINE) == (level, False)


def test_behind_a_proxy_the_library_asks_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with ask_hub():
        assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_asked_and_its_library_is_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = logging.getLogger("huggingface_hub.utils._http")
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with ask_hub():
            assert not constants.HF_HUB_OFFLINE
            library.warning("Retrying in 1s [Retry 1/5].")
    library.warning("heard")
    assert caplog.messages == ["heard"]
