"""What leaves for the device: a bundle with its runner, or a model repository of Triton."""
