"""The trunk on a GPU against the unsplit step, at toy size wherever there is torch."""

import gpu_trunk
import pytest
import torch
from gpu_trunk import measure_trunk, open_trunk
from throughput.llama_shapes import SHAPES, random_llama

CPU = torch.device("cpu")


@pytest.mark.exhaustive
def test_it_measures_every_number_of_silos() -> None:
    found = gpu_trunk.measure(toy=True, device="cpu")
    assert set(found.ratios) == {"trunk_1_over_unsplit", "trunk_2_over_unsplit"}
    assert all(ratio > 0 for ratio in found.ratios.values())
    assert list(found.figures["trunk"]) == ["1", "2"]
    assert found.figures["unsplit"]["peak_bytes"] is None  # known on CUDA only


def test_the_model_is_bfloat16_and_its_adapters_are_not() -> None:
    shape = SHAPES["toy"]
    model = random_llama(shape, CPU)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    engine = open_trunk(shape, CPU)
    lora = [p for n, p in engine.trunk.named_parameters() if "lora_" in n]
    assert {p.dtype for p in lora} == {torch.float32}


def test_too_little_memory_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_trunk(SHAPES["toy"], CPU)

    def no_memory(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(engine.trunk, "forward", no_memory)
    assert measure_trunk(engine, SHAPES["toy"], 2) is None
