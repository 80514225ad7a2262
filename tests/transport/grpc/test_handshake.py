"""The handshake's frames say exactly what the two parties meant."""

from typing import Any

import pytest
from affine_backend import spec
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_split.config.sections import CODECS, DTYPES, HOPS, WireConfig
from flower_split.errors import HandshakeError, WireError
from flower_split.optimization.settings import OptimizerSettings
from flower_split.proto import trunk_pb2 as pb
from flower_split.transport.grpc.handshake import (
    hello_frame,
    read_hello,
    read_welcome,
    welcome_frame,
)
from flower_split.transport.messages import SessionLimits, SessionSpec, Ticket

UINT64 = st.integers(0, 2**64 - 1)
UINT32 = st.integers(0, 2**32 - 1)
FRACTION = st.floats(0, 1)
BETA, EPS = st.floats(0, 1, exclude_max=True), st.floats(1e-12, 1)


@settings(max_examples=100, deadline=None)
@given(
    given_spec=st.builds(
        SessionSpec,
        purpose=st.sampled_from(["train", "evaluate"]),
        fingerprint=st.text(max_size=64),
        num_layers=UINT32,
        bottom_layers=UINT32,
        top_layers=UINT32,
        dtype=st.sampled_from(DTYPES),
        trunk_adapters=st.sampled_from(["federated", "shared", "frozen"]),
        adapter=st.text(max_size=200),
        wire=st.builds(WireConfig, **{hop: st.sampled_from(CODECS) for hop in HOPS}),
        optimizer=st.builds(
            OptimizerSettings,
            beta1=BETA,
            beta2=BETA,
            eps=EPS,
            weight_decay=FRACTION,
            max_grad_norm=FRACTION,
            max_learning_rate=FRACTION,
        ),
        seed=UINT64,
        pack=st.text(max_size=70),
        prefix_tokens=UINT32,
    ),
    ticket=st.none()
    | st.builds(
        Ticket, run_id=UINT64, node_id=UINT64, server_round=UINT64, token=st.text(max_size=50)
    ),
)
def test_a_hello_arrives_as_it_was_meant(given_spec: SessionSpec, ticket: Ticket | None) -> None:
    frame = pb.ClientFrame.FromString(hello_frame(given_spec, ticket).SerializeToString())
    assert read_hello(frame.hello) == (given_spec, ticket)


SENT = {
    "0a870108021209080110021803220174180122043030666628063002380140024a0966656465726174656452077b22"
    "72223a347d58056003680670047a3609cdccccccccccec3f112b8716d9cef7ef3f193a8c30e28e79453e217b14ae47"
    "e17a843f29000000000000f03f310000000000408f408001078a01056e6f7274689a01086162616261626162": (
        SessionSpec(
            purpose="train",
            fingerprint="00ff",
            num_layers=6,
            bottom_layers=2,
            top_layers=1,
            dtype="bfloat16",
            trunk_adapters="federated",
            adapter='{"r":4}',
            wire=WireConfig(h1="int8", h2="bf16", g2="nf4", g1="fp16"),
            optimizer=OptimizerSettings(weight_decay=0.01, max_grad_norm=1.0),
            seed=7,
            silo="north",
            pack="abababab",
        ),
        Ticket(run_id=1, node_id=2, server_round=3, token="t"),
    ),
    "0a480802180222043030666628063002380140014a0666726f7a656e58026002680270027a2409cdccccccccccec3f"
    "112b8716d9cef7ef3f193a8c30e28e79453e310000000000408f40": (
        SessionSpec(
            purpose="evaluate",
            fingerprint="00ff",
            num_layers=6,
            bottom_layers=2,
            top_layers=1,
            dtype="float32",
            trunk_adapters="frozen",
            adapter="",
        ),
        None,
    ),
}
"""What protocol version 2 is in bytes."""


@pytest.mark.parametrize("written", SENT, ids=["all", "defaults"])
def test_a_hello_is_the_same_bytes_as_ever(written: str) -> None:
    frame = hello_frame(*SENT[written])
    assert frame.SerializeToString(deterministic=True).hex() == written


def test_transforms_that_are_unknown_or_out_of_bounds_are_refused() -> None:
    for names, message in (
        (["absent"], r"wire\.transforms must be one of noise.*, not 'absent'.* on both ends"),
        (["x" * 65], r"wire\.transforms: expected at most 16 names of 64"),
        (["x"] * 17, r"wire\.transforms: expected at most 16 names of 64"),
        (["x\n"], r"wire\.transforms: expected at most 16 names of 64"),
    ):
        hello = hello_frame(spec(), None).hello
        hello.transforms.extend(names)
        with pytest.raises(HandshakeError, match=message):
            read_hello(hello)


def test_a_welcome_arrives_as_it_was_meant() -> None:
    limits = SessionLimits(max_in_flight=3, max_message_tokens=2**40, max_cached_tokens=7)
    assert read_welcome(welcome_frame(limits).welcome) == limits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**64}, "does not fit the wire"),
        ({"seed": -1}, "does not fit the wire"),
        ({"num_layers": -1}, "does not fit the wire"),
        ({"dtype": "int64"}, "dtype 'int64', expected one of"),
    ],
)
def test_a_silo_does_not_send_what_does_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(HandshakeError, match=message):
        hello_frame(spec(**changes), None)


def test_a_ticket_that_does_not_fit_is_refused() -> None:
    ticket = Ticket(run_id=-1, node_id=0, server_round=0, token="")
    with pytest.raises(HandshakeError, match="does not fit the wire"):
        hello_frame(spec(), ticket)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("protocol_version", 1, "protocol_version: the silo speaks 1, the trunk 2"),
        ("protocol_version", 0, "protocol_version"),
        ("purpose", 0, "purpose: unknown number 0"),
        ("purpose", 9, "purpose: unknown number 9"),
        ("dtype", 0, "dtype"),
        ("dtype", pb.DTYPE_INT64, "dtype"),
        ("dtype", 99, "dtype"),
        ("h1", pb.CODEC_RAW, "h1: unknown codec number 1"),
        ("g1", 0, "g1: unknown codec number 0"),
        ("h2", 99, "h2: unknown codec number 99"),
        ("g2", 1000, "g2: unknown codec number 1000; .* on both ends"),
    ],
)
def test_a_hello_out_of_range_is_refused(field: str, value: int, message: str) -> None:
    hello = hello_frame(spec(), None).hello
    setattr(hello, field, value)
    with pytest.raises(HandshakeError, match=message):
        read_hello(hello)


def test_a_silo_offers_its_optimizer_states_and_hears_which_is_resumed() -> None:
    tags = tuple(digit * 64 for digit in "0af")
    sent = spec(silo="north", session_states=tags)
    assert read_hello(hello_frame(sent, None).hello) == (sent, None)
    assert welcome_frame(SessionLimits(), tags[1]).welcome.resumed == tags[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"silo": "x" * 201}, "silo: a name is at most 200 printable"),
        ({"silo": "north\nroot logged in"}, "silo: a name is at most 200 printable"),
        ({"session_states": ("0" * 64,) * 9}, "session_states: expected at most 8 tags"),
        ({"session_states": ("../etc",)}, "session_states: expected at most 8 tags"),
    ],
)
def test_names_and_tags_out_of_bounds_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(HandshakeError, match=message):
        read_hello(hello_frame(spec(**changes), None).hello)


@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf")])
def test_optimizer_constants_are_checked(value: float) -> None:
    hello = hello_frame(spec(), None).hello
    hello.optimizer.weight_decay = value
    with pytest.raises(HandshakeError, match="optimizer: weight_decay"):
        read_hello(hello)


def test_a_token_does_not_show_in_a_ticket_s_text() -> None:
    assert "secret" not in repr(Ticket(run_id=1, node_id=2, server_round=3, token="secret"))


@pytest.mark.parametrize("name", ["fingerprint", "trunk_adapters", "adapter", "pack"])
def test_a_text_that_is_too_long_is_refused_without_being_quoted(name: str) -> None:
    hello = hello_frame(spec(), None).hello
    setattr(hello, name, "x" * 70_000)
    with pytest.raises(HandshakeError, match=f"^{name}: more than") as caught:
        read_hello(hello)
    assert "xx" not in str(caught.value)


def test_a_token_of_any_length_is_read_in_bounds() -> None:
    ticket = Ticket(run_id=1, node_id=2, server_round=3, token="t" * 1_000_000)
    read = read_hello(hello_frame(spec(), ticket).hello)[1]
    assert read is not None and len(read.token) < 300


@pytest.mark.parametrize(
    "changed",
    [
        {"max_in_flight": 0},
        {"max_message_tokens": 0},
        {"max_cached_tokens": 0},
        {"max_adapter_elements": 2**40},
        {"resumed": "x" * 64},
        {"resumed": "a" * 10**6},
    ],
)
def test_a_welcome_that_no_session_can_keep_to_is_refused(changed: dict[str, Any]) -> None:
    welcome = welcome_frame(SessionLimits()).welcome
    for name, value in changed.items():
        setattr(welcome, name, value)
    with pytest.raises(WireError) as told:
        read_welcome(welcome)
    assert len(str(told.value)) < 200
