#!/usr/bin/env bash
# On every machine: stop what superlink.sh, supernode.sh, silo-service.sh and trunk-service.sh started
# here, and wait for its end.
set -euo pipefail
# shellcheck source=common.sh source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

# Flower's programs stop their own children, which takes seconds; no signal is sent to a process
# that got the number of one that has long ended.
alive() {
    [ -r "/proc/$1/cmdline" ] && tr '\0' ' ' <"/proc/$1/cmdline" | grep -q 'flower-super\|flower-split silo\|flower-split trunk'
}

failed=0
for file in "$folder"/run/supernode-*.pid "$folder"/run/service-*.pid \
    "$folder"/run/superlink.pid "$folder"/run/trunk-service.pid; do
    [ -e "$file" ] || continue
    pid=$(cat "$file")
    if alive "$pid"; then
        echo "stopping $(basename "$file" .pid)"
        kill -TERM "$pid" || true
        for _ in $(seq 150); do
            alive "$pid" || break
            sleep 0.2
        done
        if alive "$pid"; then
            echo "$(basename "$file" .pid) did not stop within 30 s: kill -KILL $pid" >&2
            failed=1
            continue
        fi
    fi
    rm -f "$file"
done
exit "$failed"
