"""Training the quantized model on the full-precision one, with synthetic images only."""
