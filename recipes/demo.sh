#!/usr/bin/env bash
# The whole road on scikit-learn's handwritten digits: train, evaluate, pack, serve, ask, stop.
# Called by `make demo`; with --build-only it ends after packing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bin="${BIN:-.venv/bin}" run="${RUN:-runs/digits}" state="${STATE:-.imgcls/demo}" store="${STORE:-model_store}"
step() { printf '\n== %s\n' "$*"; }

step "1. train a CNN (SGD, cross entropy)"
"$bin/python" train.py --data digits --out "$run" --overwrite --epochs 60 --lr 0.05 --schedule one-cycle --shift 1 \
    --parameters '{"widths": [32, 64], "hidden": 128}'

step "2. evaluate it on a clean, a noisy and a rotated test set"
"$bin/imgcls" evaluate "$run" --test clean=digits --test noisy=digits,noise=40 --test rotated=digits,rotate=30

step "3. pack code, weights and golden inputs into $store/imgcls.mar"
./build_mar.sh "$run" --store "$store" --workers 1
[[ "${1:-}" == --build-only ]] && exit 0

step "4. serve it with TorchServe"
trap '"$bin/imgcls" stop --state "$state"' EXIT
"$bin/imgcls" serve "$store/imgcls.mar" --state "$state" --port 0

step "5. ask it over HTTP"
"$bin/imgcls" status --state "$state"
"$bin/imgcls" predict "$run"/golden/* --top-k 3 --state "$state"

step "6. stop it"
