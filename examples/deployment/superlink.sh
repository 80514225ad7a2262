#!/usr/bin/env bash
# On the server: start the SuperLink, with TLS, and for registered SuperNodes only. It runs in the
# foreground until Ctrl-C or stop.sh.
set -euo pipefail
# shellcheck source=common.sh source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

for file in ca.crt server.crt server.key; do
    need "$folder/keys/$file" "make it with flower-split keys"
done

remember superlink
cd "$folder"
exec flower-superlink \
    --host "$BIND_HOST" --port "$SUPERLINK_PORT" \
    --ssl-ca-certfile keys/ca.crt --ssl-certfile keys/server.crt --ssl-keyfile keys/server.key \
    --enable-supernode-auth \
    --disable-runtime-dependency-installation \
    --database "$folder/superlink.sqlite"
