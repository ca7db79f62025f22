#!/usr/bin/env bash
# Builds model_store/imgcls.mar, in the folder where it is called, from a run directory.
#
#   ./build_mar.sh runs/digits
#   ./build_mar.sh runs/digits --version 1.1 --workers 2
#
# Everything it does is in `imgcls archive build`; see `imgcls archive build --help` for the options.
set -euo pipefail
unset PYTHONPATH PYTHONHOME  # the archive packs this checkout's code, not another's

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
imgcls="$here/.venv/bin/imgcls"
[[ -x "$imgcls" ]] || imgcls="$(type -P imgcls)" ||
    { echo "error: no imgcls here; run make setup in $here" >&2; exit 1; }

exec "$imgcls" archive build "$@"
