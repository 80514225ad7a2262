import json
import logging
import shutil

import pytest
import torch
from flwr.app import RecordDict
from tiny_checkpoint import save_tiny_model

from flower_split.client.node_config import NodeConfig
from flower_split.client.silo_data import (
    drop_data,
    held_data,
    silo_batches,
    silo_preferences,
)
from flower_split.config.run_config import read_run_config
from flower_split.errors import DataError, UnsupportedFamilyError
from flower_split.segments import load_client_model, load_tokenizer


def node(number, of=3):
    return NodeConfig(partition_id=number, num_partitions=of)


def test_the_data_is_tokenised_once_a_process(run_config):
    config = read_run_config(run_config)
    one, two = silo_batches(config, node(0)), silo_batches(config, node(0))
    assert one.silo is two.silo
    assert silo_batches(config, node(1)).silo is not one.silo


def test_data_whose_file_was_changed_is_read_anew(run_config, tmp_path):
    drop_data()
    own = tmp_path / "own.jsonl"
    row = json.dumps({"text": "the sum of"}) + "\n"
    own.write_text(row * 4)
    config = read_run_config({**run_config, "data.eval-fraction": 0.0})
    silo = NodeConfig(data_path=str(own))
    assert silo_batches(config, silo).num_train == 4
    own.write_text(row * 6)
    assert silo_batches(config, silo).num_train == 6
    assert [one.train.num_examples for one in held_data()] == [6]
    drop_data()
    assert held_data() == []


def test_silos_have_disjoint_parts_that_make_up_all(run_config):
    config = read_run_config({**run_config, "data.eval-fraction": 0.0})
    sizes = [silo_batches(config, node(number)).num_train for number in range(3)]
    assert sum(sizes) == silo_batches(config, NodeConfig()).num_train == 36


def test_the_silos_own_data_takes_the_place_of_the_runs(run_config, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"text": "the sum of"}) + "\n" for _ in range(4)))
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("a value\n")
    config = read_run_config(
        {
            **run_config,
            "data.path": "/nowhere/x.jsonl",
            "data.eval-path": "/nowhere/y.jsonl",
            "data.eval-split": "test",
            "data.partitioner": "natural",
            "data.partition-by": "silo",
            "data.eval-fraction": 0.25,
        }
    )
    batches = silo_batches(config, NodeConfig(data_path=str(own)))
    assert (batches.num_train, batches.num_held_out) == (3, 1)
    batches = silo_batches(config, NodeConfig(data_path=str(own), eval_path=str(held_out)))
    assert (batches.num_train, batches.num_held_out) == (4, 1)


def test_preference_pairs_are_partitioned_and_held_out(run_config, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"q": f"the {i}", "chosen": f"sum {i}", "rejected": "value"} for i in range(12)]
    rows[4]["rejected"] = rows[4]["chosen"]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"data.path": str(pairs), "data.prompt": "q", "data.bad-rows": "skip"}
    config = read_run_config({**run_config, **values})
    parts = [silo_preferences(config, node(number)) for number in range(3)]
    assert [len(held) for _, held in parts] == [1, 1, 1]
    found = [pair["chosen"] for train, held in parts for pair in (*train, *held)]
    assert sorted(found) == sorted(f"sum {i}" for i in range(12) if i != 4)


def test_the_summary_is_logged_once_a_run(run_config, caplog):
    caplog.set_level(logging.INFO, logger="flower_split.client")
    config = read_run_config(run_config)
    states = [RecordDict(), RecordDict()]
    for state in (*states, *states):
        silo_batches(config, NodeConfig(silo="north"), state=state)
    lines = [r.message for r in caplog.records if r.message.startswith("data of silo north: ")]
    assert len(lines) == 2
    assert "36 rows read from" in lines[0]


def test_packing_asks_whether_the_model_takes_it(run_config, tmp_path):
    folder = save_tiny_model(tmp_path / "bloom", "bloom")
    values = {"model.name": str(folder), "data.packing": True}
    with pytest.raises(UnsupportedFamilyError, match=r"set data\.packing to false"):
        silo_batches(read_run_config({**run_config, **values}), node(0))
    batches = silo_batches(read_run_config({**run_config, "data.packing": True}), node(0))
    packed = list(batches.train(1))
    assert all("position_ids" in batch for batch in packed)
    assert batches.num_train == silo_batches(read_run_config(run_config), node(0)).num_train


def added(tokens, tmp_path, run_config):
    """The run config of a copy of the model whose tokenizer has more tokens than its table."""
    folder = shutil.copytree(run_config["model.name"], tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens(tokens)
    tokenizer.save_pretrained(folder)
    return read_run_config({**run_config, "model.name": str(folder)})


def test_a_pad_token_that_the_model_does_not_have_is_computed_with_all_the_same(
    run_config, tmp_path
):
    config = added({"pad_token": "<more>"}, tmp_path, run_config)
    batches = list(silo_batches(config, node(0)).train(1))
    assert any((batch["attention_mask"] == 0).any() for batch in batches)
    model = load_client_model(config.model.name, bottom_layers=1, top_layers=1)
    rows = model.get_input_embeddings().num_embeddings
    assert all(int(batch["input_ids"].max()) < rows for batch in batches)
    plain = read_run_config(run_config)
    for ours, theirs in zip(batches, silo_batches(plain, node(0)).train(1), strict=True):
        assert torch.equal(ours["labels"], theirs["labels"])


def test_tokens_that_the_model_does_not_have_are_refused_when_the_data_is_loaded(
    run_config, tmp_path
):
    config = added({"eos_token": "<more>"}, tmp_path, run_config)
    with pytest.raises(DataError, match=r"the token id 15 is beyond .* has 15 rows; .* 16 tokens"):
        silo_batches(config, node(0))


def test_rows_are_cut_off_where_the_models_positions_end(run_config, tmp_path):
    folder = save_tiny_model(tmp_path / "gpt2", "gpt2")
    data = tmp_path / "long.jsonl"
    data.write_text("".join(json.dumps({"text": "the sum " * n}) + "\n" for n in (2, 200)))
    values = {"model.name": str(folder), "data.path": str(data), "train.max-length": 1024}
    config = read_run_config({**run_config, **values, "data.eval-fraction": 0.0})
    silo = silo_batches(config, NodeConfig()).silo
    assert max(len(ids) for ids in silo.train.sequences) == 256
    assert "1 example cut off at 256 tokens" in silo.summary.line()
