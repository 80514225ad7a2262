"""Serving: the process of `flower-split silo serve`, with its signals and what systemd is told."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from flower_split.apps.process import set_up_process
from flower_split.apps.services.systemd import tell_systemd
from flower_split.apps.silo_service.handlers import HANDLERS
from flower_split.apps.silo_service.holdings import Holdings
from flower_split.apps.silo_service.service import Service
from flower_split.apps.silo_service.socket_folder import SOCKET, listening

logger = logging.getLogger(__name__)


def serve(folder: Path, *, most_model_bytes: int, idle_seconds: float) -> None:
    """Serve the SuperNode whose node config has `folder` as its service-dir, until SIGTERM.

    To be called in the main thread.

    Args:
        folder: Made for this user alone if missing.
        most_model_bytes: Of the models that are kept between messages.
        idle_seconds: After the last message, before all that is kept is given back.

    Raises:
        ServiceError: another service has the folder, or it cannot be used.
        UnsafeFolderError: it is not this user's alone.
    """
    set_up_process()
    with listening(folder) as listener:
        service = Service(
            listener,
            HANDLERS,
            Holdings(most_model_bytes),
            interrupt=_interrupt,
            give_up=_give_up,
            idle_seconds=idle_seconds,
        )
        with _signals(service):
            logger.info("the silo service listens at %s", folder / SOCKET)
            tell_systemd("READY=1")
            service.run()
    logger.info("the silo service has ended")


@contextmanager
def _signals(service: Service) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        tell_systemd("STOPPING=1")
        service.stop()

    def interrupt(number: int, frame: FrameType | None) -> None:
        service.interrupting()

    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGUSR1: interrupt}
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _interrupt() -> None:
    """Have the handler of SIGUSR1 called in the main thread, also while that waits for a lock."""
    number = threading.main_thread().ident
    if number is not None:
        signal.pthread_kill(number, signal.SIGUSR1)


def _give_up() -> None:
    """End the process whose main thread does not come back; its socket is gone by now."""
    logger.error("the silo service is ended in the middle of a message")
    sys.stderr.flush()
    os._exit(1)
