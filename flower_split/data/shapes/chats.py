"""Chats: lists of messages as the tokenizer's chat template takes them, or as ShareGPT has them."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from flower_split.data.examples import Examples, Row, find_field
from flower_split.data.shapes.assistant_spans import (
    LeftOutError,
    Span,
    UnclearError,
    assistant_spans,
)
from flower_split.errors import DataError

logger = logging.getLogger(__name__)

ASSISTANT = "assistant"
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": ASSISTANT,
    "assistant": ASSISTANT,
    "model": ASSISTANT,
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""Who speaks in ShareGPT's form, `{"from": …, "value": …}`, and the role that it stands for."""

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")

Message = dict[str, Any]


class Chats:
    """Writes chats as text, with the spans that are the assistant's.

    Args:
        tokenizer: Its chat template writes them.
        messages: Field with the messages.
        tools: Field with the tools; a chat may lack it.

    Raises:
        DataError: the tokenizer has no chat template, or does not tell where its tokens are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: str, tools: str) -> None:
        self._tokenizer = tokenizer
        self._messages = messages
        self._tools = tools
        added = (t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
        names = dict.fromkeys((*added, str(tokenizer.eos_token or "")))
        self._special = tuple(name for name in names if name)
        if not tokenizer.chat_template:
            raise DataError(
                "the tokenizer has no chat template, which data.messages needs: take a chat "
                "model's tokenizer, put a chat_template.jinja into the model's folder, or write "
                "the chats as text with data.template"
            )
        if not tokenizer.is_fast:
            raise DataError(
                f"{type(tokenizer).__name__} does not tell where in a text its tokens are, which "
                "chats need: give the model's folder a fast tokenizer (tokenizer.json)"
            )

    def written(self, examples: Examples, index: int, row: Row) -> tuple[str, list[Span]]:
        """The text of a chat, and the assistant's spans of it.

        Raises:
            DataError: it is no chat, has no assistant's turn, the template refuses it, or does not
                show which part is the assistant's.
        """
        where = examples.where(index)
        value = examples.value(index, self._messages, row)
        messages = chat_messages(value, f"{where}: field {self._messages!r}", examples.sparse)
        if not any(message["role"] == ASSISTANT for message in messages):
            raise DataError(f"{where}: the chat has no turn of the assistant to learn")
        tools = self._tools_of(examples, index, row)
        template = self._tokenizer.get_chat_template(tools=tools)
        for message in messages:
            _check_unicode(message, where)
        marked = _MARKED.search(template) is not None
        try:
            self._check_written(template, messages, tools, also_words=marked)
            if marked:
                return self._marked(template, messages, tools)
            return assistant_spans(
                lambda part, prompt: self._rendered(template, part, tools, prompt),
                messages,
                self._ends,
            )
        except UnclearError as error:
            raise DataError(
                f"{where}: {error}. Mark the assistant's turns in the chat template with "
                "{% generation %} and {% endgeneration %}"
            ) from error
        except LeftOutError as error:
            raise DataError(
                f"{where}: the chat template does not write {error}: take a template that does, or "
                "leave it out of the data; data.tools = '' leaves tools out"
            ) from error
        except Exception as error:
            # A template's own words are not the data's; whatever it adds to them may be.
            said = str(error)
            known = f": {said}" if said and said in template else ""
            logger.warning("%s: the chat template failed: %s", where, error)
            raise DataError(
                f"{where}: the chat template does not take this chat ({type(error).__name__}"
                f"{known}); the silo's own log has the rest"
            ) from error

    def _check_written(
        self, template: str, messages: Sequence[Message], tools: Any, *, also_words: bool
    ) -> None:
        """Raise `LeftOutError` where the template leaves tools or calls of them out, or words."""
        if not (tools or also_words or any(message.get("tool_calls") for message in messages)):
            return
        whole = self._rendered(template, messages, tools, False)

        def is_left_out(number: int, **changes: Any) -> bool:
            other = [*messages]
            other[number] = {**messages[number], **changes}
            return self._is_written_so(template, other, tools, whole)

        for number, message in enumerate(messages):
            content = message.get("content")
            if message.get("tool_calls"):
                if is_left_out(number, tool_calls=None, content=content or ""):
                    raise LeftOutError(f"the tool calls of message {number + 1}")
                if content and is_left_out(number, content=_other_words(content)):
                    raise LeftOutError(f"the words beside the tool calls of message {number + 1}")
            elif also_words and content and is_left_out(number, content=_other_words(content)):
                raise LeftOutError(f"message {number + 1}")
        if tools and self._is_written_so(template, messages, None, whole):
            raise LeftOutError("the tools")

    def _is_written_so(
        self, template: str, messages: Sequence[Message], tools: Any, text: str
    ) -> bool:
        try:
            return self._rendered(template, messages, tools, False) == text
        except Exception:  # a template's own: it does look at what is not there
            return False

    def _rendered(
        self, template: str, messages: Sequence[Mapping[str, Any]], tools: Any, prompt: bool
    ) -> str:
        conversation: Any = list(messages)
        return str(
            self._tokenizer.apply_chat_template(
                conversation,
                tools=tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        )

    def _marked(
        self, template: str, messages: Sequence[Message], tools: Any
    ) -> tuple[str, list[Span]]:
        """By the template's own marks, of which transformers keeps the places."""
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template
        texts, marks = render(
            conversations=[messages],
            tools=tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        spans = [(int(start), int(end)) for start, end in marks[0] if end > start]
        if not spans:
            raise UnclearError("the chat template's marks of the assistant's turns hold no text")
        return str(texts[0]), spans

    def _tools_of(self, examples: Examples, index: int, row: Row) -> list[dict[str, Any]] | None:
        name = find_field(row, self._tools) if self._tools else None
        value = None if name is None else row[name]
        where = f"{examples.where(index)}: field {self._tools!r}"
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{where} must be a list of tools, or the JSON of one where it is text"
                ) from error
        if not value:
            return None
        if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
            raise DataError(f"{where} must be a list of tools, each a JSON schema")
        found: list[dict[str, Any]] = _without_nulls(value) if examples.sparse else value
        return found

    def _ends(self, text: str) -> int | None:
        """Where the first special token of `text` ends, before which there are blanks only."""
        stripped = text.lstrip()
        found = [name for name in self._special if stripped.startswith(name)]
        return len(text) - len(stripped) + max(map(len, found)) if found else None


def chat_messages(value: Any, what: str, sparse: bool = False) -> list[Message]:
    """Messages with role and content, whichever of the two forms they have.

    Args:
        value: Of the field: a list, or its JSON.
        what: It is, for errors.
        sparse: Whether absent keys are there and null, as in Arrow's tables.

    Raises:
        DataError: it is no list of messages of texts.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{what} must be a list of messages, and is no valid JSON") from error
    if not isinstance(value, list | tuple):
        raise DataError(f"{what} must be a list of messages, not {type(value).__name__}")
    if not value:
        raise DataError(f"{what} has no message")
    return [_message(one, f"{what}, message {n}", sparse) for n, one in enumerate(value, start=1)]


def _message(one: Any, what: str, sparse: bool) -> Message:
    if not isinstance(one, Mapping):
        raise DataError(f"{what} must be an object with role and content, not {type(one).__name__}")
    message = {str(k): v for k, v in one.items() if v is not None}
    if sparse:
        message = _without_nulls(message)
    if "role" not in message and "from" in message and "value" in message:
        speaker = message.pop("from")
        if speaker not in _SPEAKERS:
            raise DataError(
                f"{what} is from a speaker that is none of {', '.join(sorted(_SPEAKERS))}"
            )
        message = {"role": _SPEAKERS[speaker], "content": message.pop("value"), **message}
    if not isinstance(message.get("role"), str):
        raise DataError(f"{what} has no role: expected role and content")
    content = message.get("content")
    if content is None and message["role"] == ASSISTANT and message.get("tool_calls"):
        return message
    if isinstance(content, list):
        _check_parts(content, what)
    elif not isinstance(content, str):
        kind = "no content" if content is None else f"a content of {type(content).__name__}"
        raise DataError(f"{what} has {kind}: expected text")
    if message["role"] == ASSISTANT and not message.get("tool_calls") and not content:
        raise DataError(f"{what} is an empty turn of the assistant")
    return message


def _other_words(content: Any) -> Any:
    """A content of the same form with other words."""
    if isinstance(content, list):
        return [{**part, "text": f"{part['text']} or another"} for part in content]
    return f"{content} or another"


def _check_parts(parts: Sequence[Any], what: str) -> None:
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise DataError(f"{what} has a part that is no text; expected texts only")


def _check_unicode(value: Any, where: str) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise DataError(
                f"{where}: the chat is not valid Unicode: it has half of a surrogate pair"
            ) from exc
    elif isinstance(value, Mapping):
        for inner in value.values():
            _check_unicode(inner, where)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_unicode(inner, where)


def _without_nulls(value: Any) -> Any:
    """Without the keys that Arrow gives every object of a list, null where it had none."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(inner) for inner in value]
    return value
