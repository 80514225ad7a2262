"""Rows 4, 5, 32, 33 and 34: whole runs that are killed, stopped, interleaved, or searched."""

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hosting import eventually
from in_process_grid import RUN_ID, InProcessGrid
from split_run import run_split
from steps import KEEPING, run_config, steps_of
from tiny_checkpoint import save_tiny_model
from watched_trunk import NEIGHBOUR, STEPS, VICTIM, Trained, WatchedTrunk, watched_trunk, withstood

from flower_split.apps.client_app import app as ready_made
from flower_split.apps.server_app import app as server_app
from flower_split.client import SplitSession, answer_name_query
from flower_split.errors import ForeignRunError, TokenError, TrunkUnavailableError
from flower_split.tls import credentials

SILOS, ROUNDS = 2, 2


class Killed(BaseException):
    """In place of a signal."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def values(model: Path, output: Path, **changes: Any) -> dict[str, Any]:
    settings = {"num-server-rounds": ROUNDS, "strategy.min-nodes": SILOS}
    given = {**KEEPING, **settings, "output-dir": str(output), **changes}
    return run_config(model, **given)


def ran(config: dict[str, Any], steps: Any = steps_of) -> Any:
    inner = FedAdam(fraction_evaluate=0.0, eta=1e-2, min_train_nodes=SILOS)
    result, _ = run_split(config, inner, silos=SILOS, steps=steps)
    return result.arrays


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The adapter of a run that nobody kills."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        return ran(values(model, tmp_path_factory.mktemp("whole")))


PLACES = [(2, 1, 1), (1, 0, 0)] + [
    (number, silo, step)
    for number in (1, 2)
    for silo in range(SILOS)
    for step in range(3)
    if (number, silo, step) not in ((2, 1, 1), (1, 0, 0))
]
"""Round, silo and step."""


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("place", PLACES)
def test_row_04_a_server_that_is_killed_at_any_step(
    model: Path, whole: Any, tmp_path: Path, place: tuple[int, int, int]
) -> None:
    """The run is submitted again, resumes from its last checkpoint, and ends to the bit as if not.

    What kills at once, between two instructions, is `test_row_04_a_killed_and_resumed_run…`.
    """

    def killing(partition: int, server_round: int) -> tuple[Any, int]:
        steps, examples = steps_of(partition, server_round)
        if (server_round, partition) == place[:2]:
            return Cut(steps, place[2]), examples
        return steps, examples

    class Cut(list[Any]):
        def __init__(self, steps: list[Any], at: int) -> None:
            super().__init__(steps)
            self._at = at

        def __iter__(self) -> Iterator[Any]:
            yield from self[: self._at]
            raise Killed

    with pytest.raises(Killed):
        ran(values(model, tmp_path), killing)
    resumed = ran(values(model, tmp_path, resume=True))
    assert list(resumed) == list(whole)
    for name, array in whole.items():
        assert (array.numpy() == resumed[name].numpy()).all(), name


def health_of(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status)


@pytest.mark.medium
def test_row_05_a_trunk_that_is_told_to_stop(caplog: pytest.LogCaptureFixture) -> None:
    """It is not ready any more, an open session ends its step, and no longer than the grace."""
    serving = health_pb2.HealthCheckResponse
    with watched_trunk() as trunk:
        invited = trunk.invite(VICTIM)
        with trunk.connect(invited) as transport:
            first = trunk.make_step(transport, VICTIM, 0)
            assert health_of(trunk.server.health_address) == serving.SERVING
            stopping = threading.Thread(target=trunk.server.stop, args=(20.0,))
            stopping.start()
            assert eventually(lambda: health_of(trunk.server.health_address) == serving.NOT_SERVING)
            with pytest.raises(TrunkUnavailableError):
                trunk.connect(trunk.invite(NEIGHBOUR), connect_timeout=1.0)
            second = trunk.make_step(transport, VICTIM, 1)
            transport.finish()
        stopping.join(20.0)
        assert not stopping.is_alive()
        outcome = invited.record.collect()
        assert outcome is not None and outcome.summary.steps == STEPS
    with watched_trunk() as again:
        assert Trained([*first, *second]).equals(again.alone(VICTIM)[0])


@pytest.mark.medium
def test_row_32_silos_that_are_gone_for_good(caplog: pytest.LogCaptureFixture) -> None:
    """Their leases run out: sessions end, and what earlier ones left is kept for the next."""
    clock = [0.0]
    with watched_trunk(clock=lambda: clock[0]) as trunk, withstood(trunk, caplog) as fault:
        kept = trunk.invite(VICTIM)
        assert fault.attempt(kept) is not None
        trunk.engine.accept(kept.ticket)
        gone = [trunk.invite(node, seconds=60.0) for node in (20, 21)]
        transports = [trunk.connect(one) for one in gone]
        assert trunk.server.num_sessions == 3
        clock[0] = 60.0
        assert eventually(lambda: trunk.server.num_sessions == 1)
        assert all(one.record.is_broken and one.record.collect() is None for one in gone)
        for one, transport in zip(gone, transports, strict=True):
            transport.close()
            fault.refused(lambda one=one: trunk.connect(one), TokenError)
        (left,) = trunk.engine.session_states()
        assert left.silo == f"silo-{VICTIM}"


def interleaved(trunk: WatchedTrunk, runs: tuple[int, ...]) -> list[Trained]:
    """Sessions of one node of each run, whose steps are made in turn."""
    invited = [trunk.invite(VICTIM, run=run) for run in runs]
    transports = [trunk.connect(one) for one in invited]
    answers: list[list[torch.Tensor]] = [[] for _ in runs]
    for step in range(STEPS):
        for transport, got in zip(transports, answers, strict=True):
            got += trunk.make_step(transport, VICTIM, step)
    made = [Trained(got) for got in answers]
    for one, transport, trained in zip(invited, transports, made, strict=True):
        transport.finish()
        transport.close()
        trunk.is_alone(one, trained)
    return made


@pytest.mark.medium
def test_row_33_two_runs_interleaved(trunk: WatchedTrunk, caplog: pytest.LogCaptureFixture) -> None:
    """Each is as it is alone, to the bit, and no token of one is good in the other."""
    with withstood(trunk, caplog) as fault:
        interleaved(trunk, (331, 332))
        ours, theirs = trunk.invite(VICTIM, run=333), trunk.invite(VICTIM, run=334)
        crossed = replace(ours, ticket=replace(ours.ticket, run_id=theirs.ticket.run_id))
        fault.refused(lambda: trunk.connect(crossed), ForeignRunError)
        assert fault.attempt(theirs) is not None and fault.attempt(ours) is not None


TEXT = "xyzzyplugh"
"""A word of the silos' texts."""


def test_row_34_secrets_of_a_whole_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """None in logs, metrics, errors or files: with a silo that fails, a model that is delivered,
    and TensorBoard's files."""
    keys: list[str] = []
    make = credentials.make_identity

    def noting(hosts: tuple[str, ...]) -> tuple[bytes, bytes, bytes]:
        made = make(hosts)
        keys.extend(made[1].decode().splitlines()[1:-1])
        return made

    monkeypatch.setattr(credentials, "make_identity", noting)
    texts, output = tmp_path / "texts.jsonl", tmp_path / "output"
    rows = [{"text": f"the sum of {TEXT} value number {n % 3}"} for n in range(24)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model.name": str(model),
        "model.delivery": "server",
        "data.path": str(texts),
        "data.eval-fraction": 0.25,
        "train.batch-size": 4,
        "train.max-length": 16,
        "lora.r": 2,
        "num-server-rounds": 1,
        "strategy.min-nodes": 3,
        "strategy.min-replies": 2,
        "output-dir": str(output),
        "tensorboard": True,
    }
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 2:
            with SplitSession(message, context):
                raise ValueError(f"cannot read {TEXT}")
        return ready_made(message, context)

    app.train()(answer)
    app.evaluate()(answer)
    app.query()(answer_name_query)
    replies: list[Message] = []

    def noted(reply: Message) -> list[Message]:
        replies.append(reply)
        return [reply]

    caplog.set_level(logging.DEBUG)
    grid = InProcessGrid(app, 3, run_config=config, tamper=noted)
    server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), config))

    invitations = [
        dict(record.items())
        for message in grid.sent
        for record in message.content.config_records.values()
    ]
    tokens = [str(one["split.token"]) for one in invitations if "split.token" in one]
    for one in invitations:
        tokens += str(one.get("split.delivery-tokens", "")).split()
    assert len(tokens) > 9 and keys
    failed = [reply for reply in replies if reply.has_error()]
    assert failed and "ValueError" in str(failed[0].error.reason)

    # What a silo's own log says stays in the silo.
    logs = [
        caplog.handler.format(record)
        for record in caplog.records
        if not record.name.startswith("flower_split.client")
    ]
    told = "\n".join([*logs, *(str(reply.error.reason) for reply in failed)]).encode()
    for reply in replies:
        if not reply.has_error():
            content = reply.content
            for records in (content.metric_records, content.config_records):
                told += repr({name: dict(one.items()) for name, one in records.items()}).encode()
    files = [path for path in output.rglob("*") if path.is_file()]
    assert {"result.json", "manifest.json"} <= {path.name for path in files}
    told += b"".join(path.read_bytes() for path in files)
    secrets = [TEXT, *tokens, *keys]
    assert [secret for secret in secrets if secret.encode() in told] == []
