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
    """
    whole, render = render(messages, False), _of_a_part(render)
    spans, before = list[Span](), 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        turn = f"turn {index + 1} of the chat"
        first, last = _words(render, messages, index, whole, turn)
        start = _start(render, messages[:index], whole, first, turn)
        end = _end(render, messages[: index + 1], whole, last, ends, turn)
        if start < before or end <= start:
            raise UnclearError(f"{turn} and the one before it run into each other")
        spans.append((start, end))
        before = end
    _check_alone(render, messages, whole, spans)
    return whole, spans


def _words(
    render: Render, messages: Sequence[Mapping[str, Any]], index: int, whole: str, turn: str
) -> Span:
    """What of the text depends on the words of a turn."""
    found = _changed(render, messages, index, whole)
    if found is None:
        raise UnclearError(f"the chat template leaves {turn} out")
    return found


def _changed(
    render: Render, messages: Sequence[Mapping[str, Any]], index: int, whole: str
) -> Span | None:
    """What of the text depends on the words of a message; None where they are not written."""
    first, behind = len(whole), len(whole)
    for other in _OTHERS:
        changed = [*messages]
        changed[index] = _with_words(messages[index], other)
        text = render(changed, False)
        if other not in text:
            return None
        first = min(first, _same(whole, text))
        behind = min(behind, _same(whole[::-1], text[::-1]))
    return first, max(len(whole) - behind, first)


def _with_words(message: Mapping[str, Any], other: str) -> Mapping[str, Any]:
    """The message with other words in place of all that it says, calls of tools included."""
    parts = isinstance(message.get("content"), list)
    content = [{"type": "text", "text": other}] if parts else other
    if message["role"] == "assistant":
        return {"role": message["role"], "content": content}
    return {**message, "content": content}


def _check_alone(
    render: Render, messages: Sequence[Mapping[str, Any]], whole: str, spans: Sequence[Span]
) -> None:
    """Raise `UnclearError` where a span has words of another one's, such as a tool's answer."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            continue
        changed = _changed(render, messages, index, whole)
        if changed and any(changed[0] < end and changed[1] > start for start, end in spans):
            raise UnclearError(
                f"the chat template writes message {index + 1} into a turn of the assistant, or "
                "the turn depends on it"
            )


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
    until: Sequence[Mapping[str, Any]],
    whole: str,
    last: int,
    ends: Callable[[str], int | None],
    turn: str,
) -> int:
    """Behind what the template writes to end a turn: up to a special token, or to a blank end."""
    text = render(until, False)
    own = last if text == whole else _words(render, until, len(until) - 1, text, turn)[1]
    closing = text[own:]
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
