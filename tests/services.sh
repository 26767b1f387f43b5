#!/usr/bin/env bash
# The databases of the store tests: one PostgreSQL and one MariaDB, on their own ports and data
# folders, apart from any that the machine runs.
#
#   tests/services.sh start   starts what is not running, then prints the two variables
#   tests/services.sh env     prints the two variables; fails when a database is not running
#   tests/services.sh stop    ends both and removes their data
#
# `eval "$(tests/services.sh start)"` sets TIANQI_TEST_POSTGRES_URL and TIANQI_TEST_MYSQL_URL.
# The data may be lost at any moment (no fsync): never point anything but tests at it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# In /tmp, because the users postgres and mysql may not enter the folder of the checkout.
root=/tmp/tianqi-services-$(printf %s "$here" | cksum | cut -d' ' -f1)

say() { printf 'services: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Runs a command as the user that its database insists on; root is refused by both.
as() {
    local user=$1
    shift
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid="$user" --regid="$user" --init-groups -- env HOME="$root" "$@"
    else
        "$@"
    fi
}

free_port() {
    local port
    for _ in $(seq 50); do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 10000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    fail "no free port between 20000 and 29999"
}

# Prints the process id in a pid file when that process lives and works in our folder.
alive() {
    local pid
    pid=$(head -n1 "$1" 2>/dev/null) || return 1
    [ -n "$pid" ] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$root/" && echo "$pid"
}

# Waits until a command succeeds, at most a minute, and only while the process lives.
wait_for() {
    local what=$1 pid=$2 log=$3
    shift 3
    for _ in $(seq 300); do
        if "$@" >/dev/null 2>&1; then
            return 0
        fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.2
    done
    tail -n 20 "$log" >&2 || true
    say "$what did not come up"
    return 1
}

postgres_bin() {
    local bin
    bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n1)
    [ -x "$bin/initdb" ] || fail "PostgreSQL is not installed; run sudo deploy/local/prerequisites.sh tests"
    echo "$bin"
}

start_postgres() {
    local dir=$root/postgres bin port
    alive "$dir/data/postmaster.pid" >/dev/null && return 0
    bin=$(postgres_bin)
    rm -rf "$dir"
    install -d -m 0755 "$dir"
    [ "$(id -u)" != 0 ] || chown postgres: "$dir"
    say "PostgreSQL: making its data folder"
    as postgres "$bin/initdb" -D "$dir/data" -U tianqi --auth=trust --no-sync -E UTF8 --locale=C \
        >"$dir.log" 2>&1 || { cat "$dir.log" >&2; fail "initdb failed"; }
    for _ in 1 2 3; do
        port=$(free_port)
        as postgres "$bin/postgres" -D "$dir/data" -p "$port" -c listen_addresses=127.0.0.1 \
            -c unix_socket_directories="$dir" -c max_connections=500 -c fsync=off \
            -c synchronous_commit=off -c full_page_writes=off >>"$dir.log" 2>&1 </dev/null &
        if wait_for PostgreSQL $! "$dir.log" "$bin/pg_isready" -q -h 127.0.0.1 -p "$port"; then
            echo "postgres://tianqi@127.0.0.1:$port/postgres" >"$root/postgres.url"
            return 0
        fi
    done
    fail "PostgreSQL did not start; see $dir.log"
}

start_mariadb() {
    local dir=$root/mariadb port
    alive "$dir/mariadb.pid" >/dev/null && return 0
    command -v mariadbd >/dev/null ||
        fail "MariaDB is not installed; run sudo deploy/local/prerequisites.sh tests"
    rm -rf "$dir"
    install -d -m 0755 "$dir"
    [ "$(id -u)" != 0 ] || chown mysql: "$dir"
    say "MariaDB: making its data folder"
    as mysql mariadb-install-db --no-defaults --datadir="$dir/data" --skip-test-db \
        --auth-root-authentication-method=normal >"$dir.log" 2>&1 ||
        { cat "$dir.log" >&2; fail "mariadb-install-db failed"; }
    for _ in 1 2 3; do
        port=$(free_port)
        as mysql mariadbd --no-defaults --datadir="$dir/data" --port="$port" \
            --bind-address=127.0.0.1 --socket="$dir/mariadb.sock" --pid-file="$dir/mariadb.pid" \
            --skip-name-resolve --skip-log-bin --max-connections=500 \
            --innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync \
            --innodb-buffer-pool-size=64M --innodb-log-file-size=32M \
            >>"$dir.log" 2>&1 </dev/null &
        if wait_for MariaDB $! "$dir.log" mariadb-admin --no-defaults -S "$dir/mariadb.sock" -u root ping; then
            mariadb --no-defaults -S "$dir/mariadb.sock" -u root -e \
                "create user tianqi@127.0.0.1 identified by 'tianqi'; grant all on *.* to tianqi@127.0.0.1 with grant option"
            echo "mysql://tianqi:tianqi@127.0.0.1:$port/mysql" >"$root/mysql.url"
            return 0
        fi
    done
    fail "MariaDB did not start; see $dir.log"
}

print_env() {
    alive "$root/postgres/data/postmaster.pid" >/dev/null || fail "PostgreSQL is not running; use start"
    alive "$root/mariadb/mariadb.pid" >/dev/null || fail "MariaDB is not running; use start"
    echo "export TIANQI_TEST_POSTGRES_URL=$(cat "$root/postgres.url")"
    echo "export TIANQI_TEST_MYSQL_URL=$(cat "$root/mysql.url")"
}

stop() {
    local file pid
    for file in "$root/postgres/data/postmaster.pid" "$root/mariadb/mariadb.pid"; do
        pid=$(alive "$file") || continue
        # To PostgreSQL this means "at once", to MariaDB "shut down".
        kill -QUIT "$pid" 2>/dev/null || true
        for _ in $(seq 150); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
    done
    rm -rf "$root"
}

case ${1:-} in
start)
    install -d -m 0755 "$root"
    exec 9>"$root/lock"
    flock 9
    # The databases must not inherit the lock, nor hold the caller's pipe open.
    start_postgres 9>&-
    start_mariadb 9>&-
    # Unlocked by name: the shells that wait for the databases hold a copy of the lock's file.
    flock -u 9
    print_env
    ;;
env) print_env ;;
stop) stop ;;
*) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
