"""A service's control port: whom it takes, what it refuses of them, and how it ends."""

import threading
import time
from dataclasses import replace

import grpc
import pytest
from steps import run_config
from tiny_checkpoint import save_tiny_model
from trunk_services import at, serving

import flower_split
from flower_split.config.run_config import read_run_config
from flower_split.control.caller import ControlCaller
from flower_split.control.content import Content
from flower_split.control.run_bounds import RunBounds
from flower_split.control.run_settings import told_settings
from flower_split.control.service import MOST_CALLS, PROTOCOL_VERSION
from flower_split.control.service_tls import ServiceTls
from flower_split.errors import (
    AdapterError,
    CertificateError,
    ConfigError,
    HandshakeError,
    TokenError,
    TrunkBusyError,
    TrunkError,
    TrunkRestartedError,
    TrunkUnavailableError,
    WireError,
)
from flower_split.proto import control_pb2 as pb
from flower_split.proto.control_pb2_grpc import ControlStub
from flower_split.server.hosting.run_trunk import Invitee
from flower_split.server.ticket_record import TrunkStart
from flower_split.strategies import TrunkHost
from flower_split.strategies.hosting.invited_silo import RoundTerms
from flower_split.tls import ClientTls
from flower_split.tls.provisioning import (
    make_ca,
    make_server,
    make_silo_certificate,
    make_strategy,
)
from flower_split.transport.grpc.transport import GrpcTransport


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Files of one CA: the service, two strategies that it takes, another one, and a silo."""
    keys = tmp_path_factory.mktemp("keys")
    make_ca(keys)
    make_server(keys, ["localhost"])
    for name in ("north", "south", "stranger"):
        make_strategy(keys, name)
    make_silo_certificate(keys, "clinic")
    return keys


@pytest.fixture(scope="module")
def tls(keys):
    return ServiceTls.from_files(
        str(keys / "server.crt"),
        str(keys / "server.key"),
        ca=str(keys / "ca.crt"),
        strategies=[str(keys / f"{name}-strategy.crt") for name in ("north", "south")],
    )


@pytest.fixture(scope="module")
def service(folder, tls):
    with serving(run_config(folder), tls=tls) as server:
        yield server


@pytest.fixture
def config(folder, service, keys):
    def make(name="north-strategy", **changes):
        files = {
            "trunk.service-ca": str(keys / "ca.crt"),
            "trunk.service-certificate": str(keys / f"{name}.crt"),
            "trunk.service-key": str(keys / f"{name}.key"),
        }
        return read_run_config(at(service, run_config(folder), **files, **changes))

    return make


def caller_as(keys, service, name):
    pair = (
        {}
        if name is None
        else {"certificate": f"{keys}/{name}.crt", "private_key": f"{keys}/{name}.key"}
    )
    tls = ClientTls.from_files(ca=f"{keys}/ca.crt", **pair)
    return ControlCaller(service.control_address, tls, patience=1.0)


def test_a_strategy_that_the_operator_named_can_open_a_run(config, service):
    with TrunkHost(config()) as host:
        assert host.uses_tls
        assert len(service.runs.all) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("stranger-strategy", TokenError),
        ("clinic-trunk", TokenError),
        (None, CertificateError),
    ],
)
def test_nobody_else_gets_an_answer(keys, service, name, kind):
    with caller_as(keys, service, name) as caller, pytest.raises(kind, match="certificate"):
        caller.call(pb.Call(hello=pb.Hello()), seconds=5.0)


def test_a_strategy_without_tls_is_told_what_it_lacks(service):
    with (
        ControlCaller(service.control_address, None, patience=1.0) as caller,
        pytest.raises(CertificateError, match="TLS"),
    ):
        caller.call(pb.Call(hello=pb.Hello()), seconds=5.0)


def test_no_strategy_reaches_the_run_of_another(keys, service, config):
    """Not even with its secret, and with the same answer as for a run that does not exist."""
    with TrunkHost(config()), caller_as(keys, service, "south-strategy") as caller:
        (run,) = service.runs.all
        said = set()
        for secret in (run.secret, bytes(32)):
            with pytest.raises(TrunkRestartedError) as caught:
                caller.call(pb.Call(run=secret, read_shared=pb.ReadShared()))
            said.add(str(caught.value))
        assert len(said) == 1


def test_another_version_is_refused(keys, service, monkeypatch):
    monkeypatch.setattr("flower_split.control.caller.PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    with (
        caller_as(keys, service, "north-strategy") as caller,
        pytest.raises(HandshakeError, match="install the same version"),
    ):
        caller.call(pb.Call(hello=pb.Hello()))


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        ([], WireError),
        ([{"text_bytes": 2 << 20}], WireError),
        ([{"tensor_bytes": 1}], WireError),
        ([{"text_bytes": 4}, b"nonsense"], WireError),
        ([{"text_bytes": 4, "crc32": 0xFFFFFFFF}, b"null"], WireError),
        ([{"text_bytes": 4}, b"nu"], WireError),
        ([{"text_bytes": 100_000, "crc32": 1}, b"[" * 100_000], WireError),
    ],
)
def test_malformed_calls_cost_their_strategy_an_error_alone(keys, service, frames, kind):
    with caller_as(keys, service, "north-strategy") as caller:
        made = []
        if frames:
            call = pb.Call(
                protocol_version=PROTOCOL_VERSION,
                version=flower_split.__version__,
                open=pb.Open(),
                content=pb.Content(**frames[0]),
            )
            made = [pb.CallFrame(call=call, piece=b"".join(frames[1:]))]
        tls = grpc.ssl_channel_credentials(
            (keys / "ca.crt").read_bytes(),
            (keys / "north-strategy.key").read_bytes(),
            (keys / "north-strategy.crt").read_bytes(),
        )
        with (
            grpc.secure_channel(service.control_address, tls) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            list(ControlStub(channel).Do(iter(made), timeout=10.0))
        named = dict(caught.value.trailing_metadata())["flower-split-error"]
        assert named == kind.__name__
        caller.call(pb.Call(hello=pb.Hello()))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([1, 2], "table of run-config keys"),
        ({"trunk.host": "0.0.0.0"}, "no setting"),
        ({"output-dir": "/etc"}, "no setting"),
        ({"model.name": 3}, "model.name"),
    ],
)
def test_a_run_is_opened_by_its_settings_and_nothing_else(keys, service, told, said):
    with (
        caller_as(keys, service, "north-strategy") as caller,
        pytest.raises((ConfigError, TrunkError), match=said),
    ):
        caller.call(pb.Call(open=pb.Open()), Content(text=told))


def test_a_run_whose_strategy_is_gone_is_closed(config, service, monkeypatch):
    with TrunkHost(config()):
        (run,) = service.runs.all
        service.runs.expire()
        assert service.runs.all == [run]
        run.seen = time.monotonic() - 100.0
        service.runs.expire()
        assert service.runs.all == []


def test_without_tls_a_service_is_on_loopback_only(folder):
    values = run_config(folder)
    for where in ("data", "control"):
        with (
            pytest.raises(ConfigError, match="reached from other machines"),
            serving(values, **{where: "0.0.0.0:0"}),
        ):
            pass


def test_a_certificate_of_a_service_needs_strategies(tls):
    with pytest.raises(ConfigError, match="--strategy"):
        replace(tls, strategies=frozenset())


@pytest.mark.parametrize("devices", ["cpu", "cpu, cpu"])
def test_a_service_that_is_told_to_end_waits_for_what_is_under_way(folder, devices):
    """Until the session has ended and its strategy has what it left; nothing new is taken."""
    values = run_config(folder)
    with (
        serving(values, devices=devices) as server,
        TrunkHost(read_run_config(at(server, values))) as host,
    ):
        _, trunk = host.parts.split(host.begin(None))
        terms = RoundTerms(purpose="train", server_round=1, num_rounds=1, seconds=60.0)
        invited = [host.invite(terms, 1, node, TrunkStart(tensors=trunk)) for node in (5, 6)]
        (run,) = server.runs.all
        spec = replace(run.hosted.engine.describe(), silo="north")
        ticket, other = (one.invitation.ticket for one in invited)
        transport = GrpcTransport(server.address, spec, ticket)
        assert not server.drain(0.5)
        with pytest.raises(TrunkUnavailableError, match="being stopped"):
            GrpcTransport(server.address, replace(spec, silo="south"), other)
        summary = transport.finish()
        transport.close()
        assert not server.drain(0.5)
        outcome = invited[0].collect()
        assert outcome.summary.steps == summary.steps == 0
        assert list(outcome.tensors) == list(trunk)
        assert server.drain(30.0)


def test_a_run_has_its_share_of_memory_and_no_more(folder):
    values = run_config(folder)
    with serving(values, bounds=RunBounds(max_bytes=100)) as server:
        config = read_run_config(at(server, values))
        with TrunkHost(config) as host, pytest.raises(TrunkBusyError, match="--run-gib"):
            _, trunk = host.parts.split(host.begin(None))
            terms = RoundTerms(purpose="train", server_round=1, num_rounds=1, seconds=60.0)
            host.invite(terms, 1, 5, TrunkStart(tensors=trunk))


@pytest.mark.medium
def test_no_strategy_can_take_all_runs_or_all_calls(folder, tls, keys):
    """Others find a run and an answer, whatever it has open and half sent."""
    bounds = RunBounds(max_runs=3)
    values = run_config(folder)
    with (
        serving(values, tls=tls, bounds=bounds) as server,
        caller_as(keys, server, "north-strategy") as north,
        caller_as(keys, server, "south-strategy") as south,
    ):
        told = Content(text=told_settings(read_run_config(values)))
        runs = [north.call(pb.Call(open=pb.Open()), told)[0].opened.run for _ in range(2)]
        with pytest.raises(TrunkBusyError, match="2 of them this strategy's"):
            north.call(pb.Call(open=pb.Open()), told)
        begin = pb.Call(
            protocol_version=PROTOCOL_VERSION,
            version=flower_split.__version__,
            run=runs[0],
            begin=pb.Begin(),
            content=pb.Content(tensor_bytes=100),
        )
        ended = threading.Event()

        def half_sent():
            yield pb.CallFrame(call=begin, piece=b"x")
            ended.wait(30.0)

        pair = [(keys / f"north-strategy.{end}").read_bytes() for end in ("key", "crt")]
        credentials = grpc.ssl_channel_credentials((keys / "ca.crt").read_bytes(), *pair)
        with grpc.secure_channel(server.control_address, credentials) as channel:
            calls = [ControlStub(channel).Do(half_sent(), timeout=30.0) for _ in range(MOST_CALLS)]
            while server.runs.find(runs[0], server.runs.all[0].owner).calls < MOST_CALLS:
                time.sleep(0.01)
            with pytest.raises(TrunkBusyError, match="calls of this strategy"):
                north.call(pb.Call(hello=pb.Hello()))
            south.call(pb.Call(hello=pb.Hello()), seconds=5.0)
            south.call(pb.Call(open=pb.Open()), told)
            ended.set()
            for one in calls:
                one.cancel()


@pytest.mark.parametrize("kind", ["look", "begin", "read_states", "collect"])
def test_a_text_without_a_use_is_not_taken(keys, service, kind, config):
    with TrunkHost(config()), caller_as(keys, service, "north-strategy") as caller:
        call = pb.Call(run=service.runs.all[0].secret)
        getattr(call, kind).SetInParent()
        with pytest.raises(WireError, match="at most 0"):
            caller.call(call, Content(text=[{}] * 1000))


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"peft.exclude-modules": "((a*)*)*!"}, ConfigError, "no regular expression"),
        ({"lora.r": 100_000_000}, TrunkBusyError, "--run-gib"),
        ({"peft.rank-pattern": '{"q_proj": 100000000}'}, TrunkBusyError, "--run-gib"),
        ({"trunk.max-memory": 1e6}, ConfigError, "--max-memory"),
        ({"seed": 10**40}, ConfigError, "seed"),
    ],
)
def test_what_would_cost_the_others_is_refused(keys, service, folder, changes, kind, said):
    told = {**told_settings(read_run_config(run_config(folder))), **changes}
    with (
        caller_as(keys, service, "north-strategy") as caller,
        pytest.raises((kind, AdapterError), match=said),
    ):
        caller.call(pb.Call(open=pb.Open()), Content(text=told), seconds=60.0)


def test_a_silo_that_is_invited_as_the_run_is_closed_gets_nothing(folder):
    values = run_config(folder)
    with serving(values) as server:
        with TrunkHost(read_run_config(at(server, values))) as host:
            _, trunk = host.parts.split(host.begin(None))
            (run,) = server.runs.all
        invitee = Invitee(run_id=1, node_id=5, server_round=1, purpose="train", seconds=60.0)
        with pytest.raises(TrunkRestartedError, match="was closed"):
            run.invite(bytes(16), invitee, 0, TrunkStart(tensors=trunk), known=False)
        assert not run.sessions
        assert run.room == run.quota.max_bytes
