"""flower_split: split federated fine-tuning of language models on Flower.

What users import stands here; everything is loaded when it is first asked for, so that
`import flower_split` itself is light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flower_split.adapters import load_adapter
    from flower_split.client import SplitSession
    from flower_split.config.sections import SplitConfig
    from flower_split.errors import FlowerSplitError
    from flower_split.remote import SplitAdamW, attach_trunk, session_spec
    from flower_split.segments import (
        check_exact,
        load_client_model,
        load_tokenizer,
        load_trunk,
        split_model,
        split_segments,
    )
    from flower_split.server.engine import TrunkEngine
    from flower_split.server.grpc.server import TrunkServer
    from flower_split.server.local import LocalTransport
    from flower_split.transport.grpc.transport import GrpcTransport

__version__ = "0.1.0"

_MODULES = {
    "FlowerSplitError": "flower_split.errors",
    "GrpcTransport": "flower_split.transport.grpc.transport",
    "LocalTransport": "flower_split.server.local",
    "SplitAdamW": "flower_split.remote",
    "SplitConfig": "flower_split.config.sections",
    "SplitSession": "flower_split.client",
    "TrunkEngine": "flower_split.server.engine",
    "TrunkServer": "flower_split.server.grpc.server",
    "attach_trunk": "flower_split.remote",
    "check_exact": "flower_split.segments",
    "load_adapter": "flower_split.adapters",
    "load_client_model": "flower_split.segments",
    "load_tokenizer": "flower_split.segments",
    "load_trunk": "flower_split.segments",
    "session_spec": "flower_split.remote",
    "split_model": "flower_split.segments",
    "split_segments": "flower_split.segments",
}

__all__ = [
    "FlowerSplitError",
    "GrpcTransport",
    "LocalTransport",
    "SplitAdamW",
    "SplitConfig",
    "SplitSession",
    "TrunkEngine",
    "TrunkServer",
    "attach_trunk",
    "check_exact",
    "load_adapter",
    "load_client_model",
    "load_tokenizer",
    "load_trunk",
    "session_spec",
    "split_model",
    "split_segments",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'flower_split' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
