"""The roll call's question and answer: a silo is asked for its name, once."""

from collections.abc import Mapping

from flower_split.transport.state_tags import LONGEST_SILO_NAME

RECORD = "split"
"""Name of the ConfigRecord in question and answer."""

QUESTION, ANSWER = "tell-silo", "silo"
"""Fields of it."""


def read_name(fields: Mapping[str, object]) -> str:
    """The name in an answer; empty when there is none that a silo may have."""
    name = fields.get(ANSWER)
    return name if isinstance(name, str) and len(name) <= LONGEST_SILO_NAME else ""
