"""Training a twin: losses, logits, gradients and steps of the cut model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flower_split.adapters import read_state
from flower_split.errors import UnsupportedFamilyError
from flower_split.remote import SplitAdamW, SplitStages
from flower_split.segments import Family, held_by_trunk, layer_index, layers_path
from flower_split.segments.segment import without_unknown
from flower_split.verification.batches import Batch
from flower_split.verification.comparison import Results, compare, failing_at
from flower_split.verification.parties import OPTIMIZER, Parties

_RATE = 0.05


def check_training(parties: Parties, family: Family, batches: Sequence[Batch], where: str) -> None:
    """Compare passes with gradients, whole and stage by stage, and steps on both sides.

    Raises:
        UnsupportedFamilyError: something differs, or the cut model fails.
    """
    parties.whole.train()
    parties.client.train()
    # First of all: the trunk adds up gradients until a step is taken.
    with failing_at(f"{where}, steps"):
        _check_steps(parties, batches[0], f"{where}, steps")
    known = _known(parties.client, use_cache=True)
    for batch in batches:
        for cache in (True, False) if batch.cached and known else (False,):
            _check_pass(parties, family, batch, cache, where)


def _check_pass(
    parties: Parties,
    family: Family,
    batch: Batch,
    cache: bool,
    where: str,
) -> None:
    at = f"{where}, {batch.title}{', with a cache' if cache else ''}"
    _free(parties)
    expected = _expected(parties, batch, cache, at)
    if expected is None:
        return  # the stock model cannot do this, cut or not
    with failing_at(at):
        given: dict[str, Any] = {"use_cache": cache} if family.caches else {}
        got = _results(parties.client, batch, given)
        compare(at, {name: value for name, value in expected.items() if name in got}, got)
    if cache or not batch.staged:
        return
    at += ", stage by stage"
    # As a silo trains.
    _train_adapters(parties)
    expected = _results(parties.whole, batch, {"use_cache": False})
    with failing_at(at):
        got = _staged(parties.client, batch)
        compare(at, {name: value for name, value in expected.items() if name in got}, got)


def _expected(parties: Parties, batch: Batch, cache: bool, at: str) -> Results | None:
    try:
        expected = _results(parties.whole, batch, {"use_cache": cache})
    except Exception as error:  # whatever the stock code raises
        if batch.inputs.keys() & {"position_ids", "token_type_ids"}:
            return None
        raise UnsupportedFamilyError(
            f"{at}: the stock code of the uncut model fails with {type(error).__name__}: {error}"
        ) from error
    if not bool(torch.isfinite(expected["loss"]).all()):
        raise UnsupportedFamilyError(f"{at}: the uncut model's loss is not finite")
    return expected


def _results(model: Any, batch: Batch, given: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    output = model(**batch.inputs, **_known(model, **given))
    output.loss.backward()
    return {"loss": output.loss.detach(), "logits": output.logits.detach(), **_gradients(model)}


def _known(model: nn.Module, **given: Any) -> dict[str, Any]:
    """What of `given` the stock model takes, wrapped by PEFT or not."""
    stock = next(m for m in model.modules() if isinstance(m, PreTrainedModel))
    return without_unknown(stock.base_model, **given)


def _staged(client: Any, batch: Batch) -> dict[str, Tensor]:
    """As a silo trains: the pass cut in stages, so that several can be under way."""
    client.zero_grad(set_to_none=True)
    passage = SplitStages(client).start(batch.inputs)
    output = passage.output()
    passage.backward(output.loss)
    passage.finish()
    return {"loss": output.loss.detach(), "logits": output.logits.detach(), **_gradients(client)}


def _check_steps(parties: Parties, batch: Batch, where: str) -> None:
    """Two steps of AdamW on every adapter, the trunk's among them."""
    if parties.plan is None:
        return
    _train_adapters(parties)
    for model in (parties.client, parties.whole):
        model.zero_grad(set_to_none=True)
    whole = torch.optim.AdamW(
        [p for p in parties.whole.parameters() if p.requires_grad],
        lr=_RATE,
        eps=OPTIMIZER.eps,
        weight_decay=0.0,
    )
    split = SplitAdamW(parties.client, lr=_RATE)
    for model, optimizer in ((parties.whole, whole), (parties.client, split)):
        for _ in range(2):
            model(**batch.inputs, **_known(model, use_cache=False)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    expected = read_state(parties.whole)
    compare(
        where,
        {f"stepped {name}": tensor for name, tensor in expected.items()},
        {
            f"stepped {name}": tensor
            for name, tensor in (
                *read_state(parties.client).items(),
                *parties.engine.shared_state().items(),
            )
        },
    )


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"gradient of {_stock_name(name)}": parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def _free(parties: Parties) -> None:
    """Have every tensor make a gradient but the trunk's own, which are frozen in an engine.

    Alike on both sides: torch chooses kernels by what may have a gradient.
    """
    trunk = parties.engine.trunk
    path = layers_path(trunk.model)
    for name, parameter in parties.client.named_parameters():
        parameter.requires_grad_("trunk_gradient" not in name)
    for name, parameter in parties.whole.named_parameters():
        parameter.requires_grad_("lora_" in name or not held_by_trunk(name, path, trunk.cuts))


def _train_adapters(parties: Parties) -> None:
    """Have the adapters' tensors make gradients; the silo's layers' where there are none."""
    trunk = parties.engine.trunk
    path = layers_path(trunk.model)
    for model in (parties.client, parties.whole):
        for name, parameter in model.named_parameters():
            index = layer_index(name, path)
            silos = index is not None and index not in trunk.cuts.trunk_range
            parameter.requires_grad_(silos if parties.plan is None else "lora_" in name)


def _stock_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer", "")
