#!/usr/bin/env bash
# make check: format, lints, architecture, dependencies.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s\n' "$*"; }

step "prerequisites"
deploy/local/prerequisites.sh build

step "format"
cargo fmt --all --check

step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "one crypto provider"
# deny.toml says the same to cargo-deny; this holds also where cargo-deny is not installed.
for banned in ring openssl-sys native-tls; do
    tree=$(cargo tree --workspace --locked --edges normal,build,dev \
        --target x86_64-unknown-linux-gnu --invert "$banned" 2>&1 || true)
    case $tree in
    "" | *"did not match any packages"* | *"nothing to print"*) echo "$banned: absent" ;;
    *) echo "$banned is in the graph:" >&2; echo "$tree" >&2; exit 1 ;;
    esac
done

step "cargo-deny"
if command -v cargo-deny >/dev/null; then
    cargo deny --locked --offline check bans licenses sources
else
    echo "not installed; licences and sources are not checked here"
fi

step "shell scripts"
for script in deploy/local/*.sh tests/*.sh tests/src/*.sh .ci/run; do
    case $(head -n1 "$script") in *bash) bash -n "$script" ;; *) sh -n "$script" ;; esac
done
if command -v shellcheck >/dev/null; then
    shellcheck deploy/local/*.sh tests/*.sh tests/src/*.sh .ci/run
fi

step "systemd units"
if command -v systemd-analyze >/dev/null; then
    units=$(mktemp -d)
    trap 'rm -rf "$units"' EXIT
    for unit in systemd/*.service; do
        # The programs are not installed here; everything else is checked as it stands.
        sed 's#/usr/local/bin/tianqi-[a-z]*#/bin/true#' "$unit" >"$units/$(basename "$unit")"
        complaints=$(systemd-analyze verify --man=no "$units/$(basename "$unit")" 2>&1 || true)
        complaints=$(grep -F "$(basename "$unit")" <<<"$complaints" || true)
        [ -z "$complaints" ] || { echo "$complaints" >&2; exit 1; }
        echo "$(basename "$unit"): $(systemd-analyze security --offline=true \
            "$units/$(basename "$unit")" 2>/dev/null | tail -n 1)"
    done
else
    echo "no systemd here; the units are not checked"
fi

step "architecture"
# The whole workspace is named, so that what is built here is what make test builds.
cargo test --workspace --locked --test architecture

echo
echo "make check: ok"
