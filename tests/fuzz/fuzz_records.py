"""Harnesses of Flower's messages: arrays of replies, fields of invitations, what a silo tells."""

from contextlib import suppress

import numpy as np
from flwr.app import Array, ConfigRecord, MetricRecord, RecordDict
from fuzz_choices import Choices

from flower_split.errors import AdapterError, FlowerSplitError, TokenError, WireError
from flower_split.lowrank import Allowance, Instructions, Scaling, scaling_from_fields
from flower_split.reporting.counters import COUNTERS, checked_counters
from flower_split.strategies.hosting.replies import outvoted, own_problem, readable
from flower_split.transport.arrays import read_array
from flower_split.transport.invitation import DeliveryOffer, Invitation, read_name
from flower_split.transport.messages import Ticket

_SAVED = [
    Array(np.arange(6, dtype=np.float32).reshape(2, 3)),
    Array(np.asfortranarray(np.ones((2, 3)))),
    Array(np.zeros((), np.int64)),
    Array(np.array([True, False])),
    Array(np.zeros((0, 3), np.float16)),
]
_DTYPES = ("float32", "float64", "float16", "int64", "bool", "object", "<f4", "", "complex64", "U3")


def arrays(data: bytes) -> None:
    """`read_array`: a file of numpy's with damage, under fields of any kind."""
    choices = Choices(data)
    honest = choices.of(_SAVED)
    content = bytearray(honest.data)
    dtype, shape, kind = honest.dtype, tuple(honest.shape), honest.stype
    if choices.yes():
        dtype = choices.of(_DTYPES)
    if choices.yes():
        shape = tuple(abs(choices.number()) for _ in range(choices.below(4)))
    if choices.below(16) == 1:
        kind = choices.text()
    if choices.yes():
        content[10:] = choices.rest()
    while choices.more:
        at = choices.below(len(content) + 1)
        content[at : at + choices.below(6)] = choices.bytes(6)
    sent = Array(dtype=dtype, shape=shape, stype=kind, data=bytes(content))
    try:
        values = read_array(choices.text(), sent)
    except AdapterError as error:
        assert len(str(error)) < 600
        return
    assert values.nbytes <= len(content) and values.shape == shape and str(values.dtype) == dtype


_INVITATION = Invitation(
    address="localhost:1",
    ticket=Ticket(run_id=1, node_id=2, server_round=3, token="t" * 32),
    purpose="train",
    num_rounds=3,
    offer=DeliveryOffer(
        pack="ab" * 32,
        tickets=(Ticket(run_id=1, node_id=2, server_round=3, token="u" * 32),),
    ),
).to_fields()
_INSTRUCTIONS = Instructions(
    trains=frozenset("A"), personal=frozenset({"x"}), scale=2.0, proximal_mu=0.5, controlled=True
).to_fields()
_TOLD = {"r": 4, "alpha": 8.0, "rslora": False}
_COUNTED = dict.fromkeys(COUNTERS, 1) | {"silo": "north", "proof": "00"}
_MESSAGES = (_INVITATION, _INSTRUCTIONS, _TOLD, _COUNTED)
_KEYS = sorted({key for fields in _MESSAGES for key in fields})
_RUN = Allowance(scaling=Scaling(r=4, alpha=8.0), ranks=True, alphas=True, max_r=64)
_PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"


def fields(data: bytes) -> None:
    """What config records hold: invitations, instructions, scalings, counters and names."""
    choices = Choices(data)
    told: dict[str, object] = dict(choices.of(_MESSAGES))
    while choices.more:
        key = choices.of(_KEYS)
        if choices.below(8) == 1:
            told.pop(key, None)
        else:
            told[key] = _field(choices)
    try:
        found = Invitation.from_fields(told, run_id=1, node_id=2)
    except (TokenError, WireError):
        pass
    else:
        assert found.is_proven_by(found.proof())
        Invitation.from_fields(found.to_fields(), run_id=1, node_id=2)
    try:
        instructions = Instructions.from_fields(told)
    except AdapterError:
        pass
    else:
        assert Instructions.from_fields(instructions.to_fields()) == instructions
    with suppress(AdapterError):
        _RUN.problem(scaling_from_fields(told))
    assert checked_counters(told).keys() <= COUNTERS.keys()
    assert len(read_name(told)) <= 4096


def _field(choices: Choices) -> object:
    """A value as a ConfigRecord holds one."""
    kind = choices.below(8)
    if kind == 0:
        return (choices.number() + 2**63) % 2**64 - 2**63
    if kind == 1:
        return choices.float()
    if kind == 2:
        return choices.yes()
    if kind == 3:
        return choices.bytes(16)
    if kind == 4:
        return [choices.text() for _ in range(choices.below(4))]
    if kind == 5:
        return [choices.float() for _ in range(choices.below(4))]
    if kind == 6:
        return _PEM.format(choices.bytes(48).decode("latin-1"))
    return choices.text()


def metrics(data: bytes) -> None:
    """Which metrics of replies can be averaged, and what of a failure's reason is readable."""
    choices = Choices(data)
    contents: dict[int, RecordDict] = {}
    for node in range(choices.below(4)):
        content = RecordDict()
        for number in range(choices.below(3)):
            record = {"num-examples": 1 + choices.number()}
            for _ in range(choices.below(4)):
                key = choices.text()[:200]
                values = [choices.float() for _ in range(choices.below(4))]
                record[key] = values if choices.yes() else (values or [0.5])[0]
            content[f"metrics{number}"] = MetricRecord(record)
        content["split"] = ConfigRecord({})
        try:
            problem = own_problem(content, "num-examples", trained=False)
        except FlowerSplitError as error:
            raise AssertionError("told as a problem, not raised") from error
        assert len(problem) < 600
        if not problem:
            contents[node] = content
    outvoted(contents)
    text = choices.rest().decode("utf-8", "replace")
    assert len(readable(f"<class 'x.Y'>:<'{text}'>")) <= len(text) + 4200
    readable(text)


SEEDS = {
    "arrays": lambda: [bytes([number, 0, 0, 0, 0, 20, 1, 3]) for number in range(len(_SAVED))],
    "fields": lambda: [bytes([number, 3, 0, 1, 7]) for number in range(len(_MESSAGES))],
    "metrics": lambda: [bytes([3, 1, 0, 5, 2, 1, 4, 1, 1, 7, 1]), b"\x00<class 'a.B'>:<'text'>"],
}
HARNESSES = {"arrays": arrays, "fields": fields, "metrics": metrics}
