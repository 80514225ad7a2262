"""Resuming a session on another stream: the secret, the digests, and the frames that tell of them.

A session's requests and replies are numbered from 0 on, each by their own order. What the silo has
sent and what the trunk has taken are the same if the digests of their last request in common are,
as every digest covers the request's header, the checksums of its tensors, and the digest before it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from flower_split.errors import WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.transport.messages import PROTOCOL_VERSION

SECRET_BYTES = 32
"""Of the secret by which a silo goes on with its session."""
START = bytes(hashlib.sha256().digest_size)
"""The digest before the first request."""
MOST_DIGESTS = 4096
"""Digests in a Resume: a silo has that many requests under way at most."""
LONGEST_HOLD = 3600.0
"""Seconds for which a broken session can be held at most."""


def digest_after(digest: bytes, head: pb.ClientFrame) -> bytes:
    """The digest of the request that `head` begins.

    Args:
        digest: Of the request before it.
        head: Its first frame; what chunks it holds, and the count of replies, are not looked at.
    """
    kind = head.WhichOneof("frame") or ""
    message = getattr(head, kind).SerializeToString(deterministic=True) if kind else b""
    return hashlib.sha256(digest + kind.encode() + b"\0" + message).digest()


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """How far a session is for its silo."""

    received: int
    """Replies that it has received whole."""
    first: int
    """Number of its oldest request that is not known to be taken whole."""
    digests: tuple[bytes, ...]
    """Of the request before that one, and of it and all later ones that were sent."""

    def digest(self, taken: int) -> bytes | None:
        """Of the last of `taken` requests; None where the silo does not know it any more or yet."""
        index = taken - self.first
        return self.digests[index] if 0 <= index < len(self.digests) else None


def resume_frame(secret: bytes, attempt: int, point: ResumePoint) -> pb.ClientFrame:
    """The first frame of a stream that goes on with a session."""
    resume = pb.Resume(
        protocol_version=PROTOCOL_VERSION,
        secret=secret,
        attempt=attempt,
        received=point.received,
        first=point.first,
        digests=point.digests,
    )
    return pb.ClientFrame(resume=resume)


def read_resume(resume: pb.Resume) -> ResumePoint:
    """How far the session is for the silo that resumes it.

    Raises:
        WireError: a secret or a digest has another length, or there are too many digests.
    """
    if len(resume.secret) != SECRET_BYTES:
        raise WireError(f"a secret of {len(resume.secret)} bytes, expected {SECRET_BYTES}")
    return ResumePoint(
        received=resume.received, first=resume.first, digests=_digests(resume.digests)
    )


def _digests(digests: Sequence[bytes]) -> tuple[bytes, ...]:
    if not 1 <= len(digests) <= MOST_DIGESTS:
        raise WireError(f"{len(digests)} digests of requests, expected 1 to {MOST_DIGESTS}")
    if any(len(digest) != len(START) for digest in digests):
        raise WireError(f"a digest of a request has another length than {len(START)} bytes")
    return tuple(digests)


def resumed_frame(taken: int) -> pb.ServerFrame:
    """The trunk's answer to a Resume that it accepts: how many requests it has taken whole."""
    return pb.ServerFrame(resumed=pb.Resumed(taken=taken))
