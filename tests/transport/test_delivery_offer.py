import pytest

from flower_split.errors import TokenError
from flower_split.transport.invitation import MAX_STREAMS, DeliveryOffer
from flower_split.transport.messages import Ticket

HOLDER = {"run_id": 1, "node_id": 2, "server_round": 3}
OFFER = DeliveryOffer(
    pack="ab" * 32, tickets=tuple(Ticket(**HOLDER, token=f"secret{i}") for i in range(3))
)


def test_an_offer_survives_the_journey() -> None:
    assert DeliveryOffer.from_fields(OFFER.to_fields(), **HOLDER) == OFFER
    assert DeliveryOffer.from_fields({"other": 1}, **HOLDER) is None


def test_an_offer_keeps_its_tokens_to_itself() -> None:
    assert "secret" not in repr(OFFER)


@pytest.mark.parametrize(
    "change",
    [
        {"split.pack": "ab"},
        {"split.pack": "../" + "a" * 61},
        {"split.pack": "AB" * 32},
        {"split.pack": 5},
        {"split.pack": None},
        {"split.delivery-tokens": None},
        {"split.delivery-tokens": ["a"]},
    ],
)
def test_a_malformed_offer_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(TokenError, match="malformed"):
        DeliveryOffer.from_fields({**OFFER.to_fields(), **change}, **HOLDER)


def test_tickets_are_bounded() -> None:
    fields = {**OFFER.to_fields(), "split.delivery-tokens": "t " * 10_000}
    offer = DeliveryOffer.from_fields(fields, **HOLDER)
    assert offer is not None and len(offer.tickets) == MAX_STREAMS
