"""The silo's side in Flower: `SplitSession` with a trunk, `AdapterExchange` for a whole model."""

from flower_split.client.adapter_exchange import AdapterExchange
from flower_split.client.name_query import answer_name_query
from flower_split.client.session import SplitSession
from flower_split.client.silo_data import silo_preferences

__all__ = ["AdapterExchange", "SplitSession", "answer_name_query", "silo_preferences"]
