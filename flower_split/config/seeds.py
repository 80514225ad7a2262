"""Seeds: one for every purpose, derived from the run's seed."""

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits for one purpose, the same in every process and on every platform.

    Seeds of different purposes are unrelated, so that no two shuffles of a run are alike.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
