#!/usr/bin/env bash
# Checks what a machine needs, and installs Debian packages that are missing.
#
#   deploy/local/prerequisites.sh build   to compile: a C compiler, Rust
#   deploy/local/prerequisites.sh run     and to run here: a Docker engine, iptables, busybox, curl
#   deploy/local/prerequisites.sh tests   and to test: PostgreSQL, MariaDB, mmdebstrap, a registry, nginx,
#                                         OpenSSH's clients, paramiko, rsync, tmux, socat, iperf3
#   deploy/local/prerequisites.sh bench   to run here, and peers to measure beside: HAProxy, socat, sshd
#
# Installing needs root (it says so) and apt-get; services that a package brings are not started.
# Everything that is missing is told at once.
set -euo pipefail

purpose=${1:-run}
rust_needed=1.95

say() { printf 'prerequisites: %s\n' "$*" >&2; }

# program package: what a purpose needs, and the Debian package that brings it.
needs_of() {
    case $1 in
    build) cat <<'LIST' ;;
cc gcc
/usr/include/stdio.h libc6-dev
LIST
    run)
        needs_of build
        cat <<'LIST'
dockerd docker.io
docker docker.io
iptables iptables
ip iproute2
busybox busybox-static
curl curl
tar tar
setsid util-linux
LIST
        ;;
    tests)
        needs_of run
        cat <<'LIST'
/usr/lib/postgresql/*/bin/initdb postgresql
mariadbd mariadb-server
mmdebstrap mmdebstrap
docker-registry docker-registry
nginx nginx-light
socat socat
iperf3 iperf3
setpriv util-linux
ssh openssh-client
tmux tmux
rsync rsync
/usr/lib/python3/dist-packages/paramiko python3-paramiko
LIST
        ;;
    bench)
        needs_of run
        cat <<'LIST'
haproxy haproxy
socat socat
iperf3 iperf3
ssh openssh-client
/usr/sbin/sshd openssh-server
LIST
        ;;
    *)
        sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
    esac
}

present() {
    case $1 in
    /*) compgen -G "$1" >/dev/null ;;
    # A busybox that needs the libraries of this machine does not run in an empty image.
    busybox) [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1 ;;
    *) PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
    esac
}

# Installs packages without starting the services that they bring.
install_packages() {
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -q -y --no-install-recommends "$@"
}

missing=()
while read -r program package; do
    present "$program" || missing+=("$package")
done < <(needs_of "$purpose")

if [ ${#missing[@]} -gt 0 ]; then
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    if ! command -v apt-get >/dev/null; then
        say "missing: ${missing[*]} (these are Debian's names; install them as your system does)"
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        say "missing: ${missing[*]}"
        say "install them by: sudo $0 $purpose"
        exit 1
    fi
    say "installing ${missing[*]}"
    install_packages "${missing[@]}"
fi

if ! command -v cargo >/dev/null; then
    say "Rust is missing; Debian's own is too old. Install $rust_needed or newer from https://rustup.rs:"
    say "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile default"
    exit 1
fi
rust=$(rustc --version | cut -d' ' -f2)
if [ "$(printf '%s\n' "$rust_needed" "$rust" | sort -V | head -n1)" != "$rust_needed" ]; then
    say "Rust $rust is too old: $rust_needed or newer is needed (rustup update stable)"
    exit 1
fi
