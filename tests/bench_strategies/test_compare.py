"""The comparison of strategies runs at toy size, goes on where it stopped, and tells it all."""

import json

import compare
import pytest
from comparison.choosing import best_trials, final_loss
from comparison.corpus import LABEL, write_docstrings
from comparison.entries import ENTRIES, RATE, UNTOUCHED, chosen_entries
from comparison.jobs import Job, Notebook
from comparison.report import table
from comparison.running import top_layers
from comparison.settings import Settings, toy
from tiny_checkpoint import WORDS, save_tiny_model

pytestmark = pytest.mark.slow

NAMES = ("central", "fedavg", "fedavg, unsplit", "flexlora, mixed ranks", "flora, mixed ranks")
CHOSEN = tuple(entry for entry in ENTRIES if entry.name.removesuffix(", unsplit") in NAMES)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A toy task with a model and a file of its own."""
    folder = tmp_path_factory.mktemp("task")
    save_tiny_model(folder / "model", "gpt2")
    rows = [
        {"answer": " ".join(WORDS[(i * j) % len(WORDS)] for j in range(9)), "topic": i % 3}
        for i in range(1, 31)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Settings(
        model=str(folder / "model"),
        data=str(folder / "rows.jsonl"),
        text="answer",
        label="topic",
        alpha=10.0,
        bottom=1,
        top=1,
    )
    return toy(task)


@pytest.fixture(scope="module")
def compared(settings, tmp_path_factory):
    """The rows of some entries, and the folder with what the benchmark left."""
    out = tmp_path_factory.mktemp("out")
    return compare.compare(CHOSEN, settings, out, workers=0, is_toy=True), out


@pytest.mark.exhaustive
def test_every_entry_has_a_row_with_what_it_cost(compared):
    rows, _ = compared
    by_name = {row["name"]: row for row in rows}
    assert rows[0]["name"] == UNTOUCHED
    for name in ("fedavg", "flexlora, mixed ranks", "flora, mixed ranks"):
        row = by_name[name]
        assert len(row["losses"]) == 2 and row["failures"] == []
        assert 0 < row["loss"] < 20 and row["deviation"] >= 0
        assert row["down"] > 0 and row["up"] > 0 and row["stream"] > 0
        assert row["server_seconds"] > 0
        assert [[number for number, _ in run] for run in row["by_round"]] == [[0, 1, 2]] * 2
    assert by_name["fedavg"]["to_baseline"] == 0
    assert "down" not in by_name["central"]


@pytest.mark.exhaustive
def test_a_split_run_is_the_unsplit_one(compared):
    rows, _ = compared
    twins = [row for row in rows if row["how"] == "unsplit"]
    assert len(twins) == 2
    for row in twins:
        assert row["difference_of_updates"] < 1e-4
        assert row["difference_of_losses"] < 1e-4
        # Without a split the trunk's adapters travel as well.
        split = next(r for r in rows if r["name"] == row["name"].removesuffix(", unsplit"))
        assert row["up"] > split["up"]


@pytest.mark.exhaustive
def test_what_it_leaves(compared):
    rows, out = compared
    stored = json.loads((out / "results.json").read_text())
    assert stored["toy"] is True
    assert stored["rows"] == json.loads(json.dumps(rows))
    assert "torch" in stored["machine"]["versions"]
    assert set(stored["tried"]) == {row["name"] for row in rows if row.get("mixed") is not None} - {
        row["name"] for row in rows if row["how"] == "unsplit"
    }
    assert (out / "losses.png").read_bytes().startswith(b"\x89PNG")
    shown = (out / "table.md").read_text()
    assert shown == table(rows)
    assert all(f"| {row['name']} |" in shown for row in rows)


@pytest.mark.exhaustive
def test_a_stopped_benchmark_goes_on_from_what_is_there(compared, settings, monkeypatch):
    rows, out = compared
    monkeypatch.setattr("comparison.running.run", None)  # it would fail if it were called
    with (out / "runs.jsonl").open("a") as file:
        file.write('{"key": "cut o')
    again = compare.compare(CHOSEN, settings, out, workers=0, is_toy=True)
    assert again == rows
    assert all(json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines())


def test_a_run_of_another_task_is_another_run(settings):
    (entry,) = chosen_entries("central")
    job = Job(entry=entry, trial={RATE: 0.1}, seed=0)
    longer = Settings(**{**vars(settings), "rounds": 9})
    tried_more = Settings(**{**vars(settings), "rates": (0.1, 0.2), "seeds": (5,)})
    assert job.key(settings) == job.key(tried_more) != job.key(longer)


def outcome(loss, failure=""):
    silos = [{"loss": loss, "held_out": 3}, {"loss": loss + 4, "held_out": 1}]
    return {"failure": failure, "rounds": [{"round": 1, "silos": silos}]}


def test_the_best_trial_is_that_of_the_lowest_loss_and_a_twin_s(settings, tmp_path):
    settings = Settings(**{**vars(settings), "rates": (0.1, 0.2, 0.3, 0.4)})
    notebook = Notebook(tmp_path / "runs.jsonl")
    entries = chosen_entries("fedavg")
    losses = {0.1: 3.0, 0.2: 2.0, 0.3: 1.0, 0.4: 5.0}
    for trial in entries[0].trials(settings):
        job = Job(entry=entries[0], trial=trial, seed=settings.tuning_seed)
        failure = "diverged" if trial[RATE] == 0.3 else ""
        notebook.add(job.key(settings), {}, outcome(losses[trial[RATE]], failure))
    best = best_trials(entries, settings, notebook)
    assert best == {"fedavg": {RATE: 0.2}, "fedavg, unsplit": {RATE: 0.2}}
    assert final_loss(outcome(2.0)) == 3.0


def test_all_entries_have_the_same_number_of_trials():
    counts = {len(entry.trials(Settings(data=""))) for entry in ENTRIES}
    assert len(counts) == 1


def test_a_name_that_is_not_compared_is_refused():
    with pytest.raises(ValueError, match="'fedsomething' is none of"):
        chosen_entries("fedavg,fedsomething")


def test_the_personal_modules_are_the_layers_above_the_trunk(settings):
    assert top_layers(settings) == ["h.3"]
    assert top_layers(Settings(data="", top=2)) == ["layers.6", "layers.7"]


@pytest.mark.medium
def test_the_text_that_is_always_there_is_labelled_by_library(tmp_path):
    write_docstrings(tmp_path / "made" / "docstrings.jsonl", 2)
    lines = (tmp_path / "made" / "docstrings.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row[LABEL] for row in rows] == ["numpy"] * 2 + ["torch"] * 2 + ["transformers"] * 2
    assert all(row["text"] for row in rows)
