"""The stream of events of a run: what happened when, in the file that page and report read.

Written by the server as the run goes, in `events.jsonl` of its output folder; see `docs/events.md`.
"""

from flower_split.reporting.events.kinds import EVENTS, KINDS, VERSION
from flower_split.reporting.events.log import EventLog
from flower_split.reporting.events.reading import Event, EventTail, read_events

__all__ = ["EVENTS", "KINDS", "VERSION", "Event", "EventLog", "EventTail", "read_events"]
