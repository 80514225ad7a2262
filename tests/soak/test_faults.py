"""The soak's faults, done to processes that only sleep: each is done, told, and undone."""

import random
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from hosting import eventually
from soak_faults import WEIGHTS, Faults

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]


class Sleepers:
    """As a federation of one silo, whose node and app sleep."""

    def __init__(self):
        self.nodes = [None]
        self.processes, self.started = {}, []
        self.start_node(0)
        self.app = subprocess.Popen(SLEEPS)

    def start_node(self, number):
        self.started.append(number)
        self.processes[f"silo{number}"] = subprocess.Popen(SLEEPS, start_new_session=True)

    def members(self, part=""):
        return [psutil.Process(self.app.pid)] if self.app.poll() is None else []

    def close(self):
        for process in (self.app, *self.processes.values()):
            process.kill()
            process.wait()


@pytest.fixture
def sleepers():
    made = Sleepers()
    yield made
    made.close()


def faults(sleepers, what, **proxy):
    stand_in = SimpleNamespace(connections=2, cut=lambda: 2, silence=lambda seconds: None, **proxy)
    return Faults(sleepers, stand_in, random.Random(1), weights={what: 1})


@pytest.mark.parametrize("what", WEIGHTS)
def test_every_fault_is_done_and_told(sleepers, what):
    one = faults(sleepers, what)
    assert one.disturb().startswith(what)
    assert [told.startswith(what) for _, told in one.done] == [True]
    one.undo_due(everything=True)


@pytest.mark.parametrize("whom", ["a silo's app", "the trunk"])
def test_what_was_frozen_goes_on(sleepers, whom):
    one, process = faults(sleepers, f"freeze {whom}"), psutil.Process(sleepers.app.pid)
    one.disturb()
    assert eventually(lambda: process.status() == psutil.STATUS_STOPPED)
    one.undo_due()
    assert process.status() == psutil.STATUS_STOPPED, "not before it is due"
    one.undo_due(everything=True)
    assert eventually(lambda: process.status() != psutil.STATUS_STOPPED)


def test_a_killed_node_comes_back(sleepers):
    one, process = faults(sleepers, "kill a silo's node"), sleepers.processes["silo0"]
    one.disturb()
    assert process.poll() is not None and sleepers.started == [0]
    one.undo_due(everything=True)
    assert sleepers.started == [0, 0]
    one.undo_due(everything=True)
    assert sleepers.started == [0, 0], "once"


def test_what_nobody_is_there_for_waits(sleepers):
    one = faults(sleepers, "kill a silo's app")
    sleepers.app.kill()
    sleepers.app.wait()
    assert one.disturb() == "" and one.done == []
    one.weights = {"cut the trunk's connections": 1}
    assert one.disturb() == "", "still the first one's turn"
    sleepers.app = subprocess.Popen(SLEEPS)
    assert one.disturb().startswith("kill a silo's app")
