#!/usr/bin/env bash
# make run: from a checkout to a controller, a joined agent and one running instance.
#
# Everything is kept under .tianqi/, so that a second run carries on. Ctrl-C stops what was
# started here, by process id. PROFILE=release builds optimised programs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

here=$(pwd -P)
state=$here/.tianqi
http=${TIANQI_HTTP__LISTEN:-127.0.0.1:8890}
agents=${TIANQI_AGENTS__LISTEN:-127.0.0.1:8891}
ssh=${TIANQI_JUMPBOX__LISTEN:-127.0.0.1:2026}
url=http://$http

# shellcheck source=deploy/local/lib.sh
. deploy/local/lib.sh

main() {
    step "prerequisites"
    deploy/local/prerequisites.sh run
    mkdir -p -m 700 "$state"
    mkdir -p "$state/agent" "$state/controller" "$state/log" "$state/run"
    exec 9>"$state/run/lock"
    flock -n 9 || fail "another make run is going on in this checkout"

    step "building (a few minutes the first time)"
    build
    umask 077
    trap stop_all EXIT
    trap 'exit 130' INT TERM

    step "Docker engine"
    find_engine
    import_image

    step "controller"
    start_controller
    log_in

    step "agent"
    start_agent

    step "first instance"
    make_instance
    start_what_was_stopped
    print_help
    # From here on Ctrl-C is how it is meant to end.
    trap 'exit 0' INT TERM
    wait_for_the_end
}

build() {
    bin=$state/bin
    if [ "${PROFILE:-debug}" = release ]; then
        deploy/local/build.sh "$bin" --release
    else
        deploy/local/build.sh "$bin"
    fi
}

# Uses the machine's engine when it answers; otherwise starts one of our own.
find_engine() {
    engine=/var/run/docker.sock
    if answers_ping "$engine"; then
        say "using the machine's engine"
        return
    fi
    # A socket's path is short by law of the system, and a checkout's may not be.
    run_dir=/run/tianqi-$(printf %s "$here" | cksum | cut -d' ' -f1)
    engine=$run_dir/docker.sock
    if answers_ping "$engine"; then
        say "using the engine of the last run"
        return
    fi
    [ "$(id -u)" = 0 ] || fail "no Docker engine answers; start it, or let this start one: sudo make run"
    say "none answers; starting one under .tianqi/docker"
    mkdir -p "$run_dir" "$state/docker"
    printf '{}' >"$state/docker/daemon.json"
    spawn dockerd dockerd --config-file="$state/docker/daemon.json" --host="unix://$engine" \
        --data-root="$state/docker/data" --exec-root="$run_dir/exec" \
        --pidfile="$run_dir/docker.pid" --live-restore
    wait_until "the Docker engine" dockerd answers_ping "$engine"
}

# An image of nothing but the machine's static busybox: no registry is needed.
import_image() {
    image=tianqi/busybox:1
    if docker -H "unix://$engine" image inspect "$image" >/dev/null 2>&1; then
        return
    fi
    local root=$state/run/image
    rm -rf "$root"
    mkdir -p -m 755 "$root" "$root/bin" "$root/etc" "$root/root" "$root/proc" "$root/sys" "$root/dev"
    mkdir -m 1777 "$root/tmp"
    cp /bin/busybox "$root/bin/busybox"
    chmod 755 "$root/bin/busybox"
    local applet
    for applet in $(/bin/busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    chmod 644 "$root"/etc/*
    tar --numeric-owner --owner=0 --group=0 -C "$root" -c . |
        docker -H "unix://$engine" import \
            --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
            --change "CMD [\"/bin/sh\",\"-c\",\"trap 'exit 0' TERM; echo ready; while :; do sleep 3600 & wait \$!; done\"]" \
            - "$image" >/dev/null
    rm -rf "$root"
    say "imported $image"
}

start_controller() {
    end_leftover controller
    ! listens "$http" || fail "$http is taken by another program; try TIANQI_HTTP__LISTEN=127.0.0.1:18890 make run"
    ! listens "$ssh" || fail "$ssh is taken by another program; try TIANQI_JUMPBOX__LISTEN=127.0.0.1:12026 make run"
    # The account admin is made at the first start; later starts take no notice of the variable.
    if [ ! -s "$state/admin-password" ]; then
        head -c 64 /dev/urandom | base64 -w0 | tr -d '+/=' | cut -c1-20 >"$state/admin-password"
    fi
    password=${TIANQI_ADMIN_PASSWORD:-$(cat "$state/admin-password")}
    spawn controller env TIANQI_DATA_DIR="$state/controller" TIANQI_HTTP__LISTEN="$http" \
        TIANQI_AGENTS__LISTEN="$agents" TIANQI_JUMPBOX__LISTEN="$ssh" TIANQI_ADMIN_PASSWORD="$password" \
        "$bin/tianqi-controller" serve
    wait_until "the controller" controller answers_http "$url"
    say "console and API on $url"
    say "SSH on $ssh"
}

log_in() {
    local session
    session=$(curl -sS "$url/api/v1/session" -H 'content-type: application/json' \
        -d "{\"username\":\"admin\",\"password\":\"$password\",\"mode\":\"token\"}")
    token=$(field token <<<"$session")
    if [ -z "$token" ]; then
        say "$session"
        fail "admin cannot log in; if you changed the password: TIANQI_ADMIN_PASSWORD=… make run"
    fi
    printf %s "$token" >"$state/token"
}

start_agent() {
    end_leftover agent
    local simulate=()
    cards="the machine's NVIDIA cards"
    if [ ! -e /proc/driver/nvidia/version ]; then
        simulate=(--simulate-gpus 2xNVIDIA-L40:46068)
        cards="2 simulated NVIDIA L40 (there is no NVIDIA driver here)"
    fi
    say "cards: $cards"
    local settings=(env TIANQI_DATA_DIR="$state/agent" TIANQI_DOCKER__ENDPOINT="unix://$engine")
    if [ ! -e "$state/agent/identity.json" ]; then
        local join
        join=$(api POST /join-tokens '{"description":"make run","ttl_seconds":600,"max_uses":1}' | field token)
        say "joining by a token that lives for ten minutes"
        "${settings[@]}" "$bin/tianqi-agent" join --controller "$agents" --token "$join"
    fi
    spawn agent "${settings[@]}" "$bin/tianqi-agent" run "${simulate[@]}"
    wait_until "the agent's Docker engine" agent node_is_ready
}

node_is_ready() {
    api GET /nodes | grep -q '"docker_status": *"connected"'
}

make_instance() {
    local image_id spec_id gpus=0
    if [ ! -e /proc/driver/nvidia/version ] || command -v nvidia-container-runtime-hook >/dev/null; then
        gpus=1
    fi
    instance=$(known instances instance)
    if [ -z "$instance" ]; then
        image_id=$(known images image)
        [ -n "$image_id" ] || image_id=$(create images image \
            "{\"name\":\"busybox\",\"address\":\"$image\",\"supports_slicing\":true,
            \"description\":\"made by make run; without glibc, so a slice is not enforced\"}")
        spec_id=$(known specs spec)
        [ -n "$spec_id" ] || spec_id=$(create specs spec "{\"name\":\"small-$gpus-gpu\",\"gpu_count\":$gpus,
            \"cpu_cores\":0.5,\"memory_mib\":128,\"system_disk_gib\":0,\"data_disk_gib\":1,
            \"price_per_hour\":\"0\"}")
        instance=$(create instances instance \
            "{\"name\":\"first\",\"image_id\":\"$image_id\",\"spec_id\":\"$spec_id\"}")
        say "created instance first, $gpus card(s)"
    elif [ "$(phase_of "$instance")" != running ]; then
        api POST "/instances/$instance/start" '{}' >/dev/null
        say "started instance first again"
    fi
    wait_until "the instance" agent is_running "$instance"
    say "instance first is running"
}

# Instances that the last Ctrl-C stopped.
start_what_was_stopped() {
    local id
    while read -r id; do
        [ "$id" = "$instance" ] || api POST "/instances/$id/start" '{}' >/dev/null 2>&1 || true
    done < <(cat "$state/stopped" 2>/dev/null || true)
    rm -f "$state/stopped"
}

print_help() {
    cat <<HELP

Tianqi is running.

  API        $url/api/v1
  SSH        ssh -p ${ssh##*:} admin@${ssh%:*}
  user       admin
  password   $password
  cards      $cards
  logs       .tianqi/log/

In another terminal, in this folder:

  alias api='curl -sS -H "Authorization: Bearer \$(cat .tianqi/token)" -H "content-type: application/json"'

  list       api $url/api/v1/instances
  enter      TIANQI_DATA_DIR=.tianqi/controller .tianqi/bin/tianqi-controller exec first -- sh
  stop       api -X POST $url/api/v1/instances/$instance/stop
  start      api -X POST $url/api/v1/instances/$instance/start
  logs       api $url/api/v1/instances/$instance/logs?tail=20
  delete     api -X DELETE $url/api/v1/instances/$instance

Ctrl-C here stops everything; make run carries on.
HELP
}

# Stays until Ctrl-C, or until one of the programs ends by itself.
wait_for_the_end() {
    local name
    while sleep 1; do
        for name in controller agent; do
            is_alive "$name" || fail "the $name ended; see .tianqi/log/$name.log"
        done
    done
}

# Instances first, while somebody can still stop them; then agent, controller and our engine.
stop_all() {
    local status=$?
    trap - EXIT
    trap '' INT TERM
    if [ -n "${token:-}" ] && is_alive controller && is_alive agent; then
        step "stopping instances"
        stop_instances
    fi
    step "stopping Tianqi"
    end agent
    end controller
    if is_alive dockerd; then
        docker -H "unix://$engine" ps -q | xargs -r docker -H "unix://$engine" stop -t 5 >/dev/null 2>&1 || true
        end dockerd
        forget_engine
    fi
    [ "$status" != 0 ] || say "everything is stopped and kept under .tianqi/; make run carries on"
    exit "$status"
}

# What our engine keeps outside .tianqi/ is of no use without it.
forget_engine() {
    if is_alive dockerd; then
        return
    fi
    local mount
    awk -v root="$run_dir/" 'index($2, root) == 1 { print $2 }' /proc/mounts | sort -r |
        while read -r mount; do umount -l "$mount" 2>/dev/null || true; done
    rm -rf --one-file-system "$run_dir"
}

stop_instances() {
    local id ids
    ids=$(api GET '/instances?phase=running&page_size=200' 2>/dev/null | ids_of || true)
    for id in $ids; do
        api POST "/instances/$id/stop" '{}' >/dev/null 2>&1 && echo "$id" >>"$state/stopped"
    done
    for _ in $(seq 150); do
        for id in $ids; do
            [ "$(phase_of "$id" 2>/dev/null)" != exited ] && sleep 0.2 && continue 2
        done
        return 0
    done
    say "some instances did not stop in time"
}

main
