#!/usr/bin/env bash
# Builds the three programs and lays them side by side in a folder.
#
#   deploy/local/build.sh FOLDER [--release | --tests]
#
# --tests builds the whole workspace with its tests in one go: packages built one by one have other
# features, and the same crates would be compiled twice.
#
# tianqi-guest is linked statically, so that it runs in any image. The flag is given to this one
# binary only; its dependencies stay those of the other programs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

folder=$1
shift
target=${CARGO_TARGET_DIR:-target}/debug
[ "${1:-}" != --release ] || target=${CARGO_TARGET_DIR:-target}/release

# Laid down by a rename: a running program keeps its file.
lay() {
    install -D -m 0755 "$target/$1" "$folder/.$1.new"
    mv "$folder/.$1.new" "$folder/$1"
}

if [ "${1:-}" = --tests ]; then
    shift
    cargo build --locked --workspace --lib --bins --tests
else
    cargo build --locked "$@" -p tianqi-controller -p tianqi-agent \
        --bin tianqi-controller --bin tianqi-agent
fi
lay tianqi-controller
lay tianqi-agent
cargo rustc --locked "$@" -p tianqi-guest --bin tianqi-guest -- -C target-feature=+crt-static
lay tianqi-guest
if ldd "$folder/tianqi-guest" 2>/dev/null | grep -q '=>'; then
    echo "tianqi-guest is not static" >&2
    exit 1
fi
