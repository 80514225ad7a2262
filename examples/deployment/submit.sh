#!/usr/bin/env bash
# On the server: submit the run, and wait for its end. The run goes on when this is interrupted.
#   submit.sh [KEY=VALUE …]         such as num-server-rounds=5 'model.name="/models/qwen"'
set -euo pipefail
# shellcheck source=common.sh source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

connect
output=${OUTPUT:-$folder/output}
# One text with all of it: of two -c that name the same section, Flower takes the last only.
into=$(quoted "$output")
if [ -n "${TRUNK_HOST:-}" ]; then
    keys=$folder/keys
    need "$keys/trunk-ca.crt" "copy it from the trunk's machine, whose ca.crt it is"
    need "$keys/server-strategy.crt" "make it with flower-split keys strategy"
    trunk="trunk.service=\"$TRUNK_HOST:$CONTROL_PORT\""
    trunk="$trunk trunk.service-ca=$(quoted "$keys/trunk-ca.crt")"
    trunk="$trunk trunk.service-certificate=$(quoted "$keys/server-strategy.crt")"
    trunk="$trunk trunk.service-key=$(quoted "$keys/server-strategy.key")"
else
    trunk="trunk.host=\"$BIND_HOST\" trunk.port=$TRUNK_PORT"
    trunk="$trunk trunk.advertise=\"$SERVER_HOST:$TRUNK_PORT\""
fi
run_config="$trunk output-dir=$into $*"
run_id=$(
    flwr run "$here/app" deployment --format json -c "$run_config" |
        python3 "$here/answer.py" run-id
)
printf 'run %s was submitted; it is stopped by: FLWR_HOME=%q %q stop %s deployment\n' \
    "$run_id" "$FLWR_HOME" "$(command -v flwr)" "$run_id"

# The exit status of `flwr run --stream` is 0 even when the run fails, so the list is asked.
status=
while [ "${status#finished}" = "$status" ]; do
    sleep 2
    listed=$(flwr list deployment --run-id "$run_id" --format json)
    status=$(echo "$listed" | python3 "$here/answer.py" status)
done

if [ "$status" != finished:completed ]; then
    flwr log "$run_id" deployment --show >&2 || true
    echo "the run ended as $status: $(echo "$listed" | python3 "$here/answer.py" status-details)" >&2
    exit 1
fi
echo "the run completed; its adapter and result are in $output"
