"""The exchange of messages, over grids of both shapes that Flower's `pull_messages` has."""

import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from in_process_grid import FIRST_NODE, InProcessGrid

from flower_split.strategies.hosting.exchange import exchange
from flower_split.strategies.hosting.roster import OrderedGrid


class UpTo142(InProcessGrid):
    """As Flower's grids are up to 1.42."""

    def pull_messages(self, message_ids):
        return super().pull_messages(message_ids)


class From143(InProcessGrid):
    """As Flower's grids are from 1.43 on."""

    def pull_messages(self, reply_to_message_ids=None, *, message_ids=None):
        return super().pull_messages(reply_to_message_ids, message_ids=message_ids)


def answering():
    app = ClientApp()

    @app.query()
    def query(message, context):
        return Message(RecordDict({"config": ConfigRecord({"heard": True})}), reply_to=message)

    return app


def messages(grid):
    content = RecordDict({"config": ConfigRecord({"asked": True})})
    return [Message(content, node, "query") for node in grid.get_node_ids()]


@pytest.mark.parametrize("shape", [UpTo142, From143])
@pytest.mark.parametrize("wrap", [lambda grid: grid, lambda grid: OrderedGrid(grid, {})])
def test_every_reply_comes_through_a_grid_of_either_shape(shape, wrap):
    grid = wrap(shape(answering(), 3))
    came = exchange(grid, messages(grid), 10.0)
    assert sorted(reply.metadata.src_node_id for reply in came) == [
        FIRST_NODE + i for i in range(3)
    ]


@pytest.mark.parametrize(
    ("shape", "pull"),
    [
        (UpTo142, lambda grid, ids: grid.pull_messages(ids)),
        (UpTo142, lambda grid, ids: grid.pull_messages(message_ids=ids)),
        (From143, lambda grid, ids: grid.pull_messages(ids)),
        (From143, lambda grid, ids: grid.pull_messages(message_ids=ids)),
        (From143, lambda grid, ids: grid.pull_messages(reply_to_message_ids=ids)),
        (From143, lambda grid, _: grid.pull_messages()),
    ],
)
def test_an_ordered_grid_pulls_as_the_one_that_it_orders(shape, pull):
    grid = OrderedGrid(shape(answering(), 2), {})
    ids = list(grid.push_messages(messages(grid)))
    assert {reply.metadata.reply_to_message_id for reply in pull(grid, ids)} == set(ids)
    assert list(pull(grid, ids)) == []


def lose_the_first(reply):
    return [] if reply.metadata.src_node_id == FIRST_NODE else [reply]


def test_a_lost_reply_is_not_waited_for_once_all_others_came():
    grid = InProcessGrid(answering(), 3, tamper=lose_the_first)
    asked = messages(grid)
    started = time.monotonic()
    came = exchange(grid, asked, 600.0, is_lost=lambda i: i == asked[0].metadata.message_id)
    assert time.monotonic() - started < 60.0
    assert sorted(reply.metadata.src_node_id for reply in came) == [FIRST_NODE + 1, FIRST_NODE + 2]


def test_what_came_during_a_long_look_is_fetched_by_another_before_it_counts_as_lost():
    looks = []

    class Slow(InProcessGrid):
        def pull_messages(self, message_ids):
            looks.append(sorted(message_ids))
            if len(looks) > 1:
                return super().pull_messages(message_ids)
            time.sleep(0.2)
            return []

    grid = Slow(answering(), 2, tamper=lose_the_first)
    late = time.monotonic() + 0.1
    came = exchange(grid, messages(grid), 600.0, is_lost=lambda _: time.monotonic() > late)
    assert sorted(reply.metadata.src_node_id for reply in came) == [FIRST_NODE + 1]
    assert len(looks) == 2
