"""One shard of images as bytes, to be sent from the process that made it to the one that writes."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load, save

from mimiq_calib.synthesis.mimiq import SynthesisedBatch

__all__ = ["pack_shard", "unpack_shard"]


def pack_shard(batch: SynthesisedBatch) -> bytes:
    """Images, labels and metrics as the bytes of a safetensors file."""
    metrics = torch.frombuffer(bytearray(json.dumps(batch.metrics).encode()), dtype=torch.uint8)
    images = batch.images.contiguous()
    return save({"images": images, "labels": batch.labels, "metrics": metrics})


def unpack_shard(data: bytes) -> SynthesisedBatch:
    """What :func:`pack_shard` was given."""
    tensors = load(data)
    metrics = json.loads(tensors["metrics"].numpy().tobytes())
    return SynthesisedBatch(tensors["images"], tensors["labels"], metrics)
