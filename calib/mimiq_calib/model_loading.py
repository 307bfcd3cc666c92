"""From a name and a checkpoint to a timm model with checked weights."""

from __future__ import annotations

import difflib
import zipfile
from typing import TYPE_CHECKING, Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_data_config
from torch import Tensor, nn

from mimiq_calib.hub_connection import ask_hub
from mimiq_calib.hub_names import look_up
from mimiq_calib.model_arguments import LARGEST_ARGUMENT, check_arguments
from mimiq_runtime.errors import CheckpointError, InvalidInputError
from mimiq_runtime.manifest import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["create_model", "load_checkpoint_file", "load_weights", "preprocessing_of"]

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
"""Under which keys training programs keep the weights in a checkpoint."""

_SIMILAR = 5
"""How many names are shown instead of one that is not there."""

_REAL = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""What weights may be stored as; other types are codes or a part of a number."""

_ARGUMENT_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def create_model(
    name: str,
    *,
    num_classes: int | None,
    arguments: Mapping[str, Any],
    pretrained: bool,
    values: int | None = None,
    check: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Create a timm model in inference mode.

    Args:
        name: timm's name, with or without a tag of pretrained weights, or a hub's.
        num_classes: Length of the logits; None for timm's default.
        arguments: Further constructor arguments.
        pretrained: Whether timm loads its own weights (from its cache, or the network).
        values: How many numbers the weights that shall be loaded have; a model that needs far
            more of them is refused before it takes memory.
        check: Called with the model as it was made; what it raises costs no download.

    Raises:
        InvalidInputError: There is no such model, or it does not take these arguments.
        CheckpointError: timm could not get its pretrained weights.
    """
    named = look_up(name)
    architecture = named.architecture
    if not timm.is_model(architecture):
        similar = _similar_names(architecture.partition(".")[0])
        hint = f"; similar names are {', '.join(similar)}" if similar else ""
        raise InvalidInputError(
            f"timm {timm.__version__} has no model named {architecture!r}{hint}; "
            "timm.list_models() has all names."
        )
    chosen = dict(arguments)
    if num_classes is not None:
        chosen["num_classes"] = num_classes
    check_arguments(name, named.arguments | chosen)
    _check_size(name, chosen, values)
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **chosen)
    # timm checks few of its arguments; a patch size of 0 is a ZeroDivisionError.
    except _ARGUMENT_ERRORS as error:
        raise InvalidInputError(
            f"timm cannot create {name} with the arguments {chosen!s:.300}: {error!s:.200}."
        ) from error
    if check is not None:
        check(model)
    if pretrained:
        model = _create_pretrained(name, chosen)
    return model.eval()


def load_checkpoint_file(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or from a torch file, without running code from it.

    Args:
        path: ``.safetensors``, or ``.pth``, ``.pt``, ``.bin``, ``.tar`` read with
            ``weights_only=True``. Known wrappings, such as ``{"model": ...}``, are opened.

    Raises:
        CheckpointError: The file is missing, is of another kind, is damaged, would have to run
            code, or holds no tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"The checkpoint {path} is not a file.")
    suffix = path.suffix.lower()
    try:
        _check_archive(path)
        if suffix == ".safetensors":
            content: Any = load_file(path)
        elif suffix in {".pth", ".pt", ".bin", ".tar"}:
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise CheckpointError(
                f"The checkpoint {path} must be .safetensors, .pth, .pt, .bin or .tar."
            )
    # torch.load has no error class of its own: a damaged file can raise nearly anything.
    except CheckpointError:
        raise
    except SafetensorError as error:
        raise CheckpointError(
            f"The checkpoint {path} is not a complete safetensors file: {error}."
        ) from error
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"The checkpoint {path} cannot be read as tensors alone ({reason:.200}); convert it "
            "to safetensors where you trust its origin."
        ) from error
    return _unwrap(path, content)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, origin: str) -> None:
    """Load a state dict that must fit exactly and be finite.

    Args:
        model: Receives the weights.
        weights: By parameter name; a common prefix of ``DataParallel`` is removed.
        origin: Where they came from, for messages.

    Raises:
        CheckpointError: Names or shapes differ, or weights are stored as other types than real
            numbers of 16 to 64 bits, or are not finite in the model's own type.
    """
    cleaned = {name.removeprefix("module."): value for name, value in weights.items()}
    expected = model.state_dict()
    missing = sorted(expected.keys() - cleaned.keys())
    unexpected = sorted(cleaned.keys() - expected.keys())
    mismatched = sorted(
        f"{name} is {tuple(cleaned[name].shape)} and should be {tuple(expected[name].shape)}"
        for name in expected.keys() & cleaned.keys()
        if cleaned[name].shape != expected[name].shape
    )
    faults = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", mismatched),
        )
        if names
    ]
    if faults:
        raise CheckpointError(
            f"The weights of {origin} do not fit the model {type(model).__name__}: "
            f"{'; '.join(faults)}. Check the model's name, --num-classes and --model-arg."
        )
    for name, value in cleaned.items():
        if expected[name].is_floating_point() and value.dtype not in _REAL:
            raise CheckpointError(
                f"The weights of {origin} have {name} as {value.dtype}; expected "
                f"{', '.join(str(kind).removeprefix('torch.') for kind in _REAL)}: save what they "
                "stand for, as real numbers."
            )
        if not torch.isfinite(value.to(expected[name].dtype)).all():
            raise CheckpointError(
                f"The weights of {origin} are not finite: {name} holds NaN or infinity."
            )
    model.load_state_dict(cleaned)


def preprocessing_of(model: nn.Module, overrides: Mapping[str, Any]) -> Preprocessing:
    """Timm's data configuration of a model as our record.

    Args:
        model: A timm model; its configuration gives the defaults.
        overrides: Fields of :class:`Preprocessing` that the user set.

    Raises:
        InvalidInputError: A field is unknown or does not fit the model's input.
    """
    from pydantic import ValidationError

    from mimiq_runtime.schema import describe_faults

    config = resolve_data_config({}, model=model, use_test_size=False)
    patch_embed: Any = getattr(model, "patch_embed", None)
    size = getattr(patch_embed, "img_size", None) or config["input_size"][1:]
    channels = getattr(model, "in_chans", config["input_size"][0])
    values = {
        "input_size": (channels, *size),
        "mean": _for_channels(config["mean"], channels),
        "std": _for_channels(config["std"], channels),
        "interpolation": config["interpolation"],
        "crop_pct": config["crop_pct"],
        "crop_mode": config["crop_mode"],
        **overrides,
    }
    try:
        preprocessing = Preprocessing.model_validate(values)
    except ValidationError as error:
        raise InvalidInputError(
            f"The preprocessing is not valid: {'; '.join(describe_faults(error))}."
        ) from error
    # With dynamic_img_size the model takes other sizes than its own.
    fixed = size if getattr(patch_embed, "strict_img_size", True) else preprocessing.input_size[1:]
    if preprocessing.input_size != (channels, *fixed):
        raise InvalidInputError(
            f"The model takes inputs of {(channels, *fixed)}, and the preprocessing has "
            f"input_size {preprocessing.input_size}: give the size to the model, as in "
            "--model-arg img_size=64."
        )
    return preprocessing


def _similar_names(name: str) -> list[str]:
    """Up to five names of timm, those that begin most like ``name`` first.

    Beginnings are compared, since timm's names are long: the whole of ``rdnet_tiny`` is more like
    ``deit_tinyy`` than the whole of ``deit_tiny_patch16_224`` is.
    """
    names = timm.list_models()
    beginnings = dict.fromkeys(known[: len(name)] for known in names)
    near = difflib.get_close_matches(name, beginnings, n=_SIMILAR)
    found = [known for start in near for known in names if known.startswith(start)]
    family = timm.list_models(f"*{name.split('_')[0]}*")
    return list(dict.fromkeys(found or family))[:_SIMILAR]


def _check_size(name: str, arguments: Mapping[str, Any], values: int | None) -> None:
    if values is None:
        return
    try:
        with torch.device("meta"):
            empty = timm.create_model(name, pretrained=False, **arguments)
    # Without memory some models cannot be built at all, and wrong arguments are told below.
    except (*_ARGUMENT_ERRORS, NotImplementedError):
        return
    needed = sum(value.numel() for value in empty.state_dict().values())
    if needed > 2 * values + LARGEST_ARGUMENT:
        raise CheckpointError(
            f"The model {name} with the arguments {dict(arguments)!s:.300} has {needed} values, "
            f"and the weights have {values}; check the arguments."
        )


def _create_pretrained(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        with ask_hub():
            model: nn.Module = timm.create_model(name, pretrained=True, **arguments)
    # Whatever the hub, the cache or the network raises means the same to the user.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"timm could not load its pretrained weights of {name} ({reason:.200}); "
            "check the network, or give the weights with --checkpoint."
        ) from error
    return model


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if isinstance(content, dict) and content:
        tensors = {str(name): value for name, value in content.items()}
        if all(isinstance(value, Tensor) for value in tensors.values()):
            _check_tensors(path, tensors)
            return tensors
    raise CheckpointError(
        f"The checkpoint {path} holds no state dict: expected tensors by name, at the top or "
        f"under one of {', '.join(WRAPPERS)}."
    )


def _check_archive(path: Path) -> None:
    """Refuse a packed archive: torch packs nothing, and a small file could unpack to any size."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise CheckpointError(
            f"The checkpoint {path} unpacks to {unpacked} bytes from {path.stat().st_size}, which "
            "torch does not write; save it anew with torch.save or as safetensors."
        )


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are no plain numbers, or larger than what the file holds of them."""
    for name, value in tensors.items():
        plain = value.layout is torch.strided and not value.is_quantized and not value.is_complex()
        if not plain or value.device.type != "cpu":
            raise CheckpointError(
                f"The checkpoint {path} has {name} as {value.layout} of {value.dtype} on "
                f"{value.device}; expected plain real numbers: save it anew as safetensors."
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"The checkpoint {path} has {name} of shape {tuple(value.shape)} with fewer values "
                "than that; save it anew as safetensors."
            )


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Timm's configuration speaks of three channels; another count gets their mean."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
