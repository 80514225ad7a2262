#!/usr/bin/env bash
# At a silo: start the SuperNode, which waits for runs and trains on the silo's own data. It runs
# in the foreground until Ctrl-C or stop.sh.
#   supernode.sh NAME DATA_FILE
set -euo pipefail
data=${2:?usage: supernode.sh NAME DATA_FILE}
case $data in
    /*) ;;
    *) data=$PWD/$data ;;
esac
# shellcheck source=common.sh source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

name=$1
case $name in
    *[!A-Za-z0-9._-]*)
        echo "$0: a silo's name has letters, digits, dots, hyphens and underscores only" >&2
        exit 1
        ;;
esac
need "$folder/keys/ca.crt" "copy it from the server"
need "$folder/keys/$name.key" "make it with flower-split keys silo"
need "$data" "it is the silo's own data, a .jsonl or .txt file"

# Each in a line of its own, so that one that cannot be passed on ends the script.
own_data=$(quoted "$data")
state=$(quoted "$folder/state")
cache=$(quoted "$folder/cache")
service=
if [ -n "${SILO_SERVICE:-}" ]; then
    at=$(quoted "$folder/service/$name")
    service=" service-dir=$at"
fi
remember "supernode-$name"
cd "$folder"
exec flower-supernode \
    --superlink "$SERVER_HOST:$SUPERLINK_PORT" \
    --root-certificates keys/ca.crt \
    --auth-supernode-private-key "keys/$name.key" \
    --host 127.0.0.1 --port "$RUNTIME_PORT" \
    --node-config "silo=\"$name\" data-path=$own_data state-dir=$state cache-dir=$cache$service"
