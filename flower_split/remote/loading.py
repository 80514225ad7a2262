"""What was loaded into a client model under the names of the trunk's layers."""

from collections.abc import Collection, Mapping

from torch import Tensor

from flower_split.adapters.plan import ADAPTER, PEFT_PREFIX
from flower_split.adapters.state import is_adapters, without_adapter
from flower_split.errors import AdapterError
from flower_split.segments import PassThrough


def take_given(layers: Mapping[int, PassThrough], path: str) -> tuple[dict[str, Tensor], bool]:
    """The tensors by the names of the adapter's file, and whether all had an adapter's name.

    PEFT puts the name of an adapter only to tensors that the model shows under it, and for the
    trunk's layers a client model shows the session's own.

    Args:
        layers: The stand-ins by the indices of the layers.
        path: Of the list of layers in the uncut model.
    """
    given: dict[str, Tensor] = {}
    has_names = True
    for index, layer in layers.items():
        for name, tensor in layer.take_given().items():
            own = without_adapter(name)
            given[f"{PEFT_PREFIX}{path}.{index}.{own}"] = tensor
            has_names = has_names and own != name
    return given, has_names


def take_adapters(
    layers: Mapping[int, PassThrough], path: str, adapters: Collection[str]
) -> tuple[dict[str, Tensor], bool]:
    """As `take_given`, of what was loaded before there was a trunk: an adapter's tensors alone.

    Weights that are not the silo's may be loaded with its own; whether those are the trunk's too
    is told by comparing the silo's.

    Args:
        layers: See `take_given`.
        path: See `take_given`.
        adapters: Names of the client model's adapters: PEFT puts none to tensors of layers that
            show no adapter yet, so that it is known of a single one only which it is.
    """
    given, has_names = take_given(layers, path)
    found = {name: tensor for name, tensor in given.items() if is_adapters(name)}
    return found, has_names or {*adapters} == {ADAPTER}


def check_loaded(given: Collection[str], held: Collection[str] | None, *, has_names: bool) -> None:
    """Raise `AdapterError` unless `given` are the tensors of the trunk's part of the adapter.

    Args:
        given: Names of what was loaded.
        held: Of the trunk's part; None where the trunk has no adapter.
        has_names: Whether `given` were loaded under the session's adapter's name.
    """
    if held is None:
        raise AdapterError(
            f"{len(given)} tensors of the trunk's layers (first: {min(given)}) were loaded "
            "into the client model, and the session's trunk has no adapter: they would be "
            "lost. Load a trained adapter with flower_split.load_adapter, on both ends, and a "
            "whole model's weights before it is cut"
        )
    foreign = sorted(set(given) - set(held))
    if foreign:
        raise AdapterError(
            f"{len(foreign)} tensors of the trunk's layers (first: {foreign[0]}) were loaded "
            "into the client model, which does not hold those layers, and they are not the "
            "session's adapter: load a whole model before it is cut, and an adapter of the "
            "settings that the session has"
        )
    if not has_names:
        raise AdapterError(
            f"an adapter was loaded under another name than {ADAPTER!r}, and the trunk has "
            f"{ADAPTER!r} alone: load it as that one, or in a session of its own. A reference "
            "model is a copy of it, made with add_adapter and by copying the tensors"
        )
    missing = sorted(set(held) - set(given))
    if missing:
        raise AdapterError(
            f"an adapter without {missing[0]} was loaded into the client model: load all of it"
        )
