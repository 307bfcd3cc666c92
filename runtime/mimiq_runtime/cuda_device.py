"""Which GPU computes, as it is written into records and names of folders."""

from __future__ import annotations

import re

from pydantic import Field

from mimiq_runtime.schema import Schema

__all__ = ["CudaDevice"]


class CudaDevice(Schema):
    """The GPU that computes: the first one that CUDA lists.

    Attributes:
        name: As CUDA names it.
        compute_capability: Such as ``8.7``.
        cuda_driver: Newest CUDA that the driver supports, such as ``13.0``.
        cuda_runtime: CUDA of the runtime that is used, such as ``12.8``.
    """

    name: str
    compute_capability: str = Field(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}$")
    cuda_driver: str
    cuda_runtime: str

    @property
    def slug(self) -> str:
        """Name for a folder, such as ``nvidia-h200-sm90``."""
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return f"{name}-sm{self.compute_capability.replace('.', '')}"
