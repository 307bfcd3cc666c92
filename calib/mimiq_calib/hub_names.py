"""Models that are named by their place on a hub, such as ``hf-hub:timm/vit_tiny_patch16_224``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.constants import ENDPOINT
from timm.models import get_pretrained_cfg, is_model, load_model_config_from_hf

from mimiq_calib.hub_connection import ask_hub
from mimiq_runtime.errors import CheckpointError

__all__ = ["NamedModel", "describe_download", "is_on_hub", "look_up"]

PREFIXES = ("hf-hub:", "hf_hub:")


@dataclass(frozen=True)
class NamedModel:
    """What a name stands for; a run records this, so that nothing asks the hub again.

    Attributes:
        architecture: timm's name of the model.
        arguments: Constructor arguments that the hub's configuration has.
        labels: Name of each class, where the configuration has them.
    """

    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    labels: list[str] | None = None


def is_on_hub(name: str) -> bool:
    """Whether a name is a place on a hub, which is asked for what the model is."""
    return name.startswith(PREFIXES)


def describe_download(name: str, *, weights: bool) -> str | None:
    """What a model's name makes timm ask the network for, in a sentence; None for nothing.

    Args:
        name: timm's name of a model, or a hub's.
        weights: Whether its pretrained weights are asked for, too.
    """
    hub = urlsplit(ENDPOINT).hostname or ENDPOINT
    if is_on_hub(name):
        what = "configuration and weights" if weights else "configuration"
        return (
            f"From the hub's cache, or else from {hub}: {what} of {name}; timm's name of the "
            "architecture and --checkpoint FILE avoid this."
        )
    config = get_pretrained_cfg(name) if weights and is_model(name) else None
    # timm goes to the hub first, where it knows the model's place there.
    if config is not None and config.hf_hub_id:
        place = f"{hub} ({config.hf_hub_id})"
    elif config is not None and config.url:
        place = urlsplit(config.url).hostname or config.url
    else:
        return None
    return (
        f"From timm's cache, or else from {place}: pretrained weights of {name}; "
        "--checkpoint FILE avoids this."
    )


def look_up(name: str) -> NamedModel:
    """The architecture that a name stands for; a plain name stands for itself.

    Args:
        name: timm's name of a model, or ``hf-hub:OWNER/MODEL``, with ``@REVISION`` or without: then
            the configuration is read from the hub's cache or over the network.

    Raises:
        CheckpointError: The hub's configuration cannot be had.
    """
    if not is_on_hub(name):
        return NamedModel(name)
    try:
        place = name.partition(":")[2]
        with ask_hub():
            config, architecture, arguments = load_model_config_from_hf(place)
        labels = _labels_of(config)
    # Whatever the hub, the cache or the network raises means the same to the user.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"The configuration of {name} could not be had ({reason:.200}); check the name and the "
            "network, or give timm's name of the architecture and the weights with --checkpoint."
        ) from error
    return NamedModel(architecture, dict(arguments), labels)


def _labels_of(config: dict[str, Any]) -> list[str] | None:
    """The configuration's names of the classes; it may describe them at more length, too."""
    names = config.get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    described = config.get("label_descriptions")
    if isinstance(described, dict):
        return [str(described.get(name, name)) for name in names]
    return names
