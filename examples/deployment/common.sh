# shellcheck shell=bash
# What all scripts here begin with: settings, folders, Flower's environment. Sourced, never run.

# Paths may have spaces, quotes and what else a name may have. CDPATH would make `cd` print.
unset CDPATH
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

# A text as TOML, such as Flower reads it in -c, in --node-config and in its own configuration.
quoted() {
    case $1 in
        *$'\n'*) ;;
        *\'*)
            case $1 in
                *[\"\\]*) ;;
                *)
                    printf '"%s"' "$1"
                    return
                    ;;
            esac
            ;;
        *)
            printf "'%s'" "$1"
            return
            ;;
    esac
    echo "$0: Flower takes no text with both kinds of quotes, with an apostrophe and a backslash," \
        "or with a line break: $1" >&2
    return 1
}

# Tell flwr where the SuperLink is, under the name "deployment".
connect() {
    need "$folder/keys/ca.crt" "copy it from the server"
    local ca
    ca=$(quoted "$folder/keys/ca.crt")
    cat >"$FLWR_HOME/config.toml" <<END
[superlink]
default = "deployment"

[superlink.deployment]
address = "$SERVER_HOST:$SUPERLINK_PORT"
root-certificates = $ca
END
}
