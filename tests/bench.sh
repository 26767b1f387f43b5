#!/usr/bin/env bash
# make bench: prints our figures beside those of the peers, measured in the same run.
#
#   tests/bench.sh [WORDS]    only the whole paths whose name holds one of the words
#                             (controller, logins, durable, forwards, ssh, machine, crowd); without words everything,
#                             also the long simulation: faults at random during 200 creates
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

deploy/local/prerequisites.sh bench
if [ "$(id -u)" != 0 ]; then
    echo "make bench starts a Docker engine of its own, which needs root: sudo -E env PATH=\$PATH make bench" >&2
    exit 1
fi
# A thousand agents in one process have a socket each.
[ "$(ulimit -n)" = unlimited ] || [ "$(ulimit -n)" -ge 8192 ] || ulimit -n 8192

# Everything is built before anything is measured.
TIANQI_TEST_BINARIES=${CARGO_TARGET_DIR:-$PWD/target}/bench-binaries
export TIANQI_TEST_BINARIES
deploy/local/build.sh "$TIANQI_TEST_BINARIES" --release
cargo build --release --locked -p tianqi-fake-nvml
cargo bench --locked --no-run -p tianqi-tests --bench paths
[ $# -gt 0 ] || cargo bench --locked -p tianqi-scheduler --bench placement
cargo bench --locked -p tianqi-tests --bench paths -- "$@"
[ $# -gt 0 ] || {
    cargo build --locked -p tianqi-stub-vgpu
    # Seen: 22 of 100 transitions are creates. It takes about ten minutes.
    TIANQI_SIMULATION_STEPS=${TIANQI_SIMULATION_STEPS:-950} \
        cargo test --locked -p tianqi-tests --test simulation -- --nocapture
}
