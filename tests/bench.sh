#!/usr/bin/env bash
# make bench: prints our figures beside those of the peers, measured in the same run.
#
#   tests/bench.sh [ARGUMENTS OF cargo bench]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

deploy/local/prerequisites.sh build
cargo bench --locked -p tianqi-scheduler --benches "$@"
