"""The process's file descriptors, of which every connection takes one."""

import logging
import os
import resource
from dataclasses import dataclass

from flower_split.errors import ConfigError

logger = logging.getLogger(__name__)

WANTED = 16_384
"""Descriptors that a server's process asks for, where it may."""
_OWN = 128
"""Descriptors that stay for the process's own files, beside those that are open already."""
_LEAST = 16
"""Connections without which a listener is of no use."""


@dataclass(frozen=True, kw_only=True)
class ConnectionBounds:
    """How many connections each listener of a server takes at a time."""

    trunk: int
    health: int


def connection_bounds() -> ConnectionBounds:
    """What the process may have, after its soft limit was raised as far as its hard one allows.

    A listener closes what comes beyond its bound as soon as it has accepted it, so that mute
    connections to one starve neither the other nor the process's own files.

    Raises:
        ConfigError: the limit leaves no connections.
    """
    limit = _raised()
    free = limit - _open() - _OWN
    bounds = ConnectionBounds(trunk=free * 3 // 4, health=free // 4)
    if bounds.health < _LEAST:
        raise ConfigError(
            f"the process may have {limit} file descriptors, which leaves {max(0, free)} for "
            f"connections: raise the limit (ulimit -n, LimitNOFILE=) to {4 * _LEAST + _OWN + 256} "
            "at least"
        )
    logger.info(
        "of %d file descriptors, %d are for silos' connections and %d for health checks",
        limit,
        bounds.trunk,
        bounds.health,
    )
    return bounds


def _raised() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):
            return soft
        logger.info("raised the limit of file descriptors from %d to %d", soft, most)
        return most
    return WANTED if soft == resource.RLIM_INFINITY else min(soft, WANTED)


def _open() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 64
