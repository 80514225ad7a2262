# shellcheck shell=bash
# What all scripts here begin with: settings, folders, Flower's environment. Sourced, never run.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
settings=${DEPLOYMENT_SETTINGS:-$here/settings.env}
# shellcheck source=settings.env source-path=SCRIPTDIR
. "$settings"

# Whatever is written may hold keys or data: for this user only.
umask 077
case ${FOLDER:-state} in
    /*) folder=$FOLDER ;;
    *) folder=$(cd "$(dirname "$settings")" && pwd)/${FOLDER:-state} ;;
esac
mkdir -p "$folder/run" "$folder/keys"

# No telemetry, no look-ups on the internet, and no packages installed on behalf of an app.
export FLWR_HOME=$folder/flower
export FLWR_TELEMETRY_ENABLED=0
export FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export PYTHONUNBUFFERED=1
export PATH=${BIN:+$BIN:}$PATH
mkdir -p "$FLWR_HOME"

# The script's own process becomes the program's, so stop.sh finds it by this number.
remember() {
    echo $$ >"$folder/run/$1.pid"
}

need() {
    if [ ! -r "$1" ]; then
        echo "$0: $1 is missing or not readable: $2" >&2
        exit 1
    fi
}

# Tell flwr where the SuperLink is, under the name "deployment".
connect() {
    need "$folder/keys/ca.crt" "copy it from the server"
    cat >"$FLWR_HOME/config.toml" <<END
[superlink]
default = "deployment"

[superlink.deployment]
address = "$SERVER_HOST:$SUPERLINK_PORT"
root-certificates = "$folder/keys/ca.crt"
END
}
