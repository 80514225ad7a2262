"""State tags: names of what a session leaves that only the two ends of that session know.

After a session silo and trunk each keep their half of what it leaves under the session's
tag. In the next one the silo offers the tags of the halves that it has, and the trunk resumes the
one that it has too, or none: halves of different sessions never come together. Both ends make the
tag from the session's token, so that it is never sent before it is needed, and is of no use to
anyone else.
"""

import hashlib
import hmac
import re

from flower_split.transport.messages import Ticket

MOST_OFFERS = 8
"""Tags that a silo may offer."""

LONGEST_SILO_NAME = 200
"""Characters of a silo's name."""

_TAG = re.compile(r"[0-9a-f]{64}")


def state_tag(ticket: Ticket) -> str:
    """The tag of the states that the ticket's session leaves: HMAC-SHA256, hexadecimal."""
    return hmac.new(ticket.token.encode(), b"optimizer state", hashlib.sha256).hexdigest()


def is_tag(text: str) -> bool:
    """Whether `text` can be a state tag."""
    return _TAG.fullmatch(text) is not None
