"""A job: one message in the service, from the ClientApp's word to begin to what became of it."""

import threading
from dataclasses import dataclass, field

from flwr.app import Context, Message

from flower_split.proto.silo_pb2 import Answer, Failed


@dataclass(eq=False, kw_only=True)
class Job:
    """One message, done in the service's main thread; its ClientApp waits in another one."""

    message: Message
    context: Context
    begun: float
    """When the ClientApp's process was started, in seconds since the epoch."""
    ended: threading.Event = field(default_factory=threading.Event)
    interrupted: str = ""
    """Why it is to end before it is done; empty for nothing."""
    answer: Answer | None = None
    """The last one to the ClientApp; there when it has ended."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def title(self) -> str:
        """What it is, for status and log."""
        return f"{self.message.metadata.message_type} of run {self.message.metadata.run_id}"

    def end(self, answer: Answer) -> bool:
        """End it with `answer`, unless it has ended; whether that was so."""
        with self._lock:
            if self.answer is not None:
                return False
            self.answer = answer
        self.ended.set()
        return True

    def fail(self, reason: str) -> bool:
        """End it without a reply, unless it has ended; whether that was so."""
        return self.end(Answer(failed=Failed(reason=reason)))
