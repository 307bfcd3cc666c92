#!/usr/bin/env bash
# What each choice of the method is worth on the built-in model of handwritten digits.
#
#   benchmarks/study_digits.sh OUTPUT [OPTIONS OF mimiq-deploy study...]
#
# The recipe `demo`, lightened so that the 16 runs of one seed take minutes on two cores. For more
# widths add --bits w3a3.
# OUTPUT: folder for the digits and the study; what is finished there is kept. Measured on the 599
# held-out scans. 64 of those that the model was trained on are the source `folder`, the yardstick.
set -euo pipefail
output=$1
shift
python - "$output" <<'PYTHON'
import sys
from pathlib import Path

from mimiq_deploy.demo.digits import load_digits_split, write_image_folder

digits, output = load_digits_split(), Path(sys.argv[1])
write_image_folder(digits.test_images, digits.test_labels, output / "held-out")
write_image_folder(digits.train_images[:64], digits.train_labels[:64], output / "trained-on")
PYTHON
weights=$(python -c 'from mimiq_deploy.demo.story import demo_model; print(demo_model()[1])')
mimiq-deploy study vit_tiny_patch16_224 --output "$output/study" --checkpoint "$weights" \
  --model-arg img_size=32 --model-arg patch_size=4 --model-arg in_chans=1 \
  --model-arg embed_dim=96 --model-arg depth=4 --model-arg num_heads=3 \
  --preprocessing 'mean=[0.5]' --preprocessing 'std=[0.5]' \
  --preprocessing 'input_size=[1,32,32]' --preprocessing crop_pct=1.0 \
  --recipe demo --set synthesis.num_images=64 --set synthesis.batch_size=32 \
  --set synthesis.iterations=500 --set observation.num_images=64 --set distillation.epochs=30 \
  --set synthesis.held_out=0 --fine-tuning none --fine-tuning distill --fine-tuning reconstruct \
  --bits w4a4 --data "$output/held-out" --folder "$output/trained-on" --ablations "$@"
