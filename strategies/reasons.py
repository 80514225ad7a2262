"""Reasons of failed silos: the exception's own words, out of what Flower and Ray wrap them in."""

import re

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_WRAPPED = re.compile(r"<class '([\w.]*\.)?(?P<kind>\w+)(\(\w+\))?'>:<'(?P<text>.*)'>", re.DOTALL)
_IN_SIMULATION = "Exception ClientAppException occurred. Message: "


def readable(reason: str) -> str:
    """`reason` of a Flower error reply without class paths, colours and Ray's traceback."""
    text = _COLOURS.sub("", reason).strip()
    found = _WRAPPED.fullmatch(text)
    kind, text = (found["kind"], found["text"].strip()) if found else ("", text)
    if _IN_SIMULATION in text:
        # The simulation nests the message in a traceback and keeps no class.
        return text.rpartition(_IN_SIMULATION)[2].strip()
    return f"{kind}: {text}" if kind else text
