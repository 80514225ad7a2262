"""The proof: everything that a silo does with a cut model, on a twin, against the uncut model.

Both parties load their parts of the twin's checkpoint as they load any, and the client model
computes through a remote trunk. Nothing but equality to the bit passes.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from transformers import PreTrainedConfig

from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import AdapterError, FlowerSplitError, ModelError, UnsupportedFamilyError
from flower_split.segments import FAMILIES, Family, register_family
from flower_split.segments.reading import read_family
from flower_split.segments.refusals import refuse_config, refuse_model
from flower_split.segments.shrinking import shrunk
from flower_split.segments.stock_classes import stock_class
from flower_split.verification.batches import batches
from flower_split.verification.comparison import failing_at
from flower_split.verification.generation import check_generation
from flower_split.verification.parties import make_adapters, make_parties
from flower_split.verification.training import check_training
from flower_split.verification.twin import Twin, make_twin


def prove(config: PreTrainedConfig) -> Family:
    """The entry of the family of `config`, under which its small twin is exact when it is cut.

    For its time the entry stands among the registered families, so call it in a process of its
    own, or where no other thread loads models.

    Raises:
        ModelError: no twin can be made, or an option of `config` rules out cutting it.
        UnsupportedFamilyError: something differs; it says what and where.
    """
    refuse_config(config)
    try:
        small = shrunk(config)
    except Exception as error:  # configurations check themselves, each with errors of its own
        raise ModelError(
            f"no small twin of its configuration can be made: {type(error).__name__}: {error}"
        ) from error
    with make_twin(small) as twin:
        whole = twin.whole("eager")
        refuse_model(whole)
        family = read_family(whole)
        try:
            _prove(twin, family)
        except FlowerSplitError as with_cache:
            # Layers of which no cache can be filled by two parties may be exact without one.
            family = replace(family, caches=False)
            try:
                _prove(twin, family)
            except FlowerSplitError as error:
                raise UnsupportedFamilyError(f"{with_cache}; without a cache, {error}") from error
        return family


def cuts_of(layers: int) -> list[tuple[int, int]]:
    """Cuts between any two layers: something that one hands to the next might be lost there."""
    inner = [(count, count) for count in range(2, (layers + 1) // 2)]
    middle = [(layers // 2, 0)] if layers > 4 else []
    return [(1, 1), (layers - 2, 0), (0, 1), *inner, *middle]


def _prove(twin: Twin, family: Family) -> None:
    text = twin.config.get_text_config(decoder=True)
    vocabulary = int(text.vocab_size)
    forward = inspect.signature(stock_class(twin.config).forward)
    typed = "token_type_ids" in forward.parameters and getattr(text, "type_vocab_size", 0) > 1
    adapters = make_adapters(twin.whole("eager"))
    with _registered(family):
        for index, (bottom, top) in enumerate(cuts_of(int(text.num_hidden_layers))):
            attention = twin.attentions[index % len(twin.attentions)]
            where = f"{attention} attention, cuts {bottom}/{top}"
            with failing_at(f"{where}, loading"):
                try:
                    parties = make_parties(twin, adapters, bottom, top, attention)
                except AdapterError:  # none of these layers has what the adapters are for
                    parties = make_parties(twin, (None, {}), bottom, top, attention)
            task, pad_id = twin.task.name, getattr(text, "pad_token_id", None) or 0
            given = list(batches(vocabulary, typed, task=task, pad_id=pad_id))
            check_training(parties, family, given, where)
            if task == CAUSAL_LM:
                check_generation(parties, family, vocabulary, where)


@contextmanager
def _registered(family: Family) -> Iterator[None]:
    before = FAMILIES.get(family.key)
    register_family(family)
    try:
        yield
    finally:
        del FAMILIES[family.key]
        if before is not None:
            register_family(before)
