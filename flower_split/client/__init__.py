"""The silo's side in Flower: `SplitSession` with a trunk, `AdapterExchange` for a whole model."""

from flower_split.client.adapter_exchange import AdapterExchange
from flower_split.client.roll_call import answer_roll_call
from flower_split.client.session import SplitSession

__all__ = ["AdapterExchange", "SplitSession", "answer_roll_call"]
