"""Turns on one device: one at a time, in the order of asking."""

import threading

from hosting import eventually

from flower_split.server.compute.turns import DeviceTurns


def test_who_asked_first_is_next():
    turns, order, threads = DeviceTurns(), [], []

    def take(name):
        with turns:
            order.append(name)

    with turns:
        for number in range(5):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            before = number + 1
            assert eventually(lambda wanted=before: turns.waiting == wanted)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == list(range(5))
