"""`flower-split chat`: questions to the tuned model, answered through the split."""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from flower_split.apps.commands.check import AsJson, Debug, Overrides
from flower_split.apps.commands.console import errors_once, print_json
from flower_split.apps.commands.using import (
    Best,
    Device,
    MaxNewTokens,
    Model,
    OfRun,
    Plaintext,
    Run,
    ServerRound,
    Silo,
    StateDir,
    Temperature,
    Trunk,
    TrunkCa,
    opened_model,
)
from flower_split.errors import PromptError, UsageError

if TYPE_CHECKING:
    from flower_split.apps.using.conversation import Conversation
    from flower_split.apps.using.tuned_model import Answer

ASK = "> "
ANEW = "/new"


def chat_command(
    run: Run,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Answer this and end; without it, standard input where it is no terminal."
        ),
    ] = None,
    system: Annotated[str, typer.Option(help="What a chat model is told beforehand.")] = "",
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="NAME=TEXT",
            help="A field of the run's prompt template, besides the one that you type.",
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    model: Model = "",
    best: Best = False,
    server_round: ServerRound = None,
    silo: Silo = "",
    state_dir: StateDir = None,
    of_run: OfRun = "",
    trunk: Trunk = "",
    trunk_ca: TrunkCa = "",
    plaintext: Plaintext = False,
    device: Device = "auto",
    run_config: Overrides = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Talk to the model that RUN has tuned, in the run's own prompt format.

    Ctrl-C stops an answer, and at the prompt ends the chat, as Ctrl-D does; /new begins a new
    conversation. --json needs one prompt.
    """
    with errors_once(
        debug=debug, as_json=as_json, interrupted="the chat has ended", run_config=run_config
    ):
        values = _fields(fields or ())
        asked = prompt
        if asked is None and not is_terminal():
            asked = _from_input()
        if as_json and asked is None:
            raise UsageError("--json answers one prompt: give --prompt, or standard input")
        if asked is not None and not asked.strip():
            raise PromptError("the prompt is empty: say something to be answered")
        with opened_model(
            run,
            model=model,
            run_config=run_config,
            best=best,
            server_round=server_round,
            silo=silo,
            state_dir=state_dir,
            of_run=of_run,
            device=device,
            trunk=trunk,
            trunk_ca=trunk_ca,
            plaintext=plaintext,
        ) as (name, tuned):
            from flower_split.apps.using.conversation import Conversation
            from flower_split.apps.using.tuned_model import Sampling

            sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature)
            conversation = Conversation(tuned, sampling, system=system, values=values)
            if not as_json:
                print(f"{name}: {tuned.where}; written as {tuned.form.words}", file=sys.stderr)
            if asked is not None:
                answer = _answered(conversation, asked, shows=not as_json)
                if as_json:
                    print_json(_plain(answer))
                return
            _talk(conversation)


def is_terminal() -> bool:
    """Whether a person types at standard input."""
    return sys.stdin is not None and sys.stdin.isatty()


def _from_input() -> str:
    """What standard input has, to its end."""
    content = b"" if sys.stdin is None else sys.stdin.buffer.read()
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise PromptError("standard input is no UTF-8: send the prompt as UTF-8") from error


def _talk(conversation: "Conversation") -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  # lines of `input` can be edited with it
    while True:
        try:
            said = input(ASK)
        except EOFError:
            print()
            return
        except UnicodeDecodeError:
            print("error: the terminal sent no UTF-8", file=sys.stderr)
            continue
        if not said.strip():
            continue
        if said.strip() == ANEW:
            conversation.begin_anew()
            continue
        try:
            _answered(conversation, said, shows=True)
        except KeyboardInterrupt:
            print(" [stopped]")
        except PromptError as error:
            print(f"error: {error}; {ANEW} begins a new conversation", file=sys.stderr)


def _answered(conversation: "Conversation", said: str, *, shows: bool) -> "Answer":
    pieces = conversation.ask(said)
    try:
        while True:
            piece = next(pieces)
            if shows:
                print(piece, end="", flush=True)
    except StopIteration as ended:
        answer: Answer = ended.value
    finally:
        pieces.close()
    if shows:
        print()
    if shows and answer.finish == "length":
        why = "the model's context is full" if answer.is_full else "raise --max-new-tokens"
        print(f"[cut off after {answer.new_tokens} tokens: {why}]", file=sys.stderr)
    return answer


def _plain(answer: "Answer") -> dict[str, object]:
    return {
        "ok": True,
        "text": answer.text,
        "finish": answer.finish,
        "prompt-tokens": answer.prompt_tokens,
        "new-tokens": answer.new_tokens,
    }


def _fields(given: "list[str] | tuple[()]") -> dict[str, str]:
    found = dict[str, str]()
    for one in given:
        name, equals, text = one.partition("=")
        if not equals or not name:
            raise UsageError(f"--field takes NAME=TEXT, such as --field input=…, not {one!r}")
        found[name] = text
    return found
