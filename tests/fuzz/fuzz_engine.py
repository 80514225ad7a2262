"""The harness of the engine: any requests that pass the reader, on the trunk of a tiny model.

Frames of good sessions are damaged, read as the trunk reads them, asked, and the answers encoded
and read as the silo reads them. Whatever a session does, the one beside it computes the same bits.
"""

import atexit
from functools import cache

import torch
from asking import opened
from fuzz_choices import Choices
from fuzz_wire import damaged, documented, rules_of
from tiny_models import tiny_model

from flower_split.adapters import resolve_lora
from flower_split.config.sections import LoraSettings
from flower_split.errors import TrunkError
from flower_split.segments import split_model
from flower_split.server.engine import TrunkEngine
from flower_split.transport.grpc.replies import ReplyReader, encode_reply
from flower_split.transport.grpc.requests import RequestReader, encode_request
from flower_split.transport.messages import (
    AdapterCall,
    AdapterUse,
    BackwardRequest,
    CacheEdit,
    CacheUse,
    Discard,
    DropCache,
    Finish,
    ForwardRequest,
    Release,
    SessionLimits,
    StepRequest,
    Weigh,
)
from flower_split.transport.rules import HopRules

HIDDEN = 16
SECONDS = 30.0
LIMITS = SessionLimits(
    max_in_flight=2, max_message_tokens=64, max_cached_tokens=128, max_adapter_elements=4096
)
MODES = ("federated", "frozen", "shared", "prefix")


def _hidden(seed: int, rows: int = 2, tokens: int = 3) -> torch.Tensor:
    return torch.randn(rows, tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def _forward(microbatch: int, step: int = 0, **changes) -> ForwardRequest:
    fields = {"hidden": _hidden(microbatch), "keep_graph": True, **changes}
    return ForwardRequest(step=step, microbatch=microbatch, **fields)


def _generating(microbatch: int, past: int, *edits: CacheEdit, tokens: int = 1) -> ForwardRequest:
    cache = CacheUse(cache_id=1, past_length=past, edits=edits)
    mask = torch.ones(2, past + tokens, dtype=torch.bool)
    return _forward(
        microbatch,
        hidden=_hidden(microbatch, 2, tokens),
        keep_graph=False,
        cache=cache,
        attention_mask=mask,
        position_ids=torch.arange(past, past + tokens)[None],
    )


def _backward(microbatch: int, step: int = 0, **changes) -> BackwardRequest:
    return BackwardRequest(step=step, microbatch=microbatch, grad=_hidden(90), **changes)


SCRIPTS = (
    (
        *(_forward(0), _forward(1), _backward(0), _backward(1, adapter_grad="measure")),
        StepRequest(step=0, learning_rate=1e-3, norms_before=(0.5,), norms_after=(0.25,)),
        *(_forward(2, 1, dropout=True), _backward(2, 1), Discard(zeros=True)),
        *(StepRequest(step=1, learning_rate=1e-3, keeps_gradient=True), Discard(), Finish()),
    ),
    (
        _generating(0, 0, tokens=4),
        _generating(1, 4),
        _generating(2, 5, CacheEdit(kind="reorder", values=(1, 0))),
        _generating(3, 4, CacheEdit(kind="crop", values=(2,))),
        _generating(4, 5, CacheEdit(kind="select", values=(0, 1))),
        *(DropCache(cache_id=1), Finish()),
    ),
    (
        *(AdapterCall(action="list"), AdapterCall(action="read")),
        *(AdapterCall(action="copy", name="c"), AdapterCall(action="snapshot", name="5" * 64)),
        _forward(0, adapter=AdapterUse(copy="c", scale=0.5), keep_graph=False),
        _forward(1, adapter=AdapterUse(disabled=True), keep_graph=False),
        *(_forward(2), _backward(2, adapter_grad="return")),
        *(
            AdapterCall(action="restore", name="5" * 64),
            AdapterCall(action="snapshot_moments", name="6" * 64),
        ),
        *(AdapterCall(action="restore_moments", name="6" * 64), AdapterCall(action="ranks_scores")),
        *(AdapterCall(action="ranks_mask", threshold=0.5), Finish()),
    ),
    (
        _forward(0),
        Release(microbatch=0),
        Weigh(microbatch=0, factors=(1.0,)),
        _forward(1, keep_graph=False, autocast="bfloat16"),
        Finish(),
    ),
    (
        _forward(0, prefix=torch.ones(4, 2, 8)),
        *(_backward(0, prefix_shape=(4, 2, 8)), StepRequest(step=0, learning_rate=0.0), Finish()),
    ),
)


@cache
def _engine(mode: str) -> TrunkEngine:
    model = tiny_model(layers=4, hidden_size=HIDDEN)
    plan = None
    if mode in ("federated", "shared"):
        plan = resolve_lora(model, LoraSettings(r=2, alpha=4.0, dropout=0.25))
    engine = TrunkEngine(
        split_model(model, 1, 1)[1],
        plan=plan,
        mode="frozen" if mode == "prefix" else mode,
        limits=LIMITS,
        shares_adapter=mode in ("federated", "shared"),
        prefix_tokens=2 if mode == "prefix" else 0,
    )
    return engine


@cache
def _neighbour(mode: str):
    """A session beside all others, with what it computed before any of them."""
    engine = _engine(mode)
    session = opened(engine, engine.describe("evaluate"), None)
    atexit.register(session.close)
    request = _forward(0, keep_graph=False, hidden=_hidden(77, 1, 4))
    return session, request, [0], session.forward(request)


def _neighbour_computes_the_same(mode: str) -> None:
    session, request, last, expected = _neighbour(mode)
    last[0] += 1
    again = session.forward(
        ForwardRequest(step=0, microbatch=last[0], hidden=request.hidden, keep_graph=False)
    )
    assert torch.equal(again, expected)


@cache
def _frames(mode: str, script: int) -> list:
    rules = HopRules(_engine(mode).describe())
    return [f for request in SCRIPTS[script] for f in encode_request(request, rules).frames()]


def engine(data: bytes) -> None:
    """See the module."""
    choices = Choices(data)
    mode, purpose = choices.of(MODES), choices.of(("train", "train", "train", "evaluate"))
    trunk = _engine(mode)
    _neighbour(mode)
    spec = trunk.describe(purpose)
    rules = HopRules(spec)
    frames = damaged(_frames(mode, choices.below(len(SCRIPTS))), rules_of(spec), choices)
    asking = opened(trunk, spec, None)
    reader = RequestReader(spec, trunk.limits, HIDDEN)
    try:
        for frame in frames:
            pending = reader.feed(frame)
            if pending is None:
                continue
            request = pending.build()
            reply = asking.ask(request)
            if isinstance(request, Release | DropCache | Discard | Weigh):
                continue
            _read_by_the_silo(request, reply, rules)
            if isinstance(request, Finish):
                break
    except TrunkError as error:
        documented(error)
    finally:
        asking.close()
    if mode != "shared":
        _neighbour_computes_the_same(mode)


def _read_by_the_silo(request, reply, rules: HopRules) -> None:
    """What the trunk sends, its own reader takes; a reply that cannot be sent is a WireError."""
    if isinstance(request, BackwardRequest) and getattr(reply, "prefix_grad", None) is not None:
        return  # a silo knows of its prefix, which a request does not carry
    reader = ReplyReader(request, rules, LIMITS)
    for frame in encode_reply(request, reply, rules).frames():
        reader.feed(frame)
    reader.reply()


SEEDS = {
    "engine": lambda: [
        bytes([mode, purpose, script, *damage])
        for mode in range(len(MODES))
        for purpose in (0, 3)
        for script in range(len(SCRIPTS))
        for damage in ((), (1, 8, 2, 1, 5))
    ]
}
HARNESSES = {"engine": engine}
