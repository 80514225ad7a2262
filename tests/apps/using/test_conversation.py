"""A conversation: its turns, and what stopping one of them leaves."""

import signal
import threading
import time
from types import SimpleNamespace

import pytest
from tuned import ScriptedModel

from flower_split.apps.using.conversation import Conversation
from flower_split.apps.using.tuned_model import Sampling
from flower_split.errors import PromptError, TrunkUnavailableError


def asked(conversation, text):
    told, pieces = [], conversation.ask(text)
    try:
        while True:
            told.append(next(pieces))
    except StopIteration as ended:
        return told, ended.value


def test_turns_add_up_until_it_begins_anew() -> None:
    model = ScriptedModel(["one ", "two"])
    talk = Conversation(model, Sampling(), system="be brief")
    told, answer = asked(talk, "first")
    assert told == ["one ", "two"] and answer.text == "one two"
    asked(talk, "second")
    talk.begin_anew()
    asked(talk, "third")
    assert [len(ids) for ids in model.asked] == [2, 4, 2]


def test_prompts_of_one_question_have_no_earlier_turns() -> None:
    model = ScriptedModel(["word"])
    model.form = SimpleNamespace(
        is_chat=False, ids=lambda turns, values: [1] * len(turns), words=""
    )
    talk = Conversation(model, Sampling())
    asked(talk, "first")
    asked(talk, "second")
    assert model.asked == [[1], [1]]
    with pytest.raises(PromptError, match="--system"):
        Conversation(model, Sampling(), system="x")


def test_an_interrupt_stops_the_answer_and_leaves_what_was_said() -> None:
    main, taken = threading.get_ident(), threading.Event()

    def before(number):
        if number == 2:
            assert taken.wait(100)
            signal.pthread_kill(main, signal.SIGINT)
        if number >= 2:
            time.sleep(0.01)

    model = ScriptedModel(["one ", "two "] + ["more "] * 5000, before)
    talk = Conversation(model, Sampling())
    told, pieces = [], talk.ask("first")
    with pytest.raises(KeyboardInterrupt):
        for piece in pieces:
            told.append(piece)
            if len(told) == 2:
                taken.set()
    assert told[:2] == ["one ", "two "]
    pieces.close()
    assert model.finished == ["interrupted"]
    model.words = ["end"]
    asked(talk, "second")
    assert len(model.asked[-1]) == 3


def test_an_answer_that_fails_is_forgotten_with_its_question() -> None:
    def fail(number):
        raise TrunkUnavailableError("the trunk is gone")

    model = ScriptedModel(["one"], fail)
    talk = Conversation(model, Sampling())
    with pytest.raises(TrunkUnavailableError):
        asked(talk, "first")
    model.before = lambda number: None
    asked(talk, "second")
    assert [len(ids) for ids in model.asked] == [1, 1]
