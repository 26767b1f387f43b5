#!/usr/bin/env bash
# make test: installs what the tests need, starts the databases, runs every test.
#
#   tests/run.sh [ARGUMENTS OF cargo test]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s\n' "$*"; }

step "prerequisites"
deploy/local/prerequisites.sh tests
if [ "$(id -u)" != 0 ]; then
    echo "make test starts Docker engines of its own, which needs root: sudo -E env PATH=\$PATH make test" >&2
    exit 1
fi

step "databases"
was_running=$(tests/services.sh env 2>/dev/null || true)
eval "$(tests/services.sh start)"
# Databases that were there before are left running for whoever started them.
[ -n "$was_running" ] || trap 'tests/services.sh stop' EXIT

step "programs"
TIANQI_TEST_BINARIES=${CARGO_TARGET_DIR:-$PWD/target}/test-binaries
deploy/local/build.sh "$TIANQI_TEST_BINARIES" --tests
export TIANQI_TEST_BINARIES

step "tests"
# The same course of faults each time; other seeds are for whoever looks for trouble.
export TIANQI_SIMULATION_SEED=${TIANQI_SIMULATION_SEED:-16}
log=$(mktemp)
status=0
cargo test --workspace --locked --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?

step "summary"
grep -E '^test .* (FAILED|ignored)' "$log" || true
grep -E '^test result:' "$log" |
    awk '{ print; passed += $4; failed += $6; ignored += $8 }
         END { printf "test binaries: %d; passed: %d; failed: %d; ignored: %d\n", NR, passed, failed, ignored }'
rm -f "$log"
[ "$status" = 0 ] || echo "make test: FAILED"
[ "$status" != 0 ] || echo "make test: ok"
exit "$status"
