"""What a family's entry says is read off a model of it."""

import pytest
from tiny_models import CASES, Case
from torch import nn
from transformers import CONFIG_MAPPING, LlamaForCausalLM, PreTrainedModel

from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import ModelError, UnsupportedFamilyError
from flower_split.segments import FAMILIES, Family
from flower_split.segments.layers import find_layers
from flower_split.segments.outside import head_of, outside_modules
from flower_split.segments.reading import read_family
from flower_split.segments.shrinking import shrunk
from flower_split.segments.stock_classes import auto_class, stock_class

LLAMA = next(case for case in CASES if case.name == "llama")


def check_entry(model: PreTrainedModel, entry: Family) -> None:
    read = read_family(model)
    assert read.returns_tuple == entry.returns_tuple
    names = {
        name
        for _, name, module in outside_modules(model, find_layers(model)[1])
        if module is not head_of(model)
    }
    assert names & set(read.after) == names & set(entry.after)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_registered_entry_is_what_is_read(case: Case) -> None:
    check_entry(case.model(), FAMILIES[case.model_type])


@pytest.mark.parametrize("key", [key for key, one in FAMILIES.items() if one.task != CAUSAL_LM])
def test_that_of_a_task_is_too(key: str) -> None:
    config = CONFIG_MAPPING[FAMILIES[key].model_type]()
    config.architectures = [stock_class(config, FAMILIES[key].task).__name__]
    small = shrunk(config)
    check_entry(auto_class(small).from_config(small), FAMILIES[key])


def test_shared_layers_are_refused() -> None:
    model = LLAMA.model()
    model.model.layers[2].mlp = model.model.layers[1].mlp
    with pytest.raises(UnsupportedFamilyError, match=r"share tensors \(layer 1 and layer 2"):
        read_family(model)


def test_a_layer_that_shares_with_the_head_is_refused() -> None:
    model = LLAMA.model()
    model.model.layers[2].extra = model.lm_head
    with pytest.raises(UnsupportedFamilyError, match="shares a tensor with a module outside"):
        read_family(model)


class _Twice(LlamaForCausalLM):
    """Calls its norm before the layers too."""

    def forward(self, *args: object, **kwargs: object) -> object:
        self.model.norm(self.model.embed_tokens.weight[None])
        return super().forward(*args, **kwargs)


def test_what_computes_before_and_after_the_layers_is_refused() -> None:
    model = _Twice(LLAMA.config())
    with pytest.raises(UnsupportedFamilyError, match="'norm' of llama computes between"):
        read_family(model)


def test_layers_that_run_in_another_order_are_refused() -> None:
    model = LLAMA.model()
    first = model.model.layers[0]
    model.model.layers[3].register_forward_hook(lambda layer, args, out: first(out, **RUN) and None)
    with pytest.raises((UnsupportedFamilyError, ModelError)):
        read_family(model)
    assert isinstance(first, nn.Module)


RUN: dict[str, object] = {}
