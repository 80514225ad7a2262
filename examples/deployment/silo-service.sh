#!/usr/bin/env bash
# At a silo: start the service that keeps model and data between the SuperNode's messages, with
# SILO_SERVICE set. It runs in the foreground until Ctrl-C or stop.sh; without it, all works as well.
#   silo-service.sh NAME
set -euo pipefail
name=${1:?usage: silo-service.sh NAME}
# shellcheck source=common.sh source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

case $name in
    *[!A-Za-z0-9._-]*)
        echo "$0: a silo's name has letters, digits, dots, hyphens and underscores only" >&2
        exit 1
        ;;
esac
remember "service-$name"
cd "$folder"
exec flower-split silo serve "$folder/service/$name"
