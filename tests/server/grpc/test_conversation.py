"""Which of several streams has the session, when they come while one of them gives it up."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from affine_backend import AffineBackend, spec

from flower_split.server.grpc.admitted import AdmittedSession
from flower_split.server.grpc.conversation import Conversation, TakenOverError, Terms
from flower_split.server.grpc.progress import Deadlines
from flower_split.server.grpc.reply_memory import ReplyMemory
from flower_split.transport.grpc.resuming import START, ResumePoint

BEGIN = ResumePoint(received=0, first=0, digests=(START,))


class FakeStream:
    """Carries nothing until it is stopped, and then does what a test wants first."""

    def __init__(self, at_last: Callable[[], object] = lambda: None) -> None:
        self.gone = asyncio.Event()
        self.serves = asyncio.Event()
        self._at_last = at_last
        self._stopped = asyncio.Event()
        self._reason: Exception = RuntimeError()

    async def serve(self) -> None:
        self.serves.set()
        await self._stopped.wait()
        self._at_last()
        raise self._reason

    def stop(self, reason: Exception) -> None:
        self._reason = reason
        self._stopped.set()

    def wake(self) -> None:
        pass


def test_a_stream_that_waited_does_not_stop_a_later_one() -> None:
    """The later one comes just as the first is gone, before the one that waited for that knows."""

    async def play() -> None:
        backend = AffineBackend()
        with ThreadPoolExecutor(1) as codecs:
            conversation = Conversation(
                AdmittedSession(backend, spec(), None, None),
                spec(),
                None,
                ReplyMemory(8, None),
                Terms(deadlines=Deadlines(), hold=600.0, codecs=codecs),
                lambda ended: None,
            )
            tasks: list[asyncio.Task[None]] = []

            def carried(stream: FakeStream, attempt: int) -> None:
                tasks.append(asyncio.create_task(conversation.carry(stream, attempt, BEGIN)))

            last = FakeStream()
            first = FakeStream(lambda: carried(last, 3))
            carried(first, 1)
            await first.serves.wait()
            carried(FakeStream(), 2)
            async with asyncio.timeout(10):
                await last.serves.wait()
                for overtaken in tasks[:2]:
                    with pytest.raises(TakenOverError):
                        await overtaken
            await asyncio.sleep(0.05)
            assert not tasks[2].done()
            conversation.end(None)
            last.stop(TakenOverError())
            await conversation.closed.wait()
            with pytest.raises(TakenOverError):
                await tasks[2]
        assert backend.count("close") == 1

    asyncio.run(play())
