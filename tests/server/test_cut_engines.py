"""Sessions of several cuts on the weights of one trunk."""

import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from asking import SECONDS, opened
from tiny_models import tiny_model

from flower_split.adapters import SessionState, initial_state, resolve_lora
from flower_split.config.sections import LoraSettings
from flower_split.errors import AdapterError, HandshakeError, SequenceError, StateError
from flower_split.lowrank import Instructions
from flower_split.segments import Cuts, held_by_trunk, layers_path, split_model
from flower_split.server.compute.turns import DeviceTurns
from flower_split.server.cut_engines import MOST_IDLE, CutEngines
from flower_split.server.engine import TrunkEngine
from flower_split.server.ticket_record import Stage, TrunkStart
from flower_split.transport.messages import (
    BackwardRequest,
    ForwardRequest,
    StepRequest,
    Ticket,
)

LAYERS = 6
LORA = LoraSettings(r=2, alpha=4.0)
FEWEST = Cuts(bottom_layers=0, top_layers=1, num_layers=LAYERS)
MOST = Cuts(bottom_layers=3, top_layers=2, num_layers=LAYERS)


class Federation:
    """A trunk for several cuts, and what an engine of a single cut would do."""

    def __init__(self, max_activation_tokens=0, **options):
        self.model = tiny_model(layers=LAYERS, hidden_size=16)
        self.plan = resolve_lora(self.model, LORA)
        self.path = layers_path(self.model)
        self.start = {n: t + 0.05 for n, t in initial_state(self.model, LORA, seed=3).items()}
        _, trunk = split_model(self.model, FEWEST.bottom_layers, FEWEST.top_layers)
        turns = DeviceTurns()
        self.made = []

        def make(narrow, common):
            self.made.append(narrow.cuts)
            initial = self.of(narrow.cuts)
            return TrunkEngine(
                narrow, plan=self.plan, initial=initial, turns=turns, common=common, **options
            )

        self.engines = CutEngines(
            trunk, MOST, make, turns=turns, max_activation_tokens=max_activation_tokens
        )
        self.described = self.single(MOST).describe()

    def of(self, cuts):
        """The trunk's part of the start at a cut."""
        return {n: t for n, t in self.start.items() if held_by_trunk(n, self.path, cuts)}

    def single(self, cuts, **options):
        """An engine of this cut alone."""
        _, trunk = split_model(self.model, cuts.bottom_layers, cuts.top_layers)
        return TrunkEngine(trunk, plan=self.plan, initial=self.of(cuts), **options)

    def spec(self, bottom, top, silo="a", **changes):
        cut = {"bottom_layers": bottom, "top_layers": top}
        return replace(self.described, silo=silo, **cut, **changes)

    def open(self, bottom, top, silo="a", *, ticket=None, **changes):
        return opened(self.engines, self.spec(bottom, top, silo, **changes), ticket)


def ticket(name, node=2):
    return Ticket(run_id=1, node_id=node, server_round=3, token=name)


def hidden(seed, rows=2, tokens=5):
    return torch.randn(rows, tokens, 16, generator=torch.Generator().manual_seed(seed))


def trained(session, steps=2):
    """What the trunk answers in some steps."""
    answers = []
    for step in range(steps):
        forward = ForwardRequest(step=step, microbatch=step, hidden=hidden(step), keep_graph=True)
        answers.append(session.forward(forward))
        backward = BackwardRequest(step=step, microbatch=step, grad=hidden(step + 100))
        answers.append(session.backward(backward))
        session.step(StepRequest(step=step, learning_rate=0.01))
    return answers


@pytest.mark.medium
@pytest.mark.parametrize("cut", [(0, 1), (3, 2), (2, 1)])
def test_a_session_is_that_of_a_trunk_of_its_cut_to_the_bit(cut):
    federation = Federation(keep_optimizer=True)
    own = ticket("t")
    record = federation.engines.prepare(own, TrunkStart(tensors=federation.of(FEWEST)))
    with closing(federation.open(*cut, ticket=own)) as session:
        answers = trained(session)
        session.finish()
    outcome = record.collect()
    federation.engines.accept(own)
    cuts = Cuts(bottom_layers=cut[0], top_layers=cut[1], num_layers=LAYERS)
    engine = federation.single(cuts, keep_optimizer=True)
    theirs = engine.prepare(own, TrunkStart(tensors=federation.of(cuts)))
    with closing(opened(engine, replace(engine.describe(), silo="a"), own)) as session:
        expected = trained(session)
        session.finish()
    wanted = theirs.collect().tensors
    assert all(torch.equal(a, b) for a, b in zip(answers, expected, strict=True))
    assert list(outcome.tensors) == list(wanted)
    assert all(torch.equal(outcome.tensors[name], tensor) for name, tensor in wanted.items())
    (state,) = federation.engines.session_states()
    assert state.cuts == cut


@pytest.mark.medium
def test_sessions_of_all_cuts_at_once_do_not_mix():
    federation = Federation()
    cuts = [(bottom, top) for bottom in range(4) for top in (1, 2)]
    alone = {}
    for cut in cuts:
        with closing(federation.open(*cut, silo=f"{cut}")) as session:
            alone[cut] = trained(session)
    found = {}

    def train(cut):
        with closing(federation.open(*cut, silo=f"{cut}")) as session:
            found[cut] = trained(session)

    threads = [threading.Thread(target=train, args=(cut,)) for cut in cuts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found.keys() == alone.keys()
    for cut, answers in alone.items():
        assert all(torch.equal(a, b) for a, b in zip(answers, found[cut], strict=True)), cut
    assert federation.engines.waiting == 0
    assert federation.engines.computed.passes == 2 * 2 * 2 * len(cuts)


def test_room_that_one_cut_frees_is_the_next_ones_at_once():
    """Not after the two seconds for which a pass waits for it at most."""
    federation = Federation(max_activation_tokens=12)
    with closing(federation.open(3, 2, "a")) as first, closing(federation.open(0, 1, "b")) as other:
        keeping = ForwardRequest(step=0, microbatch=0, hidden=hidden(0), keep_graph=True)
        first.forward(keeping)
        began = time.monotonic()
        waiting = other.submit(keeping)
        time.sleep(0.2)
        assert not waiting.done()
        assert federation.engines.waiting == 1
        first.backward(BackwardRequest(step=0, microbatch=0, grad=hidden(1)))
        waiting.result(SECONDS)
        assert time.monotonic() - began < 1.9


@pytest.mark.medium
def test_every_cut_has_one_engine_made_when_somebody_comes_with_it():
    federation = Federation()
    wide = Federation.__new__(Federation)
    assert federation.made == [MOST, FEWEST]
    for _ in range(2):
        for bottom in range(4):
            for top in (1, 2):
                with closing(federation.open(bottom, top)) as session:
                    trained(session, steps=1)
    assert len(federation.made) == 8  # as many as there are cuts: none was made twice
    assert MOST_IDLE >= 8
    assert federation.engines.computed.passes == 2 * 2 * 8
    del wide


@pytest.mark.medium
def test_an_idle_engine_beyond_the_bound_is_made_again(monkeypatch):
    monkeypatch.setattr("flower_split.server.cut_engines.MOST_IDLE", 1)
    federation = Federation()

    def visit(bottom):
        with closing(federation.open(bottom, 1)) as session:
            answers = trained(session, steps=1)
        end = time.monotonic() + SECONDS
        while threading.active_count() > before and time.monotonic() < end:
            time.sleep(0.01)
        return answers

    before = threading.active_count()
    first = visit(1)
    for bottom in (2, 3):
        visit(bottom)
    again = visit(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    made = [cuts.bottom_layers for cuts in federation.made[2:]]
    assert made == [1, 2, 3, 1]
    assert federation.engines.computed.passes == 2 * 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bottom_layers": 4}, "bottom_layers: silos of this run may hold 0 to 3, and .* has 4"),
        ({"bottom_layers": -1}, "may hold 0 to 3"),
        ({"top_layers": 0}, "top_layers: silos of this run may hold 1 to 2, and the silo has 0"),
        ({"top_layers": 2**40}, "may hold 1 to 2"),
        ({"num_layers": 7}, "differ in num_layers"),
        ({"fingerprint": "other"}, "differ in fingerprint"),
        ({"adapter": "{}"}, "differ in adapter"),
        ({"adapter": ""}, "differ in adapter"),
        ({"prefix_tokens": 3}, "prefix_tokens"),
    ],
)
def test_a_silo_that_does_not_fit_is_refused_by_the_field(changes, said):
    federation = Federation()
    spec = replace(federation.spec(2, 1), **changes)
    with pytest.raises(HandshakeError, match=said):
        federation.engines.open(spec, None).result(SECONDS)
    assert len(federation.made) <= 3
    with closing(federation.open(2, 1)) as session:  # and the next one is served
        trained(session, steps=1)


def test_a_ticket_opens_one_session_whatever_its_cut():
    federation = Federation()
    own = ticket("t")
    federation.engines.prepare(own, TrunkStart(tensors=federation.of(FEWEST)))
    with pytest.raises(SequenceError, match="prepared before"):
        federation.engines.prepare(own, TrunkStart())
    session = federation.open(1, 1, ticket=own)
    for cut in ((1, 1), (2, 2)):
        with pytest.raises(SequenceError):
            federation.engines.open(federation.spec(*cut), own).result(SECONDS)
    session.close()
    federation.engines.discard(own)


def test_a_name_is_one_nodes_whatever_its_cut():
    federation = Federation()
    federation.engines.names.note_connected([2, 3])
    first, second = ticket("t", node=2), ticket("u", node=3)
    for one in (first, second):
        federation.engines.prepare(one, TrunkStart(tensors=federation.of(FEWEST)))
    session = federation.open(1, 1, "a", ticket=first)
    with pytest.raises(HandshakeError, match="another node"):
        federation.engines.open(federation.spec(2, 2, "a"), second).result(SECONDS)
    session.close()


@pytest.mark.medium
def test_a_start_that_lacks_layers_of_the_span_is_refused_and_leaves_nothing():
    federation = Federation()
    own = ticket("t")
    record = federation.engines.prepare(own, TrunkStart(tensors=federation.of(MOST)))
    with pytest.raises(AdapterError, match="do not fit"):
        federation.engines.open(federation.spec(1, 1), own).result(SECONDS)
    assert record.stage is Stage.PREPARED
    with closing(federation.open(3, 2, ticket=own)) as session:
        trained(session, steps=1)


def left(federation, cut, name, node=2, silo="a"):
    """A session at this cut that counts."""
    own = ticket(name, node)
    start = TrunkStart(tensors=federation.of(FEWEST), instructions=Instructions())
    record = federation.engines.prepare(own, start)
    with closing(federation.open(*cut, silo, ticket=own)) as session:
        trained(session, steps=1)
        session.finish()
    record.collect()
    federation.engines.accept(own)


@pytest.mark.medium
def test_states_are_kept_with_their_cut_and_resumed_from_at_no_other(caplog):
    federation = Federation(keep_optimizer=True)
    left(federation, (2, 1), "t")
    (state,) = federation.engines.session_states()
    resumed = {}
    for cut in ((2, 1), (1, 1), (3, 1)):
        own = ticket(f"{cut}")
        federation.engines.prepare(own, TrunkStart(tensors=federation.of(FEWEST)))
        spec = federation.spec(*cut, session_states=(state.tag,))
        session = federation.engines.open(spec, own).result(SECONDS)
        resumed[cut] = session.resumed
        session.close().result(SECONDS)
    assert resumed == {(2, 1): state.tag, (1, 1): "", (3, 1): ""}
    assert "moved its cuts from (2, 1) to (1, 1)" in caplog.text


def test_states_of_other_runs_are_refused_and_change_nothing():
    federation = Federation(keep_optimizer=True)
    left(federation, (2, 1), "t")
    (state,) = kept = federation.engines.session_states()
    foreign = {
        "no cut": replace(state, cuts=None),
        "out of bounds": replace(state, cuts=(4, 1)),
        "another cut": replace(state, cuts=(3, 1)),
        "no numbers": replace(state, cuts=("2", "1")),
        "one number": replace(state, cuts=(2,)),
        "other tensors": replace(state, state=SessionState(moments={"x/step": torch.ones(())})),
    }
    for what, other in foreign.items():
        with pytest.raises(StateError):
            federation.engines.load_session_states([state, other])
        assert federation.engines.session_states() == kept, what
    federation.engines.load_session_states([])
    assert federation.engines.session_states() == []
    federation.engines.load_session_states(kept)
    assert [one.cuts for one in federation.engines.session_states()] == [(2, 1)]


def test_an_opening_that_nobody_waits_for_makes_no_session(monkeypatch):
    federation = Federation()
    with monkeypatch.context() as patch:
        started = []
        patch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
        opening = federation.engines.open(federation.spec(2, 2), None)
        assert opening.cancel()
    (thread,) = started
    thread.start()
    thread.join(SECONDS)
    assert federation.made == [MOST, FEWEST]


def test_a_trunk_without_a_target_in_its_narrowest_span_is_refused_at_once():
    model = tiny_model(layers=LAYERS, hidden_size=16)
    lora = LoraSettings(r=2, target_modules=("layers.1.mlp.up_proj",))
    plan = resolve_lora(model, lora)
    _, trunk = split_model(model, 0, 1)
    turns = DeviceTurns()

    def make(narrow, common):
        return TrunkEngine(narrow, plan=plan, turns=turns, common=common)

    with pytest.raises(AdapterError, match="none of the trunk's layers"):
        CutEngines(trunk, MOST, make, turns=turns)
