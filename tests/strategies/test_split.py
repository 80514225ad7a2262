import logging
import time

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    Krum,
)
from in_process_grid import FIRST_NODE, InProcessGrid, over_the_wire
from toy_trunk import SHAPES, TRUNK, ToyHost, honest_reply, toy_config

from flower_split.config.sections import LoraSettings, StrategyConfig
from flower_split.errors import AdapterError, ConfigError, RoundError, SuperLinkError
from flower_split.strategies import Alone, FLoRA, SplitStrategy

COUNTED = {"trunk-forwards": 1, "trunk-tokens": 1, "optimizer-steps": 1}
"""What the toy trunk counts itself in every session."""
QUIET = {"fraction_evaluate": 0.0}


def test_the_inner_strategy_sees_whole_adapters_and_silos_their_part(toy, values):
    ran = toy(FedAvg())
    assert values(ran.result.arrays) == {
        "bottom.A": 2.0,
        "trunk.A": 20.0,
        "trunk.B": 20.0,
        "top.A": 2.0,
    }
    assert list(ran.result.arrays) == list(SHAPES)
    assert values(ran.result.adapter) == values(ran.result.arrays)
    for message in ran.seen:
        assert list(message.content["arrays"]) == ["bottom.A", "top.A"]


def test_every_message_has_a_token_of_its_own_in_the_only_config_record(toy):
    ran = toy(FedAvg())
    tokens = {message.content["config"]["split.token"] for message in ran.seen}
    assert len(tokens) == len(ran.seen) == 12
    for message in ran.seen:
        assert len(message.content.config_records) == 1
        assert message.content["config"]["server-round"] == message.content["config"]["split.round"]
        assert message.content["config"]["split.num-rounds"] == 2


def test_the_inner_strategys_shared_records_stay_as_they_were(toy):
    mine = ConfigRecord({"own": 1})
    ran = toy(FedAvg(**QUIET), train_config=mine)
    assert dict(mine) == {"own": 1, "server-round": 2}
    assert all(message.content["config"]["own"] == 1 for message in ran.seen)


def test_float64_of_an_inner_strategy_travels_as_float32(toy):
    ran = toy(FedAdam(**QUIET))
    assert {a.dtype for a in ran.result.arrays.values()} == {"float64"}
    sent = [m.content["arrays"] for m in ran.seen]
    assert {a.dtype for arrays in sent for a in arrays.values()} == {"float32"}
    assert {t.dtype for t in ran.result.adapter.values()} == {ran.result.adapter["top.A"].dtype}


@pytest.mark.parametrize(
    "inner",
    [
        lambda: FedAvg(),
        lambda: FedAdam(),
        lambda: FedMedian(),
        lambda: Krum(),
        lambda: Alone(min_nodes=3),
        lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 0.1, 3),
        lambda: DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), 0.0, 3),
    ],
    ids=["fedavg", "fedadam", "fedmedian", "krum", "alone", "dp-fixed", "dp-adaptive"],
)
def test_every_inner_strategy_runs_to_its_end(toy, inner):
    ran = toy(inner())
    assert len(ran.result.of("train", 2)) == 3
    assert all(not record.failure for record in ran.result.history)


def test_alone_gives_every_silo_its_own_arrays_back(toy):
    def reply(message, context, host):
        if message.metadata.message_type == "train":
            gain = np.float32(1 + context.node_config["partition-id"])
            own = ArrayRecord(
                {k: Array(v.numpy() + gain) for k, v in message.content["arrays"].items()}
            )
            return honest_reply(message, context, host, arrays=own)
        return honest_reply(message, context, host)

    inner = Alone(min_nodes=3)
    ran = toy(inner, reply=reply)
    ends = {
        node - FIRST_NODE: float(arrays["top.A"].numpy()[0])
        for node, arrays in inner.arrays_by_node.items()
    }
    assert ends == {0: 2.0, 1: 4.0, 2: 6.0}
    evaluated = {
        m.metadata.dst_node_id - FIRST_NODE: float(m.content["arrays"]["top.A"].numpy()[0])
        for m in ran.seen
        if m.metadata.message_type == "evaluate" and m.content["config"]["split.round"] == 2
    }
    assert evaluated == ends


def test_the_history_has_every_silo_of_every_round(toy):
    ran = toy(FedAvg(), config=toy_config(evaluate_initial=True))
    rounds = [(r.purpose, r.server_round) for r in ran.result.history]
    assert sorted(set(rounds)) == [
        ("evaluate", 0),
        ("evaluate", 1),
        ("evaluate", 2),
        ("train", 1),
        ("train", 2),
    ]
    record = ran.result.of("train", 1)[1]
    assert record.silo == "1"
    assert record.metrics == {"num-examples": 2, "train-loss": 0.5}
    assert record.statistics == {"bytes-sent": 8, **COUNTED}


def test_a_silo_s_counters_and_name_are_checked_before_they_are_kept(toy):
    told = {
        "seconds": float("nan"),
        "seconds-waiting": -1.0,
        "bytes-h1": 1 << 60,
        "bytes-h2": "many",
        "bytes-g1": True,
        "bytes-g2": 8.5,
        "state-resumed": 2,
        "parameter-share": 0.25,
        "trunk-tokens": 99,
        "../../etc": 1,
        "silo": "0",
        "sample": "unasked",
    }
    ran = toy(FedAvg(**QUIET), reply=break_silo(1, told=told), num_rounds=1)
    record = ran.result.of("train", 1)[1]
    assert record.silo == "1" and not record.failure
    assert record.statistics == {"bytes-sent": 8, "parameter-share": 0.25, **COUNTED}
    assert ran.result.samples == {}


def test_the_token_is_nowhere_in_log_or_result(toy, caplog):
    with caplog.at_level(logging.DEBUG):
        ran = toy(FedAvg(), config=toy_config(evaluate_initial=True))
    said = caplog.text + repr(ran.result.history) + repr(ran.result)
    assert ran.host.tokens
    assert not any(token in said for token in ran.host.tokens)


def break_silo(partition, **changes):
    """A reply function whose silo `partition` does not behave."""

    def reply(message, context, host):
        if context.node_config["partition-id"] != partition:
            return honest_reply(message, context, host)
        if "error" in changes:
            raise changes["error"]
        return honest_reply(message, context, host, **changes)

    return reply


def part(**changes):
    arrays = {"bottom.A": np.ones((2, 3), np.float32), "top.A": np.ones(1, np.float32), **changes}
    return ArrayRecord({k: Array(v) for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"error": ValueError("disk full")}, "disk full"),
        ({"finish": False}, "did not finish its session"),
        ({"proof": "00" * 32}, "does not prove"),
        ({"arrays": part(**{"top.A": np.full(1, np.nan, np.float32)})}, "top.A has values"),
        ({"arrays": part(**{"top.A": np.ones(2, np.float32)})}, "shape (2,), expected (1,)"),
        ({"arrays": part(**{"top.A": np.ones(1)})}, "top.A is float64, expected float32"),
        ({"arrays": part(**{"top.A": None})}, "1 tensors missing (first: top.A)"),
        ({"arrays": part(extra=np.ones(1))}, "1 unknown (first: extra)"),
        ({"metrics": {"num-examples": 3, "train-loss": float("nan")}}, "not finite"),
        ({"metrics": {"num-examples": 0, "train-loss": 1.0}}, "must be a number above 0"),
        ({"metrics": {"train-loss": 1.0}}, "'num-examples' must be a number above 0"),
        ({"metrics": {"num-examples": [3], "train-loss": 1.0}}, "must be a number above 0"),
        ({"metrics": {"num-examples": 3, "x" * 129: 1.0}}, "name has 129 characters"),
        ({"metrics": {"num-examples": 3, "a\nb": 1.0}}, "all printable"),
        ({"metrics": {"num-examples": 3, **{f"m{i}": 1.0 for i in range(128)}}}, "129 metrics"),
        ({"metrics": {"num-examples": 3, "x": [1.0] * 4097}}, "4097 values"),
        ({"metrics": {"num-examples": 3, "loss": 1.0}}, "most silos sent"),
        ({"metrics": {"num-examples": 3, "train-loss": [1.0, 2.0]}}, "most silos sent"),
    ],
)
def test_row_30_a_broken_reply_is_left_out_with_its_reason(toy, values, changes, reason):
    ran = toy(FedAvg(**QUIET), reply=break_silo(1, **changes), num_rounds=1)
    failed = [record for record in ran.result.history if record.failure]
    assert [record.node_id for record in failed] == [FIRST_NODE + 1]
    assert reason in failed[0].failure
    assert values(ran.result.arrays)["trunk.A"] == 10.0
    assert values(ran.result.arrays)["top.A"] == 1.0


def test_non_finite_trunk_adapters_are_left_out_too(toy):
    class Diverging(ToyHost):
        def trained(self, token, tensors):
            left = super().trained(token, tensors)
            if token == self.tokens[1]:
                left["trunk.B"].fill_(float("inf"))
            return left

    ran = toy(FedAvg(**QUIET), host=Diverging(), num_rounds=1)
    failed = [record.failure for record in ran.result.history if record.failure]
    assert failed == ["trunk.B has values that are not finite: the training diverged"]


def test_a_silent_silo_is_left_out_when_the_time_is_over(toy):
    ran = toy(FedAvg(**QUIET), grid={"drop": [FIRST_NODE]}, num_rounds=1, timeout=0.3)
    failed = {r.node_id: r.failure for r in ran.result.history if r.failure}
    assert failed == {FIRST_NODE: "no reply within 0.3 s"}


def test_a_second_or_foreign_reply_counts_for_nothing(toy, values):
    def twice(reply):
        return [reply, reply]

    ran = toy(FedAvg(**QUIET), grid={"tamper": twice}, num_rounds=1)
    assert len(ran.result.history) == 3
    assert values(ran.result.arrays)["top.A"] == 1.0


def test_forged_replies_do_not_displace_the_honest_one(toy, values):
    """Flower takes a node's reply in another's name; the node has a token too, but its own."""
    proofs = ["", "00" * 32, b"\x00", 1]

    def forge(reply):
        forged = []
        for proof in proofs:
            stolen = over_the_wire(reply)
            told = {**dict(reply.content.config_records["split"].items()), "proof": proof}
            stolen.content["split"] = ConfigRecord(told)
            stolen.content["arrays"] = part(**{"top.A": np.full(1, 666.0, np.float32)})
            forged.append(stolen)
        without = over_the_wire(reply)
        del without.content["split"]
        of_another = over_the_wire(reply)
        of_another.metadata.__dict__["_src_node_id"] += 1
        proofs.append(reply.content.config_records["split"]["proof"])  # for the next silo's
        return [*forged, without, of_another, reply, *forged]

    ran = toy(FedAvg(**QUIET), grid={"tamper": forge}, num_rounds=1)
    assert [record.failure for record in ran.result.history] == ["", "", ""]
    assert values(ran.result.arrays)["top.A"] == 1.0


def of_bytes(data, *, dtype="float32", shape=(1,), stype="numpy.ndarray"):
    return lambda content: content["arrays"].__setitem__("top.A", Array(dtype, shape, stype, data))


def of_metrics(**told):
    def put(content):
        (name,) = content.metric_records
        content[name] = MetricRecord({**dict(content[name].items()), **told})

    return put


def without(kind):
    return lambda content: content.__delitem__(next(iter(getattr(content, kind))))


def with_second(content):
    content["more"] = MetricRecord({"num-examples": 1})


MALFORMED = {
    "garbage": of_bytes(b"garbage"),
    "empty": of_bytes(b""),
    "pickled": of_bytes(b"\x80\x04K\x01."),
    "object": of_bytes(Array(np.zeros(1, np.float32)).data.replace(b"<f4", b"|O ")),
    "huge": of_bytes(Array(np.zeros(1, np.float32)).data.replace(b"(1,), }", b"(9**9,)}")),
    "another shape": of_bytes(Array(np.zeros(3, np.float32)).data),
    "another dtype": of_bytes(Array(np.zeros(1)).data),
    "another kind": of_bytes(Array(np.zeros(1, np.float32)).data, stype="torch"),
    "no rank": of_bytes(Array(np.zeros(1, np.float32)).data, shape=()),
    "no arrays": without("array_records"),
    "no metrics": without("metric_records"),
    "no statistics": without("config_records"),
    "two records": with_second,
    "weight of NaN": of_metrics(**{"num-examples": float("nan")}),
    "weight below 0": of_metrics(**{"num-examples": -1}),
    "weight of 2e15": of_metrics(**{"num-examples": 2 * 10**15}),
    "weights": of_metrics(**{"num-examples": [1, 2]}),
    "loss of -1e300": of_metrics(**{"train-loss": -1e300}),
    "loss of infinity": of_metrics(**{"train-loss": float("inf")}),
    "a long name": of_metrics(**{"x" * 10**5: 1}),
    "many metrics": of_metrics(**{f"m{i}": i for i in range(500)}),
}


@pytest.mark.parametrize("malformed", MALFORMED)
@pytest.mark.parametrize("strategy", [FedAvg, FedMedian, Krum], ids=lambda one: one.__name__)
def test_row_30_a_malformed_reply_costs_its_silo_alone(toy, values, strategy, malformed):
    def tamper(reply):
        if reply.metadata.src_node_id == FIRST_NODE + 1:
            content = RecordDict(dict(reply.content.items()))
            MALFORMED[malformed](content)
            reply.content = content
        return [reply]

    ran = toy(strategy(**QUIET), grid={"tamper": tamper}, num_rounds=1)
    failed = {r.node_id: r.failure for r in ran.result.history if r.failure}
    assert failed.keys() == {FIRST_NODE + 1}
    assert 0 < len(failed[FIRST_NODE + 1]) < 1000
    assert values(ran.result.arrays)["top.A"] == 1.0


def test_an_error_from_the_superlink_is_booked_to_the_right_node(toy):
    def by_superlink(reply):
        if reply.metadata.src_node_id != FIRST_NODE + 2:
            return [reply]
        lost = Message(Error(3, "unavailable"), reply_to=reply)
        lost.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
        lost.metadata.__dict__["_src_node_id"] = 1
        return [lost]

    ran = toy(FedAvg(**QUIET), grid={"tamper": by_superlink}, num_rounds=1)
    failed = {r.node_id: r.failure for r in ran.result.history if r.failure}
    assert failed == {FIRST_NODE + 2: "unavailable"}


def test_the_inner_strategy_hears_of_failures(toy):
    heard = []

    class Listening(FedAvg):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            heard.extend((r.metadata.src_node_id, r.has_error()) for r in replies)
            return super().aggregate_train(server_round, replies)

    toy(Listening(**QUIET), reply=break_silo(0, finish=False), num_rounds=1)
    assert heard == [(FIRST_NODE + 1, False), (FIRST_NODE + 2, False), (FIRST_NODE, True)]


def all_broken(message, context, host):
    raise OSError("no such folder: /data")


def test_all_replies_failing_ends_the_run_with_the_reasons(toy):
    with pytest.raises(RoundError) as caught:
        toy(FedAvg(**QUIET), reply=all_broken)
    said = str(caught.value)
    assert "round 1: training failed on every silo asked" in said
    assert said.count("no such folder: /data") == 1
    assert all(str(FIRST_NODE + i) in said for i in range(3))


def test_an_initial_evaluation_that_fails_everywhere_ends_the_run(toy):
    with pytest.raises(RoundError, match="round 0: evaluation failed on every silo"):
        toy(FedAvg(), reply=all_broken, config=toy_config(evaluate_initial=True))


def test_a_later_evaluation_that_fails_everywhere_loses_nothing(toy, values, caplog):
    def reply(message, context, host):
        if message.metadata.message_type == "evaluate":
            raise OSError("no held-out data")
        return honest_reply(message, context, host)

    ran = toy(FedAvg(), reply=reply)
    assert values(ran.result.arrays)["top.A"] == 2.0
    assert ran.result.evaluate_metrics_clientapp == {}
    assert "no held-out data" in caplog.text


def test_what_was_learned_before_a_failure_stays_readable(toy, values):
    def reply(message, context, host):
        if message.content["config"]["split.round"] == 2:
            raise OSError("gone")
        return honest_reply(message, context, host)

    with pytest.raises(RoundError, match="round 2"):
        toy(FedAvg(**QUIET), reply=reply)
    assert values(toy.last.strategy.result.adapter)["trunk.A"] == 10.0
    assert len(toy.last.strategy.result.history) == 6


def test_none_from_the_inner_strategy_keeps_the_arrays(toy, values):
    class Undecided(FedAvg):
        def aggregate_train(self, server_round, replies):
            return None, None

    ran = toy(Undecided(**QUIET))
    assert values(ran.result.arrays) == dict.fromkeys(SHAPES, 0.0)


@pytest.mark.parametrize("failing", [False, True])
def test_no_ticket_outlives_its_round(toy, failing):
    host = ToyHost()
    if failing:
        with pytest.raises(RoundError):
            toy(FedAvg(), host=host, reply=all_broken)
    else:
        toy(FedAvg(), host=host)
    assert host.tokens and not host.records


def test_too_few_silos_end_the_run(toy):
    with pytest.raises(RoundError, match="only 3 of 5 silos connected"):
        toy(FedAvg(min_available_nodes=5), timeout=0.2)


def test_evaluation_on_the_server_runs_before_and_after(toy):
    called = []

    def evaluate(server_round, arrays):
        called.append(server_round)
        return MetricRecord({"loss": float(arrays["top.A"].numpy()[0])})

    ran = toy(FedAvg(**QUIET), evaluate_fn=evaluate)
    assert called == [0, 1, 2]
    assert ran.result.evaluate_metrics_serverapp[2]["loss"] == 2.0


def test_arrays_that_are_not_the_adapter_are_refused(toy):
    other = ArrayRecord({"head": Array(np.zeros(1, np.float32))})
    with pytest.raises(AdapterError, match="4 tensors missing"):
        toy(FedAvg(**QUIET), initial_arrays=other)


def test_one_silo_is_asked_for_the_sample(toy):
    ran = toy(FedAvg(), config=toy_config(sample_prompt="Return the", evaluate_initial=True))
    asked = [m for m in ran.seen if m.content["config"]["split.sample"]]
    assert [m.content["config"]["split.round"] for m in asked] == [0, 2]


def test_an_inner_strategy_for_another_adapter_is_refused():
    with pytest.raises(ConfigError, match=r"lora\.r 4, .*the run has lora\.r 8, .*config\.lora"):
        SplitStrategy(toy_config(), FLoRA(lora=LoraSettings(r=4)))


def test_split_strategy_must_be_outermost(toy):
    from flwr.clientapp import ClientApp

    outer = DifferentialPrivacyServerSideFixedClipping(
        SplitStrategy(toy_config(), FedAvg(), host=ToyHost()), 0.1, 0.1, 2
    )
    arrays = ToyHost().begin(None)
    with pytest.raises(RoundError, match="make it the outermost"):
        outer.start(InProcessGrid(ClientApp(), 2), arrays, num_rounds=1)


def test_a_message_without_arrays_is_refused(toy):
    class Bare(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            content = RecordDict({"config": ConfigRecord({"server-round": server_round})})
            return [Message(content, FIRST_NODE, "train")]

    with pytest.raises(RoundError, match="0 ArrayRecords"):
        toy(Bare(**QUIET))


def test_trunk_tensors_are_those_the_toy_names():
    assert tuple(ToyHost().parts.trunk_shapes) == TRUNK


def test_fewer_replies_than_asked_for_end_the_run_with_every_reason(toy, values):
    def reply(message, context, host):
        late = message.content["config"]["split.round"] == 2
        if late and context.node_config["partition-id"] > 0:
            raise OSError(f"no disk {context.node_config['partition-id']}")
        return honest_reply(message, context, host)

    settings = StrategyConfig(min_nodes=3, min_replies=2)
    with pytest.raises(RoundError) as caught:
        toy(FedAvg(**QUIET), reply=reply, config=toy_config(strategy=settings))
    said = str(caught.value)
    assert "training counts of 1 of 3 silos, and strategy.min-replies is 2" in said
    assert f"node {FIRST_NODE + 1}: OSError: no disk 1" in said
    assert f"node {FIRST_NODE + 2}: OSError: no disk 2" in said
    assert f"node {FIRST_NODE}:" not in said
    result = toy.last.strategy.result
    assert values(result.adapter)["trunk.A"] == 10.0
    assert [bool(record.failure) for record in result.of("train", 2)] == [False, True, True]


def test_enough_replies_go_on_without_the_others(toy):
    settings = StrategyConfig(min_nodes=3, min_replies=2)
    ran = toy(
        FedAvg(**QUIET), reply=break_silo(1, finish=False), config=toy_config(strategy=settings)
    )
    assert len(ran.result.of("train", 2)) == 3


def test_a_silo_that_broke_off_and_stays_silent_is_not_waited_for(toy, monkeypatch):
    monkeypatch.setattr("flower_split.strategies.hosting.round_sessions.REPLY_SECONDS", 0.2)
    host = ToyHost()

    def reply(message, context, host):
        if context.node_config["partition-id"] == 2:
            host.break_off(message.content["config"]["split.token"])
            return honest_reply(message, context, host, finish=False)
        return honest_reply(message, context, host)

    def lose(sent):
        return [] if sent.metadata.src_node_id == FIRST_NODE + 2 else [sent]

    ran = toy(
        FedAvg(**QUIET), host=host, reply=reply, grid={"tamper": lose}, num_rounds=1, timeout=600.0
    )
    failed = {r.node_id: r.failure for r in ran.result.history if r.failure}
    assert failed == {FIRST_NODE + 2: "its session at the trunk broke off, and no reply followed"}


def test_a_reply_that_is_lost_after_its_session_was_finished_is_not_waited_for(toy, monkeypatch):
    monkeypatch.setattr(
        "flower_split.strategies.hosting.round_sessions.FINISHED_REPLY_SECONDS", 0.2
    )

    def lose(sent):
        return [] if sent.metadata.src_node_id == FIRST_NODE + 2 else [sent]

    started = time.monotonic()
    ran = toy(FedAvg(), grid={"tamper": lose}, num_rounds=1, timeout=600.0)
    assert time.monotonic() - started < 60.0
    failed = [(r.purpose, r.node_id, r.failure) for r in ran.result.history if r.failure]
    said = "its session at the trunk was finished, and no reply followed"
    assert failed == [("train", FIRST_NODE + 2, said), ("evaluate", FIRST_NODE + 2, said)]
    assert [r.node_id for r in ran.result.of("train", 1) if not r.failure] == [100, 101]


@pytest.mark.medium
def test_a_finished_silo_has_a_while_for_its_reply(toy):
    """Its time is not over when the round's is, and it is the round's that ends the exchange."""

    def lose(sent):
        return [] if sent.metadata.src_node_id == FIRST_NODE else [sent]

    started = time.monotonic()
    ran = toy(FedAvg(**QUIET), grid={"tamper": lose}, num_rounds=1, timeout=1.5)
    assert time.monotonic() - started >= 1.5
    assert len([r for r in ran.result.history if r.failure]) == 1


def test_a_silo_that_broke_off_may_still_say_why(toy):
    host = ToyHost()

    def reply(message, context, host):
        if context.node_config["partition-id"] == 2:
            host.break_off(message.content["config"]["split.token"])
            raise OSError("the disk is full")
        return honest_reply(message, context, host)

    ran = toy(FedAvg(**QUIET), host=host, reply=reply, num_rounds=1)
    failed = {r.node_id: r.failure for r in ran.result.history if r.failure}
    assert failed == {FIRST_NODE + 2: "OSError: the disk is full"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            httpx.HTTPStatusError(
                "no", request=httpx.Request("POST", "http://x"), response=httpx.Response(403)
            ),
            r"HTTP 403.*flwr stop",
        ),
        (httpx.ConnectError("refused"), "cannot be reached"),
    ],
)
@pytest.mark.parametrize("call", ["get_node_ids", "push_messages", "pull_messages"])
def test_a_superlink_that_serves_no_longer_ends_the_run(toy, monkeypatch, error, said, call):
    def fail(*_):
        raise error

    monkeypatch.setattr(InProcessGrid, call, fail)
    with pytest.raises(SuperLinkError, match=said):
        toy(Alone(min_nodes=1))


def test_should_stop_is_asked_after_every_trained_round_and_ends_the_run(toy):
    asked = []

    def should_stop(server_round, result):
        last = max(result.evaluate_metrics_clientapp)
        asked.append((server_round, result.last_round, last, 0 in result.seconds))
        return server_round == 2

    config = toy_config(num_server_rounds=5, evaluate_initial=True)
    ran = toy(FedAvg(), config=config, should_stop=should_stop)
    assert asked == [(1, 1, 1, True), (2, 2, 2, True)]
    assert ran.result.last_round == 2
    assert sorted(ran.result.train_metrics_clientapp) == [1, 2]
    assert sorted(ran.result.evaluate_metrics_clientapp) == [0, 1, 2]


def test_should_stop_comes_after_the_evaluation_on_the_server_and_in_the_last_round_too(toy):
    asked = []

    def should_stop(server_round, result):
        asked.append((server_round, sorted(result.evaluate_metrics_serverapp)))
        return False

    toy(
        FedAvg(**QUIET),
        evaluate_fn=lambda server_round, arrays: MetricRecord({"loss": float(server_round)}),
        should_stop=should_stop,
    )
    assert asked == [(1, [0, 1]), (2, [0, 1, 2])]
