from flower_split.transport.messages import Ticket
from flower_split.transport.state_tags import is_tag, state_tag


def test_both_ends_of_a_session_make_the_same_tag_and_nobody_else() -> None:
    ticket = Ticket(run_id=1, node_id=2, server_round=3, token="secret")
    tag = state_tag(ticket)
    assert is_tag(tag) and "secret" not in tag
    assert tag == state_tag(Ticket(run_id=1, node_id=2, server_round=3, token="secret"))
    assert tag != state_tag(Ticket(run_id=1, node_id=2, server_round=3, token="other"))


def test_what_is_no_tag() -> None:
    assert not any(is_tag(text) for text in ("", "0" * 63, "0" * 65, "G" * 64, "0" * 64 + "\n"))
