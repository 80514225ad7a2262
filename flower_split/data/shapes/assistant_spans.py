"""The assistant's spans of a rendered chat, found without marks in the template, or refused.

A turn begins where the template's generation prompt for it ends, because that is where a model goes
on by itself. It ends with the token that the template writes behind it. What depends on the turn's
own words is found by rendering the chat with other words in their place: that shows what the
template makes of them (trimmed, rewritten, a tool call as JSON), and that the rest does not change.
The same with every other message shows that no span has a part of it.

Where the template writes the messages before a turn otherwise than the prompt of that turn would
be (tools that move to the last question, dates), no span is certain, and the chat is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Span = tuple[int, int]
"""First character and the one after the last."""

Render = Callable[[Sequence[Mapping[str, Any]], bool], str]
"""The text of messages, with the generation prompt or without."""

_OTHERS = ("Qz7 words in place 1Xq", "Jv3 others there 8Kw")
"""Two contents that begin and end differently: where one is like the turn's, the other is not."""


class LeftOutError(ValueError):
    """A chat template leaves a part of the chat out."""


class UnclearError(ValueError):
    """It does not show which part of a chat is the assistant's."""


def assistant_spans(
    render: Render,
    messages: Sequence[Mapping[str, Any]],
    ends: Callable[[str], int | None],
) -> tuple[str, list[Span]]:
    """The text of a chat, and the spans of its assistant's turns in their order.

    Args:
        render: The chat template.
        messages: With role and content.
        ends: Where the special token ends with which a text begins, blanks before it aside; None
            where it begins with none.

    Raises:
        UnclearError: a span is not certain.
        LeftOutError: the template leaves a message out.
    """
    whole, render = render(messages, False), _of_a_part(render)
    spans, before = list[Span](), 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        turn = f"turn {index + 1} of the chat"
        first, last = _words(render, messages, index, whole, turn)
        start = _start(render, messages[:index], whole, first, turn)
        end = _end(render, messages, index, whole, last, ends, turn)
        if start < before or end <= start:
            raise UnclearError(f"{turn} and the one before it run into each other")
        spans.append((start, end))
        before = end
    for index, message in enumerate(messages):
        if message["role"] != "assistant" and message.get("content"):
            _check_apart(render, messages, index, whole, spans)
    return whole, spans


def _words(
    render: Render, messages: Sequence[Mapping[str, Any]], index: int, whole: str, turn: str
) -> Span:
    """What of the text depends on the words of a turn."""
    first, behind = len(whole), len(whole)
    for other in _OTHERS:
        text = render(_changed(messages, index, other), False)
        if other not in text:
            raise UnclearError(f"the chat template leaves {turn} out")
        first = min(first, _same(whole, text))
        behind = min(behind, _same(whole[::-1], text[::-1]))
    return first, max(len(whole) - behind, first)


def _changed(
    messages: Sequence[Mapping[str, Any]], index: int, other: str
) -> list[Mapping[str, Any]]:
    """The chat with other words in place of all that a message says, calls of tools included."""
    message = messages[index]
    parts = isinstance(message.get("content"), list)
    content = [{"type": "text", "text": other}] if parts else other
    changed = [*messages]
    changed[index] = {**message, "content": content}
    if message["role"] == "assistant":
        changed[index] = {"role": message["role"], "content": content}
    return changed


def _check_apart(
    render: Render,
    messages: Sequence[Mapping[str, Any]],
    index: int,
    whole: str,
    spans: Sequence[Span],
) -> None:
    """Raise where a span has words of another's message, such as a tool's answer, or where these
    words are nowhere."""
    text = render(_changed(messages, index, _unlike(messages[index]["content"])), False)
    if text == whole:
        raise LeftOutError(f"message {index + 1}")
    first = _same(whole, text)
    last = max(len(whole) - _same(whole[::-1], text[::-1]), first)
    if any(first < end and last > start for start, end in spans):
        raise UnclearError(
            f"the chat template writes message {index + 1} into a turn of the assistant, or the "
            "turn depends on it"
        )


def _unlike(content: Any) -> str:
    """Words that begin and end otherwise than `content` does."""
    texts = [part["text"] for part in content] if isinstance(content, list) else [content]
    ends = {text.strip()[place : place + 1 or None] for text in texts for place in (0, -1)}
    letter = next((letter for letter in "QzJvXw" if letter not in ends), "\ue000")
    return f"{letter} words in place {letter}"


def _start(
    render: Render, history: Sequence[Mapping[str, Any]], whole: str, first: int, turn: str
) -> int:
    """Where the generation prompt of a turn ends, or where the turn leaves it."""
    if not history:
        raise UnclearError("the chat begins with the assistant, for which there is no prompt")
    known, asked = render(history, False), render(history, True)
    shared = _same(whole, asked)
    if asked == known and whole[len(known) : first].strip():
        raise UnclearError(
            f"the chat template has no generation prompt, and writes something of its own before "
            f"{turn}"
        )
    if shared == len(asked):
        return shared
    if shared < len(known) or not whole.startswith(known):
        raise UnclearError(
            f"the chat template writes what comes before {turn} otherwise than it would have "
            "prompted for it"
        )
    return min(shared, first)


def _end(
    render: Render,
    messages: Sequence[Mapping[str, Any]],
    index: int,
    whole: str,
    last: int,
    ends: Callable[[str], int | None],
    turn: str,
) -> int:
    """Behind what the template writes to end a turn: up to a special token, or to a blank end."""
    until = messages[: index + 1]
    if len(until) == len(messages):
        closing = whole[last:]
    elif messages[index].get("tool_calls"):  # which may be ended otherwise than words
        text = render(until, False)
        closing = text[_words(render, until, index, text, turn)[1] :]
    else:
        closing = render(_changed(until, index, _OTHERS[0]), False).rpartition(_OTHERS[0])[2]
    length = ends(closing)
    if length is None:
        length = len(closing.rstrip())
    if not whole.startswith(closing[:length], last):
        raise UnclearError(
            f"the chat template ends {turn} otherwise than it ends a chat's last turn"
        )
    return last + length


def _of_a_part(render: Render) -> Render:
    def rendered(messages: Sequence[Mapping[str, Any]], prompt: bool) -> str:
        try:
            return render(messages, prompt)
        except Exception as error:
            raise UnclearError(
                "the chat template takes the chat, and not its beginning by itself"
            ) from error

    return rendered


def _same(one: str, other: str) -> int:
    """Characters with which both begin."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
