"""Making calibration images from the weights alone: the losses, the augmentation, the loop."""
