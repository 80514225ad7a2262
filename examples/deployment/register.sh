#!/usr/bin/env bash
# On the server, once for each silo, while the SuperLink runs: let the owner of a public key in.
#   register.sh NAME PUBLIC_KEY_FILE
set -euo pipefail
# shellcheck source=common.sh source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

name=${1:?usage: register.sh NAME PUBLIC_KEY_FILE}
key=${2:?usage: register.sh NAME PUBLIC_KEY_FILE}
need "$key" "ask the silo for its .pub file, never for its .key file"

connect
flwr supernode register "$key" deployment --name "$name"
