#!/usr/bin/env bash
# CIFAR-10 on a GPU, in a minute and a half: train, and evaluate.
#
#   recipes/cifar10_gpu.sh                     # torchvision:CIFAR10, downloaded
#   recipes/cifar10_gpu.sh data/cifar10.zip    # recipes/cifar10_from_npm.py writes it
#
# The measured figures are in docs/recipes.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

data="${1:-torchvision:CIFAR10}" bin="${BIN:-.venv/bin}" run="${RUN:-runs/cifar10-gpu}"

time "$bin/python" train.py --data "$data" --out "$run" --overwrite --device cuda --epochs 24 --batch-size 512 \
    --val-fraction 0.02 --optimiser muon --lr 0.01 --weight-decay 0.05 --label-smoothing 0.1 --schedule one-cycle \
    --flip --shift 4 --amp bf16 --parameters \
    '{"widths": [128, 384, 384], "convolutions": 3, "hidden": 256, "norm": "batch", "pooling": "first"}'
"$bin/imgcls" evaluate "$run" --test test="$data"
