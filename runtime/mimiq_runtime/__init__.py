"""What runs on the device, and what all packages share. Imports no torch and no onnx."""
