"""Training the quantized model block by block, each to give what the full-precision one gives."""
