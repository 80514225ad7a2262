"""An answer made in a thread of its own, so that its text can be taken, and it be stopped, here."""

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias

from flower_split.apps.using.tuned_model import Answer

_Item: TypeAlias = str | Answer | BaseException

Pieces: TypeAlias = Generator[str, None, Answer]


def pieces_of(answer: Callable[..., Answer], ids: Sequence[int], *given: Any) -> Pieces:
    """The text of an answer as it comes; returns the answer.

    Closed early, or left by an exception such as `KeyboardInterrupt`, it ends the answer after the
    token in the making: no session is cut off in the midst of a call to the trunk.

    Args:
        answer: `TunedModel.answer`.
        ids: Of the prompt.
        given: Its other positional arguments.
    """
    came: queue.SimpleQueue[_Item] = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        try:
            came.put(answer(ids, *given, on_text=came.put, is_stopped=stop.is_set))
        except BaseException as error:
            came.put(error)

    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()  # which an interrupt can leave, too, and the thread may have started
        while isinstance(item := came.get(), str):
            yield item
        if isinstance(item, BaseException):
            raise item
        return item
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()
