"""Counters: what a session cost, as numbers that an operator reads; see `docs/counters.md`.

They come from silos, any of which may send what it likes: nothing is reported that is not here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flower_split.config.wire import UPWARD_HOPS
from flower_split.transport.messages import SessionSummary

MOST = 2**53
"""Bound of every counter: whole numbers up to here are exact in JSON and in TensorBoard's maths."""


@dataclass(frozen=True, kw_only=True)
class Counter:
    """What a counter of a session means, in which unit, and what values it may have."""

    meaning: str
    unit: str
    """Empty for a plain number."""
    whole: bool = False
    """Whether values are whole numbers."""
    most: float = MOST
    """Largest value; the least is 0."""


def _bytes(meaning: str) -> Counter:
    return Counter(meaning=meaning, unit="bytes", whole=True)


def _seconds(meaning: str) -> Counter:
    return Counter(meaning=meaning, unit="seconds")


NOISE_ACCOUNT = "noise-account"
"""The counter that tells one account of a silo's noise from another."""


DP_ACCOUNT, DP_STEPS, DP_EXAMPLES = "dp-account", "dp-steps", "dp-examples"
"""Counters of a silo's account of DP-SGD: its number, steps, and examples that they drew from."""


def noisy_rows(hop: str) -> str:
    """The counter of rows of `hop` that have left a silo with noise on what leaves."""
    return f"{hop}-rows"


COUNTERS: Mapping[str, Counter] = {
    "tokens-per-second": Counter(
        meaning="`trunk-tokens` over the time since the trunk had let the session in", unit="1/s"
    ),
    "seconds": _seconds("the session, from the message's arrival to the reply"),
    "seconds-before": _seconds("the process before it: starting Python, imports, other sessions"),
    "seconds-loading": _seconds("of `seconds`: loading model and adapter, a download included"),
    "seconds-connecting": _seconds("of `seconds`: connecting, and waiting for a place"),
    "seconds-waiting": _seconds("of `seconds`: nothing to do but to wait for the trunk's answers"),
    "bytes-sent": _bytes("payload from silo to trunk: h1, g2, context, prefix and adapter"),
    "bytes-received": _bytes(
        "payload from trunk to silo: h2, g1, the prefix's gradient and the adapter"
    ),
    "bytes-h1": _bytes("activations at the lower cut, to the trunk"),
    "bytes-h2": _bytes("activations at the upper cut, from the trunk"),
    "bytes-g2": _bytes("gradients at the upper cut, to the trunk"),
    "bytes-g1": _bytes("gradients at the lower cut, from the trunk"),
    "bytes-context": _bytes("attention masks and position ids, to the trunk"),
    "bytes-prefix": _bytes("keys and values of a prefix, to the trunk; where there is one"),
    "bytes-prefix-grad": _bytes("gradients at the prefix, from the trunk; where there is one"),
    "bytes-adapter-up": _bytes("the trunk's adapter, written by the silo; where it is shared"),
    "bytes-adapter-down": _bytes("the trunk's adapter and its gradients; where it is shared"),
    "trunk-forwards": Counter(meaning="microbatches that passed the trunk", unit="", whole=True),
    "trunk-tokens": Counter(
        meaning="positions that passed the trunk, padding included", unit="", whole=True
    ),
    "queue-seconds": _seconds("passes waited at the trunk until they were computed, in total"),
    "queue-length": Counter(
        meaning="requests of other silos that waited as one arrived, in the mean", unit=""
    ),
    "batch-occupancy": Counter(
        meaning="rows computed together over the silo's own: 1 alone, 2 with as many of others",
        unit="",
    ),
    **{
        noisy_rows(hop): Counter(
            meaning=f"token rows of {hop} that have left the silo in the whole run, padding and "
            "failed sessions included; where `wire.*-noise` is set",
            unit="",
            whole=True,
        )
        for hop in UPWARD_HOPS
    },
    NOISE_ACCOUNT: Counter(
        meaning="a number of the account that counts these rows, drawn when it was begun",
        unit="",
        whole=True,
    ),
    DP_STEPS: Counter(
        meaning="steps of DP-SGD that the silo has taken in the whole run, failed sessions "
        "included; where `dp.noise` is set",
        unit="",
        whole=True,
    ),
    DP_EXAMPLES: Counter(
        meaning="examples that these steps drew from, the fewest of any", unit="", whole=True
    ),
    DP_ACCOUNT: Counter(
        meaning="a number of the account that counts these steps, drawn when it was begun",
        unit="",
        whole=True,
    ),
    "optimizer-steps": Counter(meaning="steps taken on both sides", unit="", whole=True),
    "state-resumed": Counter(
        meaning="1 where it resumed from what an earlier session left",
        unit="",
        whole=True,
        most=1,
    ),
    "parameter-share": Counter(
        meaning="part of the model's parameters that the silo holds", unit="", most=1
    ),
    "delivery-bytes": _bytes("download of the model in this session; 0 where it was there already"),
    "delivery-seconds": _seconds("of `seconds-loading`: that download"),
}
"""By the name under which replies, `result.json` and TensorBoard have them."""


def bytes_counter(hop: str) -> str:
    """The counter of a hop's bytes, by the hop's name in `WireBytes`."""
    return f"bytes-{hop.replace('_', '-')}"


def trunk_counters(summary: SessionSummary) -> dict[str, int | float]:
    """The counters that are the trunk's own; those of the queue only where the trunk kept them."""
    queue, passes = summary.queue, summary.forwards + summary.backwards
    found: dict[str, int | float] = {
        "trunk-forwards": summary.forwards,
        "trunk-tokens": summary.tokens,
        "optimizer-steps": summary.steps,
    }
    if queue.rows:
        found |= {
            "queue-seconds": queue.seconds,
            "queue-length": queue.length / max(passes, 1),
            "batch-occupancy": (queue.rows + queue.rows_beside) / queue.rows,
        }
    return found


def checked_counters(told: Mapping[str, object]) -> dict[str, int | float]:
    """What is a counter in `told`, in the table's order: known by name, finite, within its bounds.

    Whatever else a silo told is left out.
    """
    return {
        name: told[name]  # type: ignore[misc]
        for name, counter in COUNTERS.items()
        if name in told and _is_valid(told[name], counter)
    }


def _is_valid(value: object, counter: Counter) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if counter.whole else (int, float)):
        return False
    return math.isfinite(value) and 0 <= value <= counter.most
