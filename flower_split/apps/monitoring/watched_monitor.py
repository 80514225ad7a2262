"""A run that another machine's monitor shows: its parts as they come over its stream."""

import json
from threading import Event, Thread

import httpx

from flower_split.apps.monitoring.server import BEAT, PARTS
from flower_split.config.address import Address
from flower_split.errors import ConfigError

CONNECTS = 10.0
"""Seconds that a connection may take, and the first parts after it."""
SILENT = 3 * BEAT
"""Seconds without a byte after which a stream is given up."""
AGAIN = 1.0
"""Seconds between two tries."""
MOST_BYTES = 16 << 20
"""Of one event: far beyond what a page of the largest run takes."""


class WatchedMonitor:
    """Follows a monitor's stream in a thread of its own, and tries again when it ends.

    Args:
        address: Where the monitor listens.
        token: That it asks its readers for; empty where it asks for none.

    Raises:
        ConfigError: nothing answers there, it is no monitor, or the token is not its own.
    """

    def __init__(self, address: Address, token: str = "") -> None:
        self.name = str(address)
        self._address = address
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._parts: dict[str, str] = {}
        self._lost = False
        self._problem: ConfigError | None = None
        self._closed, self._told = Event(), Event()
        Thread(target=self._follow, name="watched-monitor", daemon=True).start()
        self._told.wait(2 * CONNECTS)
        if not self._parts:
            self.close()
            raise self._problem or ConfigError(
                f"the monitor at {address} connects and tells nothing: is it flower-split's?"
            )

    def parts(self) -> dict[str, str]:
        """The parts of the page as they came last."""
        if not self._lost:
            return self._parts
        lost = f"The monitor at {self.name} does not answer: trying again."
        return {**self._parts, "top": f'<p class="bad">{lost}</p>{self._parts["top"]}'}

    def metrics(self) -> None:
        """None: they are asked for at the monitor itself."""

    def close(self) -> None:
        """Follow it no longer."""
        self._closed.set()

    def _follow(self) -> None:
        while not self._closed.is_set():
            try:
                self._read()
                self._problem = ConfigError(f"the monitor at {self.name} ended its stream")
            except httpx.HTTPError as error:
                why = str(error) or type(error).__name__
                self._problem = ConfigError(
                    f"no monitor answers at {self.name}: {why}. `monitor = true` in the run config "
                    "serves one beside the run, on monitor-address"
                )
            except ConfigError as error:
                self._problem = error
            self._lost = True
            self._told.set()
            self._closed.wait(AGAIN)

    def _read(self) -> None:
        timeout = httpx.Timeout(CONNECTS, read=SILENT if self._parts else CONNECTS)
        url = f"http://{self._address}/stream"
        with (
            httpx.Client(timeout=timeout, headers=self._headers, trust_env=False) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code == httpx.codes.FORBIDDEN:
                raise ConfigError(
                    f"the monitor at {self.name} asks for its token: copy the file that it named, "
                    "and name the copy by --run-token-file"
                )
            kind = response.headers.get("content-type", "")
            if not response.is_success or not kind.startswith("text/event-stream"):
                raise ConfigError(
                    f"what answers at {self.name} is no monitor of flower-split "
                    f"(status {response.status_code})"
                )
            held, looked = bytearray(), 0
            for chunk in response.iter_bytes():
                held += chunk
                while (end := held.find(b"\n\n", looked)) >= 0:
                    self._take(bytes(held[:end]))
                    del held[: end + 2]
                    looked = 0
                looked = max(0, len(held) - 1)
                if looked > MOST_BYTES:
                    raise ConfigError(f"the monitor at {self.name} tells more than a page holds")
                if self._closed.is_set():
                    return

    def _take(self, event: bytes) -> None:
        kind, _, data = event.partition(b"\n")
        if kind != b"event: parts":
            return
        try:
            told = json.loads(data.removeprefix(b"data: "))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the monitor at {self.name} tells no parts: {error}") from error
        changed = {
            name: html.encode("utf-8", "replace").decode("utf-8")
            for name, html in (told.items() if isinstance(told, dict) else ())
            if name in PARTS and isinstance(html, str)
        }
        parts = {**self._parts, **changed}
        if set(parts) != set(PARTS):
            raise ConfigError(f"the monitor at {self.name} is of another version of flower-split")
        self._parts, self._lost = parts, False
        self._told.set()
