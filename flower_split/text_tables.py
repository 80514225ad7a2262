"""JSON and TOML of files: whatever is wrong with a text, it is a `ValueError`.

The standard library's readers raise a `RecursionError` for what is nested thousands of times, and
take halves of characters from JSON, which no file or terminal takes again.
"""

import json
import re
import tomllib
from typing import Any

_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or cannot be read.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_characters(text, value)
    return value


def check_characters(text: str | bytes, value: Any) -> None:
    """Raise `ValueError` where a JSON text's value has half of a character, a lone surrogate."""
    encoded = text.encode(errors="replace") if isinstance(text, str) else text
    if _HALF.search(encoded):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it has half of a character, a lone surrogate") from None


def read_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text.

    Raises:
        ValueError: it is none, or cannot be read.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
