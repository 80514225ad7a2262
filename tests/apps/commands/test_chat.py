"""`flower-split chat`: answers on standard output, all else on standard error."""

import json
import signal
import threading
from contextlib import contextmanager

import pytest
from tuned import ScriptedModel, save_tuned_run, stock_text
from typer.testing import CliRunner

from flower_split.apps.cli import cli
from flower_split.apps.commands import chat as chatting
from flower_split.errors import PromptError, TrunkUnavailableError


def chat(*arguments, **named):
    done = CliRunner().invoke(cli, ["chat", *map(str, arguments)], **named)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_tuned_run(tmp_path_factory.mktemp("chat"), **{"data.prompt": "question"})


def ids(run):
    return [4, 6]  # "the", "sum"


@pytest.mark.medium
def test_a_prompt_is_answered_as_stock_peft_answers_it(run) -> None:
    said = stock_text(run, ids(run), max_new_tokens=8)
    status, out, err = chat(run, "--prompt", "the sum", "--max-new-tokens", 8)
    assert (status, out) == (0, f"{said}\n")
    assert "the trunk is in this process" in err and "raise --max-new-tokens" in err
    status, out, err = chat(run, "--json", "--max-new-tokens", 8, input="the sum\n")
    assert status == 0 and err == ""
    told = json.loads(out)
    assert told["ok"] and told["text"] == said and told["prompt-tokens"] == 2


@pytest.mark.medium
@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--system", "be brief"], "--system"),
        (["--field", "other=x"], "has the fields question"),
        (["--model", "/nowhere"], "--model names it"),
        (["--best"], "--best"),
        (["--trunk", "127.0.0.1:1"], "127.0.0.1:1"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_what_cannot_be_is_one_sentence(run, more, says) -> None:
    status, out, err = chat(run, "--prompt", "the sum", *more)
    assert (status, out) == (1, "")
    assert says in err and err.count("error: ") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "ends_with", "says"),
    [
        (["/nowhere", "--prompt", "x"], 1, "there is no folder /nowhere"),
        (["x", "--prompt", " "], 1, "the prompt is empty"),
        (["x"], 1, "the prompt is empty"),
        (["x", "--prompt", "a", "--field", "b"], 2, "NAME=TEXT"),
        (["x", "--prompt", "a", "--trunk", "nowhere"], 2, "--trunk must be host:port"),
        (["x", "--prompt", "a", "--trunk-ca", "f"], 2, "--trunk names"),
        (["x", "--prompt", "a", "--trunk", "a.example:1", "--trunk-plaintext"], 2, "loopback only"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(arguments, ends_with, says) -> None:
    status, out, err = chat(*arguments, input="")
    assert (status, out) == (ends_with, "") and says in err and err.startswith("error: ")
    status, out, err = chat(*arguments, "--json", input="")
    assert status == ends_with and json.loads(out)["ok"] is False and says in out and err == ""


def test_input_that_is_no_text_is_refused() -> None:
    status, _, err = chat("x", input=b"\xff\xfe")
    assert status == 1 and "UTF-8" in err


@pytest.fixture
def talk(monkeypatch):
    """A chat at a terminal at which `lines` are typed, with a model of two words."""

    def talking(lines, model):
        @contextmanager
        def opened(*given, **named):
            yield "mine", model

        typed = iter(lines)

        def ask(prompt):
            line = next(typed, None)
            if line is None:
                raise EOFError
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr(chatting, "opened_model", opened)
        monkeypatch.setattr(chatting, "is_terminal", lambda: True)
        monkeypatch.setattr("builtins.input", ask)
        return chat("x")

    return talking


def test_a_conversation_goes_on_until_its_end(talk) -> None:
    model = ScriptedModel(["one ", "two"])
    status, out, err = talk(["first", "", "second", "/new", "third"], model)
    assert status == 0 and out == "one two\n" * 3 + "\n"
    assert [len(ids) for ids in model.asked] == [1, 3, 1]
    assert err == "mine: nowhere; written as a chat\n"


def test_ctrl_c_at_the_prompt_ends_the_chat(talk) -> None:
    status, _, err = talk(["first", KeyboardInterrupt()], ScriptedModel(["one"]))
    assert status == 130 and err.endswith("interrupted; the chat has ended\n")
    assert "Traceback" not in err


def test_ctrl_c_in_an_answer_stops_the_answer(talk) -> None:
    main = threading.get_ident()

    def before(number):
        if number == 1:
            signal.pthread_kill(main, signal.SIGINT)
        if number:
            threading.Event().wait(0.01)

    model = ScriptedModel(["one "] * 5000, before)
    status, out, err = talk(["first", "second"], model)
    assert status == 0 and "Traceback" not in err
    assert model.finished == ["interrupted"] * 2 and out.count("[stopped]") == 2


def test_a_prompt_that_cannot_be_answered_leaves_the_conversation(talk) -> None:
    def fail(number):
        if len(model.asked) == 2:
            raise PromptError("the context is full")

    model = ScriptedModel(["one"], fail)
    status, _, err = talk(["first", "second", "third"], model)
    assert status == 0 and "error: the context is full; /new" in err
    assert [len(ids) for ids in model.asked] == [1, 3, 3]


def test_a_trunk_that_is_gone_ends_the_chat(talk) -> None:
    def fail(number):
        raise TrunkUnavailableError("the trunk is gone")

    status, _, err = talk(["first"], ScriptedModel(["one"], fail))
    assert status == 1 and err.count("the trunk is gone") == 1
