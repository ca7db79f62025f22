#!/usr/bin/env bash
# Rolling a new version under load, on scikit-learn's handwritten digits: a bad one is caught and taken back, a good one
# is promoted, and undone. Called by `make demo-rollout`; whatever it starts it ends, also on Ctrl-C.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bin="${BIN:-.venv/bin}" runs="${RUNS:-runs/rollout}" state="${STATE:-.imgcls/demo-rollout}"
narrow='{"widths": [32, 64], "hidden": 128}' wide='{"widths": [32, 64], "hidden": 256}'
first="" second="" asker=""
step() { printf '\n== %s\n' "$*"; }

make_version() { # VERSION EPOCHS LR PARAMETERS: trains a network, packs it, and says how good it is
    local run="$runs/$1" log="$runs/$1.log"
    {
        "$bin/python" train.py --data digits --out "$run" --overwrite --epochs "$2" --lr "$3" --schedule one-cycle \
            --shift 1 --threads 1 --parameters "$4" &&
            "$bin/imgcls" archive build "$run" --store "$run/store" --version "$1" --workers 1
    } > "$log" 2>&1 || { cat "$log" >&2; return 1; }
    printf '%s: %s\n' "$1" "$(grep '(best)' "$log" | tail -n 1)"
}

stop_asking() {
    [[ -n "$asker" ]] || return 0
    local pid="$asker"
    asker=""
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid"
}

clean_up() {
    trap '' INT TERM
    stop_asking || true
    [[ -z "$first" ]] || wait "$first" || true
    [[ -z "$second" ]] || wait "$second" || true
    "$bin/imgcls" stop --state "$state"
}

step "1. train and pack a good 1.0, and a 2.0 whose training was cut short"
trap clean_up EXIT
"$bin/imgcls" stop --state "$state" > /dev/null
rm -rf "$state" # the rollouts of the demo before
mkdir -p "$runs"
make_version 1.0 16 0.05 "$narrow" &
first=$!
make_version 2.0 2 0.02 "$wide"
make_version 2.1 16 0.05 "$wide" > "$runs/2.1.txt" &
second=$!
wait "$first"
first=""

step "2. serve 1.0 behind a gateway; meanwhile a good 2.1 is trained and packed"
"$bin/imgcls" serve "$runs/1.0/store/imgcls.mar" --gateway --gateway-port 0 --port 0 --state "$state"
url="$("$bin/imgcls" status --json --state "$state" | "$bin/python" -c 'import json, sys; print(json.load(sys.stdin)["url"])')"

step "3. ask it 45 times a second, from now on; what the images really show is handed in some seconds later"
"$bin/python" recipes/ask.py "$url" --data digits --rate 45 --state "$state" &
asker=$!

step "4. roll 2.0 without shadowing, so that the canary has to catch it by its accuracy"
sed 's/^percent = .*/percent = 0.0/' recipes/rollout.toml > "$runs/no-shadow.toml"
if "$bin/imgcls" rollout start "$runs/2.0/store/imgcls.mar" --plan "$runs/no-shadow.toml" --state "$state"; then
    echo "error: 2.0 was promoted; it should have been caught" >&2
    exit 1
fi
"$bin/imgcls" rollout status --state "$state" | grep 'rolled-back: canary .*accuracy' > /dev/null

step "5. roll 2.1 through shadow and canary"
wait "$second"
second=""
cat "$runs/2.1.txt"
"$bin/imgcls" rollout start "$runs/2.1/store/imgcls.mar" --plan recipes/rollout.toml --state "$state"

step "6. go back to 1.0 at once"
"$bin/imgcls" rollout undo --state "$state"
"$bin/imgcls" rollout history --state "$state"

step "7. what clients saw of all this"
stop_asking
"$bin/imgcls" status --state "$state"

step "8. stop it"
