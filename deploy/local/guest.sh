#!/usr/bin/env bash
# Builds tianqi-guest as a static program, so that it runs in any image, and prints its path.
#
#   deploy/local/guest.sh [--release]
#
# The flag is given to this one binary only: its dependencies are those of the other binaries.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

folder=debug
[ "${1:-}" != --release ] || folder=release
cargo rustc --locked "$@" -p tianqi-agent --bin tianqi-guest -- -C target-feature=+crt-static >&2
install -D -m 0755 "target/$folder/tianqi-guest" "target/static/$folder/tianqi-guest"
if ldd "target/static/$folder/tianqi-guest" 2>/dev/null | grep -q '=>'; then
    echo "tianqi-guest is not static" >&2
    exit 1
fi
echo "target/static/$folder/tianqi-guest"
