#!/usr/bin/env bash
# On the trunk's machine, with TRUNK_HOST set: start the service that hosts the trunk for the runs of
# the SuperLink. It runs in the foreground until Ctrl-C or stop.sh.
#   trunk-service.sh MODEL [OPTION …]       such as Qwen/Qwen3-0.6B --bottom 2 --top 2
# and, on a machine with several GPUs, --devices cuda:0,cuda:1
set -euo pipefail
: "${1:?usage: trunk-service.sh MODEL [OPTION …]}"
# shellcheck source=common.sh source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

: "${TRUNK_HOST:?set it in settings.env, to the name at which silos reach this machine}"
keys=$folder/keys
need "$keys/server.crt" "make it with flower-split keys server"
need "$keys/server-strategy.crt" "copy it from the server"
need "$keys/strategy-ca.crt" "copy it from the server, whose ca.crt it is"
remember trunk-service
cd "$folder"
exec flower-split trunk serve "$@" \
    --host "$BIND_HOST" --port "$TRUNK_PORT" --advertise "$TRUNK_HOST:$TRUNK_PORT" \
    --control-port "$CONTROL_PORT" --health-port 0 --grace-seconds 20 \
    --certificate "$keys/server.crt" --private-key "$keys/server.key" --ca "$keys/ca.crt" \
    --strategy "$keys/server-strategy.crt" --strategy-ca "$keys/strategy-ca.crt"
