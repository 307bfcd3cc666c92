"""Every error that mimiq-deploy raises on purpose.

::

    MimiqDeployError
    ├── InvalidInputError            what the user gave cannot be used
    │   ├── RecipeError              a recipe, with all its faults at once
    │   ├── CheckpointError          weights that are missing, broken or of another model
    │   ├── UnsupportedModelError    a module that cannot be converted, by name
    │   ├── ImageError               a picture that cannot be read
    │   ├── DatasetError             a folder of labelled pictures that cannot be used
    │   ├── RunDirectoryError        a run directory that is missing, damaged or of another version
    │   │   └── RunLockedError       a run that another process is writing
    │   ├── BundleError              a bundle that is incomplete, changed or of another version
    │   ├── OnnxModelError           an ONNX file that cannot be used
    │   └── DivergedError            numbers that ran away while they were optimised
    ├── MissingDependencyError       a library that is not installed, and how to install it
    ├── EngineError                  an engine that did not do what was asked
    │   └── DeviceNeededError        work that is left to another machine, with its command
    └── LostProcessError             another process of the same job has ended

A message is one clear sentence: what was expected, what came, and what to do. The command line
prints it without a traceback and exits with :attr:`MimiqDeployError.exit_code`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BundleError",
    "CheckpointError",
    "DatasetError",
    "DeviceNeededError",
    "DivergedError",
    "EngineError",
    "ImageError",
    "InvalidInputError",
    "LostProcessError",
    "MimiqDeployError",
    "MissingDependencyError",
    "OnnxModelError",
    "RecipeError",
    "RunDirectoryError",
    "RunLockedError",
    "UnsupportedModelError",
]


class MimiqDeployError(Exception):
    """Base of all errors that are raised on purpose; the command line catches exactly this."""

    exit_code = 2


class InvalidInputError(MimiqDeployError):
    """What the user gave cannot be used."""


class RecipeError(InvalidInputError):
    """A recipe that does not validate.

    Args:
        source: Where the recipe came from, for the message.
        faults: One sentence a fault; all are reported at once.
    """

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__(f"The recipe {source} is not valid: {'; '.join(self.faults)}.")


class CheckpointError(InvalidInputError):
    """Weights that are missing, broken, or belong to another model."""


class UnsupportedModelError(InvalidInputError):
    """A model with a module that cannot be converted.

    Args:
        module: Dotted name of the module inside the model, or the model's own name.
        reason: Why it cannot be converted.
    """

    def __init__(self, module: str, reason: str) -> None:
        self.module = module
        self.reason = reason
        super().__init__(f"This model is not supported: {module}: {reason}.")


class ImageError(InvalidInputError):
    """A picture that cannot be read."""


class DatasetError(InvalidInputError):
    """A folder of labelled pictures that cannot be used."""


class RunDirectoryError(InvalidInputError):
    """A run directory that is missing, damaged, or written by another version."""


class RunLockedError(RunDirectoryError):
    """A run directory that another process is writing."""


class BundleError(InvalidInputError):
    """A bundle that is incomplete, changed, or written by another version."""


class OnnxModelError(InvalidInputError):
    """An ONNX file that cannot be used."""


class DivergedError(InvalidInputError):
    """Numbers that ran away while they were optimised: the learning rate is too high."""


class MissingDependencyError(MimiqDeployError):
    """A library that is not installed.

    Args:
        module: The module that could not be imported.
        extra: The extra of mimiq-deploy that brings it.
    """

    def __init__(self, module: str, extra: str) -> None:
        self.module = module
        self.extra = extra
        super().__init__(
            f"{module} is needed here and is not installed: pip install 'mimiq-deploy[{extra}]'."
        )


class EngineError(MimiqDeployError):
    """An engine that cannot do, or did not do, what was asked of it."""


class DeviceNeededError(EngineError):
    """Everything that can be done on this machine is done; the rest is for the device.

    Args:
        reason: Why it cannot be done here, as a sentence.
        onnx: The file to take to the device.
        command: What to run there.
    """

    exit_code = 3

    def __init__(self, reason: str, onnx: str, command: str) -> None:
        self.reason = reason
        self.onnx = onnx
        self.command = command
        super().__init__(f"{reason} {onnx} is ready; run on the device: {command}")


class LostProcessError(MimiqDeployError):
    """Another process of the same job has ended.

    Args:
        reason: What is known about it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"Another process of this job has ended ({reason}); mend what it says, and run the "
            "same command again with --resume."
        )
