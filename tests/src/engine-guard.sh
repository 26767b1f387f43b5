#!/bin/sh
# Ends one test engine and removes all that it left on the machine: processes, mounts, cgroups,
# bridges, firewall rules, files. Started by dockerd.rs beside every engine; it waits until its
# standard input closes, which also happens when the test process is killed.
#
#   engine-guard.sh ROOT SLOT [now]
#
# Everything is found by what only this engine has: its root folder, its cgroup parent
# (tianqi-test-SLOT) and its address pools (10.231.SLOT.0/24 and 10.232.SLOT.0/24).
root=$1
slot=$2
[ "${3:-}" = now ] || cat >/dev/null
trap '' INT TERM HUP

# Sends KILL to the engine's own programs that name the root folder on their command line.
kill_programs() {
    for process in /proc/[0-9]*; do
        exe=$(readlink "$process/exe" 2>/dev/null) || continue
        case ${exe##*/} in
        "$1"*) ;;
        *) continue ;;
        esac
        if tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep -qF -- "$root/"; then
            kill -KILL "${process#/proc/}" 2>/dev/null
        fi
    done
}

kill_programs dockerd
kill_programs containerd

# Containers outlive the engine (live-restore), so they are ended by their cgroup.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    pids=$(find /sys/fs/cgroup -path "*/tianqi-test-$slot/*" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u)
    [ -n "$pids" ] || break
    # shellcheck disable=SC2086
    kill -KILL $pids 2>/dev/null
    sleep 0.1
done

for _ in 1 2 3; do
    mounts=$(awk -v root="$root/" 'index($2, root) == 1 {print $2}' /proc/mounts | sort -r)
    [ -n "$mounts" ] || break
    echo "$mounts" | while read -r mount; do umount -l "$mount" 2>/dev/null; done
done
find /sys/fs/cgroup -depth -type d \
    \( -path "*/tianqi-test-$slot" -o -path "*/tianqi-test-$slot/*" \) -exec rmdir {} + 2>/dev/null

bridges=$(ip -o -4 addr show 2>/dev/null |
    awk -v a="10.231.$slot." -v b="10.232.$slot." 'index($4, a) == 1 || index($4, b) == 1 {print $2}')
for bridge in $bridges; do
    ip link delete "$bridge" 2>/dev/null
done
# Rules and chains that name these bridges or pools; deleting a chain waits for its rules.
for command in iptables ip6tables; do
    for table in filter nat raw mangle; do
        {
            # Whole words: tqinst1 is not tqinst12.
            for bridge in $bridges "tqtest$slot" "tqinst$slot"; do
                $command -w -t "$table" -S 2>/dev/null | grep -Fw -e "$bridge"
            done
            $command -w -t "$table" -S 2>/dev/null | grep -F -e "10.231.$slot." -e "10.232.$slot."
        } | sort -u | sed -n -e 's/^-A /-D /p' -e 's/^-N /-X /p' | sort | while read -r rule; do
            # As iptables prints them, these rules hold no quoted spaces; they split into words.
            # shellcheck disable=SC2086
            $command -w -t "$table" $rule 2>/dev/null
        done
    done
done

for _ in 1 2 3 4 5; do
    rm -rf "$root" 2>/dev/null && break
    sleep 0.2
done
exit 0
