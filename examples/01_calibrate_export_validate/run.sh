#!/usr/bin/env bash
# From a checkpoint to a checked 4-bit ONNX model: ./run.sh OUTPUT
set -euo pipefail
output=${1:?usage: run.sh OUTPUT (a folder to make)}

# The model that comes with mimiq-deploy, and digits that it was not trained on.
weights=$(python - "$output/pictures" <<'PY'
import sys
from importlib.resources import files

from mimiq_deploy.demo.digits import load_digits_split, write_image_folder

digits = load_digits_split()
write_image_folder(digits.test_images[:100], digits.test_labels[:100], sys.argv[1])
print(files("mimiq_deploy.demo") / "digits_vit.safetensors")
PY
)

mimiq-deploy calibrate vit_tiny_patch16_224 --output "$output/run" --checkpoint "$weights" \
  --model-arg img_size=32 --model-arg patch_size=4 --model-arg in_chans=1 \
  --model-arg embed_dim=96 --model-arg depth=4 --model-arg num_heads=3 \
  --preprocessing crop_pct=1.0 \
  --recipe demo --bits w4a4 \
  --set synthesis.num_images=16 --set synthesis.batch_size=16 --set synthesis.iterations=20 \
  --set distillation.epochs=4

mimiq-deploy export "$output/run" --target ort-cpu

mimiq-deploy validate "$output/run" --engine ort-cpu --data "$output/pictures" \
  --min-agreement 0.9

mimiq-deploy predict "$output/run" "$output/pictures/0000.png" --top 3

# The same answers from a smaller file that takes uint8 pixels, as a camera gives them.
mimiq-deploy export "$output/run" --target ort-cpu --with-preprocessing --packed-int4
mimiq-deploy validate "$output/run" --engine ort-cpu --data "$output/pictures" \
  --min-agreement 0.9
