"""torch.compile for the steps of the synthesis, where it pays and works.

A step launches some thousand small kernels; on a GPU fusing them is worth the minute that the
compilation takes. On a processor it is not for runs of minutes (docs/decisions/0012).
"""

from __future__ import annotations

import contextlib
import copy
import warnings
import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mimiq_calib.taps import attention_taps
from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mimiq_calib.taps import Place

    Step = Callable[[Tensor, Tensor, int], dict[str, Tensor]]
    TeacherPass = Callable[[Tensor], tuple[Tensor, list[Tensor]]]

__all__ = ["CompiledWithFallback", "compiled_teacher", "wants_compilation"]


def wants_compilation(choice: bool | None, device: torch.device) -> bool:
    """Whether to compile: as chosen, and without a choice on GPUs only."""
    return device.type == "cuda" if choice is None else choice


class CompiledWithFallback:
    """A compiled step; if its first call fails, what it was compiled from, with a warning.

    Args:
        compiled: The compiled step.
        eager: The same, not compiled.
        insist: Whether a failing compilation is an error instead.

    Raises:
        InvalidInputError: The compilation failed, and ``insist`` is set.
    """

    def __init__(self, compiled: Step, eager: Step, *, insist: bool) -> None:
        self._step = compiled
        self._eager = eager
        self._insist = insist
        self._proven = False

    def __call__(self, images: Tensor, augmented: Tensor, part: int) -> dict[str, Tensor]:
        """Losses of a step; their gradient is left in ``images``."""
        if self._proven:
            return self._step(images, augmented, part)
        try:
            losses = self._step(images, augmented, part)
        except (torch.OutOfMemoryError, InvalidInputError):
            raise
        # A missing compiler, driver or operator: each raises what it likes. An error that is not
        # of the compilation comes again below, where nobody catches it.
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            if self._insist:
                raise InvalidInputError(
                    f"torch.compile failed ({reason}), and synthesis.compile is true; set it to "
                    "null to go on without where it fails, or to false."
                ) from error
            warnings.warn(
                f"torch.compile failed ({reason}): the synthesis goes on without it, slower. Set "
                "synthesis.compile to false to leave it out.",
                RuntimeWarning,
                stacklevel=2,
            )
            self._step = self._eager
            losses = self._step(images, augmented, part)
        self._proven = True
        return losses


_COMPILED: weakref.WeakKeyDictionary[nn.Module, dict[Place, TeacherPass]] = (
    weakref.WeakKeyDictionary()
)
"""One compilation a teacher, for all shards."""


def compiled_teacher(teacher: nn.Module, place: Place) -> TeacherPass:
    """The teacher's forward pass with its taps, compiled once and kept as long as the teacher.

    Args:
        teacher: Full-precision model with exposed attention; its weights are copied, and stay
            those of the first call.
        place: See :func:`mimiq_calib.taps.attention_taps`.

    Returns:
        A function from ``(batch, channels, height, width)`` to class logits and one tensor a layer.
    """
    passes = _COMPILED.setdefault(teacher, {})
    if place not in passes:
        passes[place] = torch.compile(_TappedModel(teacher, place), dynamic=False)
    return passes[place]


class _TappedModel(nn.Module):
    """A copy of a model whose forward pass returns the taps beside the output.

    The hooks stay on for good: hooks that come and go would have every shard compiled anew.
    """

    def __init__(self, model: nn.Module, place: Place) -> None:
        super().__init__()
        self._model = copy.deepcopy(model)
        self._hooks = contextlib.ExitStack()
        self._recorded = self._hooks.enter_context(attention_taps(self._model, place))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        output: Tensor = self._model(x)
        taps = list(self._recorded)
        self._recorded.clear()
        return output, taps
