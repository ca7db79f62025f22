#!/usr/bin/env bash
# The road on CIFAR-10: train on two cores in less than half an hour, evaluate, pack, serve, and compare 2,000 served
# answers with the offline evaluation.
#
#   recipes/cifar10.sh                     # torchvision:CIFAR10, downloaded
#   recipes/cifar10.sh path/cifar10.zip    # train/CLASS/* and test/CLASS/*, as a folder or a zip
#   NETWORK=whitened_cnn recipes/cifar10.sh …    # half an hour in float32 too, on a processor without bfloat16
#
# The measured figures are in docs/recipes.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

data="${1:-torchvision:CIFAR10}" bin="${BIN:-.venv/bin}" run="${RUN:-runs/cifar10}" state="${STATE:-.imgcls/cifar10}"
store="${STORE:-$run}" network="${NETWORK:-simple_cnn}"

case "$network" in
simple_cnn)
    flags=(--epochs 20 --batch-size 128 --val-fraction 0.05 --lr 0.1 --weight-decay 5e-4 --shift 4)
    parameters='{"widths": [64, 128, 256], "convolutions": 2, "hidden": 256, "norm": "batch", "pooling": "first"}'
    ;;
whitened_cnn)
    flags=(--epochs 14 --batch-size 256 --val-fraction 0.02 --lr 0.2 --weight-decay 1e-3 --shift 2 --select last)
    parameters='{"widths": [32, 96, 256], "views": 2}'
    ;;
*)
    echo "error: NETWORK is $network; expected simple_cnn or whitened_cnn" >&2
    exit 2
    ;;
esac

time "$bin/python" train.py --data "$data" --out "$run" --overwrite --network "$network" --parameters "$parameters" \
    "${flags[@]}" --nesterov --label-smoothing 0.1 --schedule one-cycle --flip --amp auto

"$bin/imgcls" evaluate "$run" --test test="$data" --test noisy="$data,noise=20" --test rotated="$data,rotate=15"
./build_mar.sh "$run" --store "$store"

trap '"$bin/imgcls" stop --state "$state"' EXIT
"$bin/imgcls" serve "$store/imgcls.mar" --state "$state" --port 0
"$bin/python" recipes/compare_served.py "$run" --test test --data "$data" --count 2000 --state "$state"
