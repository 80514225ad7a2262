import json
import logging
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict
from in_process_grid import RUN_ID, InProcessGrid
from peft import PeftModel
from transformers import AutoModelForCausalLM

from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_app import app as server_app
from flower_split.errors import ConfigError, FlowerSplitError, RoundError
from flower_split.reporting import read_result
from flower_split.reporting.events import read_events


def run(run_config, nodes=3, **grid):
    in_process = InProcessGrid(client_app, nodes, run_config=run_config, **grid)
    context = Context(RUN_ID, 1, {}, RecordDict(), dict(run_config))
    server_app(in_process, context)
    return in_process


@pytest.fixture
def results(run_config, tmp_path):
    run({**run_config, "output-dir": str(tmp_path), "sample-prompt": "the sum of"})
    return tmp_path


def test_a_run_leaves_adapter_result_and_plot(results, tiny):
    assert sorted(path.name for path in results.iterdir()) == [
        "adapter",
        "checkpoints",
        "events.jsonl",
        "losses.png",
        "report.html",
        "result.json",
    ]
    assert all(path.stat().st_mode & 0o077 == 0 for path in results.rglob("*"))
    report = read_result(results / "result.json")
    assert report.silos == ["0", "1", "2"]
    assert [one.server_round for one in report.rounds] == [0, 1, 2]
    assert report.state == "completed"
    assert "completed" in (results / "report.html").read_text()
    assert "## Results by silo" in (results / "adapter" / "README.md").read_text()
    events = read_events(results / "events.jsonl")
    assert (events[0].kind, events[-1].kind) == ("run-begun", "run-ended")
    assert sum(event.kind == "silo-round" for event in events) == 3 * 5
    for silo in report.silos:
        losses = report.losses(silo)
        assert len(losses) == 3
        assert losses[-1][1] < losses[0][1]
        assert set(report.wire_bytes[silo]) == {"h1", "h2", "g2", "g1", "context"}
        assert report.wire_bytes[silo]["h1"] == report.wire_bytes[silo]["h2"] > 0
        assert 0 < report.parameter_share[silo] < 1
    assert report.samples[0].startswith("the sum of")
    assert 2 in report.samples
    assert report.rounds[1].aggregated["train-loss"] > 0
    base = AutoModelForCausalLM.from_pretrained(tiny / "model")
    ids = torch.arange(4, 12)[None]
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, results / "adapter")
    assert not torch.equal(adapted(ids).logits, before)


@pytest.mark.exhaustive
def test_tensorboard_is_written_as_the_run_goes(run_config, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run({**run_config, "output-dir": str(tmp_path), "tensorboard": True})
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in folders)
    report = read_result(tmp_path / "result.json")
    for silo in report.silos:
        found = events.EventAccumulator(str(tmp_path / "tensorboard" / f"silo-{silo}")).Reload()
        curve = [(event.step, event.value) for event in found.Scalars("evaluate/eval-loss")]
        assert curve == [(n, pytest.approx(loss)) for n, loss in report.losses(silo)]
        for name, value in report.rounds[2].train_counters[silo].items():
            last = found.Scalars(f"train-counters/{name}")[-1]
            assert (last.step, last.value) == (2, pytest.approx(value, rel=1e-5, abs=1e-6))


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("mode", ["shared", "frozen"])
def test_the_other_modes_of_the_trunk(run_config, tmp_path, tiny, mode):
    run({**run_config, "trunk.adapters": mode, "output-dir": str(tmp_path)})
    report = read_result(tmp_path / "result.json")
    for silo in report.silos:
        assert report.losses(silo)[-1][1] < report.losses(silo)[0][1]
    base = AutoModelForCausalLM.from_pretrained(tiny / "model")
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
    trained = {
        int(name.split(".layers.")[1].split(".")[0])
        for name, tensor in adapted.named_parameters()
        if "lora_B" in name and tensor.abs().sum() > 0
    }
    assert trained == ({0, 1, 2, 3} if mode == "shared" else {0, 3})


@pytest.mark.exhaustive
def test_silos_computed_together_learn_what_they_do_alone(run_config, tmp_path):
    reports = {}
    for batching in (False, True):
        folder = tmp_path / str(batching)
        together = {"trunk.batching": batching, "trunk.gather-ms": 50.0}
        run({**run_config, **together, "output-dir": str(folder)}, threads=3)
        reports[batching] = read_result(folder / "result.json")
    for silo in reports[True].silos:
        wanted = [loss for _, loss in reports[False].losses(silo)]
        assert [loss for _, loss in reports[True].losses(silo)] == pytest.approx(wanted, rel=1e-4)

    def occupancy(report):
        counters = [found for one in report.rounds for found in one.train_counters.values()]
        return max(found["batch-occupancy"] for found in counters)

    assert occupancy(reports[False]) == 1
    assert occupancy(reports[True]) > 1


@pytest.mark.exhaustive
def test_every_silo_alone_for_comparison(run_config, tmp_path):
    run({**run_config, "baseline-alone": True, "output-dir": str(tmp_path)})
    report = read_result(tmp_path / "result.json")
    for silo in report.silos:
        together = dict(report.losses(silo))
        alone = dict(report.losses(silo, alone=True))
        assert list(alone) == [1, 2]
        assert alone[1] != together[1]
    first = [dict(report.losses(s, evaluate=False)) for s in report.silos]
    first_alone = [dict(report.losses(s, evaluate=False, alone=True)) for s in report.silos]
    assert [one[1] for one in first] == [one[1] for one in first_alone]


def test_all_problems_of_the_run_config_come_at_once(run_config):
    wrong = {**run_config, "lora.r": 0, "strategy.etta": 1.0, "train.bach-size": 3}
    with pytest.raises(ConfigError) as caught:
        run(wrong)
    for said in ("lora.r", "strategy.etta", "did you mean 'train.batch-size'"):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output-dir": "outputs"}, "must be an absolute path"),
        ({"output-dir": "/proc/nowhere/x"}, "cannot be made"),
        ({"split.bottom-layers": 9}, "9"),
        ({"tensorboard": True}, "output-dir is empty"),
        ({"lora.target-modules": "q_proj,nothing"}, "'nothing'"),
        ({"model.name": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_bad_input_is_said_before_any_silo_is_asked(run_config, changes, said):
    with pytest.raises(FlowerSplitError) as caught:
        run({**run_config, **changes})
    assert said in str(caught.value)


def test_a_silo_without_data_ends_the_run_with_the_reason(run_config):
    with pytest.raises(RoundError, match="evaluation failed on every silo") as caught:
        run({**run_config, "data.path": "/nowhere/data.jsonl"})
    assert "/nowhere/data.jsonl" in str(caught.value)


@pytest.mark.exhaustive
def test_a_failed_run_saves_what_it_had_learned(run_config, tmp_path):
    def fail_in_round_two(reply):
        split = reply.content.config_records["split"] if reply.has_content() else None
        late = split is not None and len(grid.sent) > 9
        return [] if late else [reply]

    values = {**run_config, "output-dir": str(tmp_path), "round-timeout": 1.0}
    grid = InProcessGrid(client_app, 3, run_config=values, tamper=fail_in_round_two)
    with pytest.raises(RoundError, match="round 2"):
        server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), values))
    report = read_result(tmp_path / "result.json")
    assert set(report.rounds[-1].failures) == {"0", "1", "2"}
    assert report.failure.startswith("round 2: training failed on every silo asked")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_run_is_reproducible_from_its_seed(run_config, tmp_path):
    def adapter(name, threads=1, **changes):
        run({**run_config, "output-dir": str(tmp_path / name), **changes}, threads=threads)
        return (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()

    # Threads of one process share torch's random state, so silos with dropout go one by one here.
    dropout = {"lora.dropout": 0.1}
    wanted = adapter("one", **dropout)
    assert adapter("two", **dropout) == wanted
    assert adapter("other", seed=1, **dropout) != wanted
    assert adapter("at once", threads=3) == adapter("one by one")


def test_the_log_tells_of_the_rounds_and_of_no_text(run_config, caplog):
    with caplog.at_level(logging.INFO):
        run(run_config)
    assert "round 2 of 2" in caplog.text
    lines = Path(run_config["data.path"]).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert not any(text in caplog.text for text in texts)
