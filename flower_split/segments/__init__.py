"""Segments: the stock model with holes for what other parties hold."""

from flower_split.segments.cuts import Cuts
from flower_split.segments.ends import Bottom, Top
from flower_split.segments.exactness import check_exact, check_exact_cuts
from flower_split.segments.families import FAMILIES, Family, register_family
from flower_split.segments.fingerprint import fingerprint
from flower_split.segments.halves import Halves, Pause
from flower_split.segments.joining import join
from flower_split.segments.layers import find_layers, held_by_trunk, layer_index, layers_path
from flower_split.segments.loading.load_plan import load_client_model, load_trunk
from flower_split.segments.loading.packing import check_packing
from flower_split.segments.loading.share import SiloShare, silo_share
from flower_split.segments.loading.skeleton import (
    load_skeleton,
    load_tokenizer,
)
from flower_split.segments.loading.source import Source, resolve_source
from flower_split.segments.loading.tables import TableSizes, table_sizes, tables_of
from flower_split.segments.pass_through import (
    PassThrough,
    Stub,
    TrunkPlace,
    TrunkSlot,
    refuse_copy,
    watch_calls,
)
from flower_split.segments.proving import family_of
from flower_split.segments.randomness import random_numbers
from flower_split.segments.splitting import split_model, split_segments
from flower_split.segments.trunk import Trunk

__all__ = [
    "FAMILIES",
    "Bottom",
    "Cuts",
    "Family",
    "Halves",
    "PassThrough",
    "Pause",
    "SiloShare",
    "Source",
    "Stub",
    "TableSizes",
    "Top",
    "Trunk",
    "TrunkPlace",
    "TrunkSlot",
    "check_exact",
    "check_exact_cuts",
    "check_packing",
    "family_of",
    "find_layers",
    "fingerprint",
    "held_by_trunk",
    "join",
    "layer_index",
    "layers_path",
    "load_client_model",
    "load_skeleton",
    "load_tokenizer",
    "load_trunk",
    "random_numbers",
    "refuse_copy",
    "register_family",
    "resolve_source",
    "silo_share",
    "split_model",
    "split_segments",
    "table_sizes",
    "tables_of",
    "watch_calls",
]
