"""Prompts in a run's format: from what a person says to the token ids that the model reads."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from flower_split.config.data import template_fields
from flower_split.data import encode_prompt
from flower_split.errors import PromptError

Turn: TypeAlias = Mapping[str, str]
"""`role`: system, user or assistant; and `content`."""

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


class PromptForm:
    """Writes prompts as the run's examples were written.

    Args:
        form: As `flower_split.apps.prompt_format` makes it; empty where it is not known: then the
            tokenizer's chat template writes prompts, or without one they are continued as they are.
        tokenizer: Of the model.

    Raises:
        PromptError: the run's chats need a chat template, and the tokenizer has none.
    """

    def __init__(self, form: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.is_chat = "written_by" in form or (not form and bool(tokenizer.chat_template))
        """Whether a conversation may have several turns."""
        if self.is_chat and not tokenizer.chat_template:
            raise PromptError(
                "the run learned chats, and the model's tokenizer has no chat template: put the "
                "chat_template.jinja of the run into the model's folder"
            )
        self._prompt = form.get("prompt", "")
        self.fields: tuple[str, ...] = ()
        """Of the examples' fields those that a prompt has, in their order; empty for chats and
        for plain texts."""
        if self._prompt and not self.is_chat:
            pieces = template_fields(self._prompt) if "{" in self._prompt else []
            names = (field for _, field in pieces if field is not None)
            self.fields = tuple(dict.fromkeys(names))

    @property
    def words(self) -> str:
        """What it is, for a person."""
        if self.is_chat:
            return "the tokenizer's chat template"
        return f"the prompt {self._prompt!r}" if self.fields else "plain text, which is continued"

    def ids(self, turns: Sequence[Turn], values: Mapping[str, str] | None = None) -> list[int]:
        """Token ids of a conversation, to be answered.

        Args:
            turns: The conversation; where the form is no chat template, one turn of the user's.
            values: By name, fields of the prompt other than the one that the user's turn is.

        Raises:
            PromptError: the form has no place for these turns or fields, or there is nothing to
                answer.
        """
        if not turns or not turns[-1]["content"].strip():
            raise PromptError("the prompt is empty: say something to be answered")
        for text in (*(turn["content"] for turn in turns), *(values or {}).values()):
            check_text(text)
        if self.is_chat:
            return self._of_chat(turns, values or {})
        if [turn["role"] for turn in turns] != [USER]:
            raise PromptError(
                f"the run's prompts ({self.words}) have one question and no place for earlier "
                "turns or a system's words: send the user's words alone"
            )
        return encode_prompt(self._tokenizer, self._filled(turns[0]["content"], values or {}))

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text that is continued as it is.

        Raises:
            PromptError: it is empty, or no text.
        """
        if not text:
            raise PromptError("the prompt is empty: give a text to be continued")
        check_text(text)
        return encode_prompt(self._tokenizer, text)

    def _of_chat(self, turns: Sequence[Turn], values: Mapping[str, str]) -> list[int]:
        if values:
            raise PromptError(f"chats have no field {min(values)!r}: leave it out")
        chat: Any = [dict(turn) for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template's own, of whatever kind
            raise PromptError(f"the chat template does not take these turns: {error}") from error
        encoded = self._tokenizer(str(text), add_special_tokens=False, verbose=False)
        return list(encoded["input_ids"])

    def _filled(self, said: str, values: Mapping[str, str]) -> str:
        if unknown := sorted(values.keys() - set(self.fields)):
            has = f"has the fields {', '.join(self.fields)}" if self.fields else "has no fields"
            raise PromptError(f"the run's prompt {has}, and not {unknown[0]!r}")
        if not self.fields:
            return self._prompt.replace("{{", "{").replace("}}", "}") + said
        left = [field for field in self.fields if field not in values]
        if not left:
            raise PromptError("every field of the prompt is given already: leave one to the prompt")
        held = {**values, left[0]: said}
        pieces = template_fields(self._prompt)
        return "".join(
            text + ("" if field is None else held.get(field, "")) for text, field in pieces
        )


def check_text(text: str) -> None:
    """Raise `PromptError` where `text` is no Unicode text that a tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            "the prompt has characters that are no valid Unicode: send it as UTF-8"
        ) from error
