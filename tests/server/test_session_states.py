import torch

from flower_split.adapters import SessionState
from flower_split.server.session_states import SessionStates, SiloState
from flower_split.transport.messages import Ticket
from flower_split.transport.state_tags import state_tag


def tag(number: int) -> str:
    ticket = Ticket(run_id=1, node_id=2, server_round=number, token=f"token {number}")
    return state_tag(ticket)


def counted(states: SessionStates, silo: str, number: int) -> str:
    states.put(
        SiloState(
            silo=silo,
            server_round=number,
            tag=tag(number),
            state=SessionState(moments={"a/step": torch.tensor(float(number))}),
        )
    )
    return tag(number)


def test_only_what_counted_is_found_and_only_by_its_tag() -> None:
    states = SessionStates()
    first = counted(states, "north", 1)
    late = tag(2)
    found = states.find("north", (late, first))
    assert found is not None and (found.tag, found.server_round) == (first, 1)
    assert states.find("north", (late,)) is None
    second = counted(states, "north", 3)
    assert states.find("north", (first,)) is None
    assert states.find("north", (second,)) is not None


def test_another_silos_tag_opens_nothing() -> None:
    states = SessionStates()
    first = counted(states, "north", 1)
    counted(states, "south", 2)
    assert states.find("south", (first,)) is None
    assert states.find("", (first,)) is None


def test_one_state_a_silo_is_held() -> None:
    states = SessionStates()
    for number in range(1, 6):
        counted(states, "north", number)
    assert [(state.silo, state.server_round) for state in states.all()] == [("north", 5)]
    states.forget("north")
    assert states.all() == [] and not states.has("north")


def test_replacing_forgets_everything_else() -> None:
    states = SessionStates()
    first = counted(states, "north", 1)
    exported = states.all()
    counted(states, "north", 2)
    counted(states, "south", 3)
    states.replace(exported)
    assert [(state.silo, state.tag) for state in states.all()] == [("north", first)]
