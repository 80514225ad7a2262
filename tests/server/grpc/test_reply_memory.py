"""What a trunk remembers of its replies."""

import pytest
import torch
from affine_backend import forward, spec

from flower_split.errors import WireError
from flower_split.server.grpc.reply_memory import ReplyMemory
from flower_split.transport.grpc.replies import EncodedReply, encode_reply
from flower_split.transport.messages import StepReply, StepRequest
from flower_split.transport.rules import HopRules

RULES = HopRules(spec())


def reply(number: int) -> EncodedReply:
    request = StepRequest(step=number, learning_rate=0.1)
    return encode_reply(request, StepReply(), RULES)


def filled(count: int, most: int = 100, most_bytes: int | None = None) -> ReplyMemory:
    memory = ReplyMemory(most, most_bytes)
    for number in range(count):
        memory.add(reply(number))
    return memory


def rest(memory: ReplyMemory) -> list[int]:
    found = []
    while (one := memory.next()) is not None:
        found.append(one.head.step.step)
    return found


def test_replies_are_sent_in_order_and_again_from_any_on() -> None:
    memory = filled(4)
    assert memory.num_unsent == 4 and rest(memory) == [0, 1, 2, 3]
    for received in (0, 2, 4):
        assert memory.has_from(received)
        memory.rewind(received)
        assert rest(memory) == list(range(received, 4))
    assert not memory.has_from(3)  # it has told that it has them


def test_what_was_acknowledged_is_forgotten() -> None:
    memory = filled(3)
    assert memory.next() is not None and memory.next() is not None
    memory.acknowledge(1)
    assert not memory.has_from(0) and memory.has_from(1)
    memory.acknowledge(0)  # an older word changes nothing
    assert rest(memory) == [2]


@pytest.mark.parametrize("received", [2, 2**63])
def test_nobody_has_what_was_not_sent(received: int) -> None:
    memory = filled(3)
    memory.next()
    for told in (memory.acknowledge, memory.has_from):
        with pytest.raises(WireError, match=f"{received} replies received, and 1 were sent"):
            told(received)


def test_beyond_the_bound_the_oldest_go_that_were_sent() -> None:
    memory = filled(2, most=2)
    memory.add(reply(2))
    assert memory.has_from(0)  # nobody was sent the first yet
    assert rest(memory) == [0, 1, 2]
    memory.add(reply(3))
    assert not memory.has_from(1) and memory.has_from(2)


def test_the_newest_is_kept_whatever_it_has() -> None:
    memory = ReplyMemory(100, 4096)
    large = encode_reply(forward(0), torch.zeros(2, 64, 64), RULES)
    for _ in range(2):
        memory.add(large)
        assert memory.next() is large
    assert not memory.has_from(0) and memory.has_from(1)


def test_frames_can_be_made_again() -> None:
    large = encode_reply(forward(0), torch.zeros(2, 512, 512), RULES)
    first, second = list(large.frames()), list(large.frames())
    assert first == second and len(first) == 2
    assert not large.head.chunks
