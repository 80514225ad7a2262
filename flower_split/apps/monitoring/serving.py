"""Serving the live page until Ctrl-C: the port, the token, and what is said where one is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from flower_split.apps.monitoring.access import Access, read_token
from flower_split.apps.monitoring.listening import listening
from flower_split.config.address import Address
from flower_split.errors import ConfigError, DataError

if TYPE_CHECKING:
    from flower_split.apps.monitoring.server import Watched

EXTRA = (
    "the live page needs prometheus-client, starlette and uvicorn: pip install "
    "'flower-split[monitor]'. flower-split report writes the report of a run without them"
)


def serve(
    run: Path | str,
    address: str,
    *,
    token_file: Path | None = None,
    run_token_file: Path | None = None,
    say: Callable[[str], None] = print,
    name: str = "--address",
    lasts: Callable[[], None] | None = None,
) -> None:
    """Serve the page of a run until the process is interrupted.

    Args:
        run: The run's output folder, whose run may not have begun; or `host:port` of a monitor that
            shows it elsewhere.
        address: `host:port` to listen on; port 0 takes a free one.
        token_file: File with the token that readers need. None asks for none on loopback, and
            elsewhere has one made for this user.
        run_token_file: File with the token of the monitor elsewhere.
        say: Told the address, for the user.
        name: What errors call the address.
        lasts: Returns when serving is to end by itself. The address is then told without the
            token, for it is a log that has it.

    Raises:
        DataError: there is no such folder.
        ConfigError: the address cannot be listened on, no monitor answers elsewhere, or a package
            is missing.
        StateError: a token file cannot be used.
    """
    try:
        from flower_split.apps.monitoring.server import MonitorServer, serve_on
    except ImportError as error:
        raise ConfigError(EXTRA) from error

    place = Address.parse(address, what=name)
    watched = _watched(run, run_token_file, say)
    token = ""
    if token_file is not None or not place.is_loopback:
        token, file = read_token(token_file)
        say(f"readers need the token in {file}")
    with listening(place, name) as bound:
        shown = Address(place.host, bound.getsockname()[1])
        told = f"?token={quote(token)}" if token and lasts is None else ""
        say(f"http://{shown}/{told}")
        if not place.is_loopback:
            say("that is plain HTTP: where others share the network, use an SSH tunnel instead")
        monitor = MonitorServer(watched, Access(token))
        serve_on(bound, monitor, lasts=lasts)


def _watched(run: Path | str, token_file: Path | None, say: Callable[[str], None]) -> "Watched":
    from flower_split.apps.monitoring.watched_monitor import WatchedMonitor
    from flower_split.apps.monitoring.watched_run import WatchedRun

    folder = Path(run)
    if folder.is_dir():
        return WatchedRun(folder.resolve())
    try:
        elsewhere = Address.parse(str(run), what="RUN")
    except ConfigError:
        raise DataError(
            f"there is no folder {run}: name the output folder of a run, or host:port of a monitor"
        ) from None
    if token_file is not None and not token_file.exists():
        raise DataError(f"there is no file {token_file} with the token of the monitor at {run}")
    token = read_token(token_file)[0] if token_file is not None else ""
    if token and not elsewhere.is_loopback:
        say(
            f"{elsewhere} is asked over plain HTTP: where others share the network, use an "
            "SSH tunnel"
        )
    return WatchedMonitor(elsewhere, token)
