#!/usr/bin/env bash
# The road on CIFAR-10: train on two cores in less than half an hour, evaluate, pack, serve, and compare 2,000 served
# answers with the offline evaluation. Without bfloat16 instructions a processor trains in float32, twice as long or more.
#
#   recipes/cifar10.sh                     # torchvision:CIFAR10, downloaded
#   recipes/cifar10.sh path/cifar10.zip    # train/CLASS/* and test/CLASS/*, as a folder or a zip
#
# The measured figures are in docs/recipes.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

data="${1:-torchvision:CIFAR10}" bin="${BIN:-.venv/bin}" run="${RUN:-runs/cifar10}" state="${STATE:-.imgcls/cifar10}"
store="${STORE:-$run}"

time "$bin/python" train.py --data "$data" --out "$run" --overwrite --epochs 20 --batch-size 128 --val-fraction 0.05 \
    --lr 0.1 --nesterov --weight-decay 5e-4 --label-smoothing 0.1 --schedule one-cycle --flip --shift 4 --amp auto \
    --parameters '{"widths": [64, 128, 256], "convolutions": 2, "hidden": 256, "norm": "batch", "pooling": "first"}'

"$bin/imgcls" evaluate "$run" --test test="$data" --test noisy="$data,noise=20" --test rotated="$data,rotate=15"
./build_mar.sh "$run" --store "$store"

trap '"$bin/imgcls" stop --state "$state"' EXIT
"$bin/imgcls" serve "$store/imgcls.mar" --state "$state" --port 0
"$bin/python" recipes/compare_served.py "$run" --test test --data "$data" --count 2000 --state "$state"
