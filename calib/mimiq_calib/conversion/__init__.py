"""Turning a timm model into one whose attention is visible and whose tensors are quantized."""
