"""Packed rows: families that keep a row's sequences apart, and those that do not."""

from pathlib import Path

import pytest
from tiny_models import tiny_model

from flower_split.errors import UnsupportedFamilyError
from flower_split.segments import check_packing


def saved(folder: Path, family: str) -> Path:
    tiny_model(family, 4).config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_families_that_read_positions_take_packed_rows(
    tmp_path: Path, family: str, attention: str
) -> None:
    check_packing(saved(tmp_path, family), "", attention)


@pytest.mark.medium
@pytest.mark.parametrize("family", ["gemma2", "mixtral", "qwen3", "gpt_neox"])
def test_more_families_take_packed_rows(tmp_path: Path, family: str) -> None:
    check_packing(saved(tmp_path, family))


@pytest.mark.medium
def test_families_that_do_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFamilyError, match=r"data\.packing: .* set data\.packing to fal"):
        check_packing(saved(tmp_path / "bloom", "bloom"))
    from transformers import MambaConfig

    config = MambaConfig(hidden_size=32, num_hidden_layers=4, vocab_size=99, state_size=4)
    config.save_pretrained(tmp_path / "mamba")
    with pytest.raises(UnsupportedFamilyError, match=r"data\.packing: .* mamba model"):
        check_packing(tmp_path / "mamba")
