"""Changes of a model that leave its function as it is and make its tensors easier to quantize.

Each moves a constant or a factor from an activation into what stands beside it, so that engines
run the richer grid as the plain symmetric one (docs/architecture.md, "Asymmetric without zero
points").
"""
