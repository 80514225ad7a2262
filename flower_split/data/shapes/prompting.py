"""Prompt and target of an example: one field, two fields, or a template over several."""

from dataclasses import dataclass

from flower_split.config.data import DataConfig, template_fields
from flower_split.data.examples import Examples, Row, find_field
from flower_split.errors import DataError

PROMPT_SEPARATOR = "\n"
"""What stands between prompt and target; it belongs to the prompt and gets no loss."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The text of an example."""

    prompt: str | None
    """What gets no loss; None where there is no prompt."""
    target: str
    """What is learnt."""


class Prompting:
    """Makes prompt and target of examples.

    Args:
        config: Names the fields.
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._pieces = template_fields(config.template) if config.template else []
        self._seen: set[str] = set()

    def parts(self, examples: Examples, index: int, row: Row) -> Parts:
        """Those of an example.

        Raises:
            DataError: a field is missing, or is no text.
        """
        text, prompt = self._config.text, self._config.prompt
        if not self._pieces:
            ask = examples.text(index, prompt, row) + PROMPT_SEPARATOR if prompt else None
            return Parts(prompt=ask, target=examples.text(index, text, row))
        before, target = list[str](), list[str]()
        part = before
        for literal, field in self._pieces:
            part.append(literal)
            if field == text:
                part = target
                part.append(examples.text(index, text, row))
            elif field is not None:
                part.append(self._filled(examples, index, row, field))
        if not target:
            target.append(examples.text(index, text, row))
        return Parts(prompt="".join(before), target="".join(target))

    def check_seen(self, examples: Examples) -> None:
        """Raise `DataError` if the template has a field that no example has."""
        fields = {field for _, field in self._pieces if field not in (None, self._config.text)}
        if len(examples) and (absent := sorted(str(f) for f in fields - self._seen)):
            raise DataError(
                f"{examples.origin}: data.template has the field {absent[0]!r}, which none of the "
                f"{len(examples)} examples has: correct its name; "
                f"{examples.columns(examples[0], str(absent[0]))}"
            )

    def _filled(self, examples: Examples, index: int, row: Row, field: str) -> str:
        """The text of a template's field, which may be empty, null or absent of an example."""
        name = find_field(row, field)
        if name is None:
            return ""
        self._seen.add(field)
        value = row[name]
        if value is None:
            return ""
        if isinstance(value, str):
            return examples.valid(index, field, value)
        if isinstance(value, int | float):
            return str(value)
        raise DataError(
            f"{examples.where(index)}: field {field!r} of data.template must be text or a number, "
            f"not {type(value).__name__}"
        )
