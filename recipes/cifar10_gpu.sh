#!/usr/bin/env bash
# CIFAR-10's original pixels, to more than 94 %: train and evaluate. Two cores need 40 minutes for it.
#
#   recipes/cifar10_gpu.sh                                # torchvision:CIFAR10, downloaded
#   recipes/cifar10_gpu.sh data/cifar10.zip               # recipes/cifar10_from_npm.py writes it
#   DEVICE=cpu recipes/cifar10_gpu.sh data/cifar10.zip    # without a GPU
#
# The measured figures are in docs/recipes.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

data="${1:-torchvision:CIFAR10}" bin="${BIN:-.venv/bin}" run="${RUN:-runs/cifar10-gpu}"

time "$bin/python" train.py --data "$data" --out "$run" --overwrite --device "${DEVICE:-cuda}" --epochs 32 \
    --batch-size 256 --val-fraction 0.02 --lr 0.2 --nesterov --weight-decay 1e-3 --label-smoothing 0.1 \
    --schedule one-cycle --select last --flip --shift 4 --erase 0.5 --amp bf16 \
    --network whitened_cnn --parameters '{"widths": [64, 256, 256], "views": 6}'
"$bin/imgcls" evaluate "$run" --test test="$data"
