# shellcheck shell=bash
# Small helpers of up.sh: talking, child processes, HTTP. Sourced; expects state and url.
# shellcheck disable=SC2154

steps=0
step() {
    steps=$((steps + 1))
    printf '\n[%d] %s\n' "$steps" "$*"
}
say() { printf '    %s\n' "$*"; }
fail() {
    printf '\nmake run: %s\n' "$*" >&2
    exit 1
}

# Starts a program in a session of its own, so that Ctrl-C reaches it only through stop_all.
spawn() {
    local name=$1
    shift
    printf '\n--- %s\n' "$(date -u +%FT%TZ)" >>"$state/log/$name.log"
    setsid "$@" >>"$state/log/$name.log" 2>&1 </dev/null 9>&- &
    echo $! >"$state/run/$name.pid"
}

# Prints the process id of a program that was started here and lives.
pid_of() {
    local pid
    pid=$(cat "$state/run/$1.pid" 2>/dev/null) && [ -r "/proc/$pid/cmdline" ] || return 1
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q "$1" && echo "$pid"
}
is_alive() { pid_of "$1" >/dev/null; }

# Asks a program to end, waits, and kills it when it does not.
end() {
    local pid
    pid=$(pid_of "$1") || return 0
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 150); do
        if ! is_alive "$1"; then
            rm -f "$state/run/$1.pid"
            return 0
        fi
        sleep 0.1
    done
    say "the $1 did not end by itself"
    kill -KILL "$pid" 2>/dev/null || true
}

# Ends what a run that was killed has left.
end_leftover() {
    if is_alive "$1"; then
        say "ending the $1 that the last run left"
        end "$1"
    fi
}

# wait_until WHAT PROGRAM CONDITION…: at most a minute, and only while the program lives.
wait_until() {
    local what=$1 program=$2
    shift 2
    for _ in $(seq 300); do
        if "$@"; then
            return 0
        fi
        is_alive "$program" || break
        sleep 0.2
    done
    tail -n 20 "$state/log/$program.log" >&2
    fail "$what did not come up; the whole log is .tianqi/log/$program.log"
}

answers_ping() { [ "$(curl -s --max-time 5 --unix-socket "$1" http://docker/_ping)" = OK ]; }
answers_http() { curl -s --max-time 5 -o /dev/null "$1"; }
listens() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; }

# api METHOD PATH [BODY]: prints the answer; an error is told with the controller's own words.
api() {
    local answer
    if ! answer=$(curl -sS --fail-with-body --max-time 30 -X "$1" "$url/api/v1$2" \
        -H "Authorization: Bearer $token" -H 'content-type: application/json' ${3:+-d "$3"}); then
        printf '%s %s: %s\n' "$1" "$2" "$answer" >&2
        return 1
    fi
    printf '%s\n' "$answer"
}

# Prints the first value of a field in an answer. Enough for ids, tokens and phases: no value of
# those holds a comma, a brace or a quote.
field() { values "$1" | sed -n 1p; }
ids_of() { values id; }
values() { tr '{,}' '\n\n\n' | sed -n "s/^[[ ]*\"$1\": *\"\([^\"]*\)\".*/\1/p"; }

phase_of() { api GET "/instances/$1" | field phase; }
is_running() {
    case $(phase_of "$1") in
    running) return 0 ;;
    failed) fail "the instance failed: $(api GET "/instances/$1")" ;;
    *) return 1 ;;
    esac
}

# Prints the id that an earlier run made, when it still exists.
known() {
    local id
    id=$(cat "$state/$2-id" 2>/dev/null) || return 0
    ! api GET "/$1/$id" >/dev/null 2>&1 || echo "$id"
}

# create PATH KIND BODY: creates, keeps and prints the id.
create() {
    local answer
    answer=$(api POST "/$1" "$3") || exit 1
    field id <<<"$answer" | tee "$state/$2-id"
}
