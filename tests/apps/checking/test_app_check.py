"""A check of an app says at once everything that a run would find out late."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from federation import write_app

from flower_split.apps.checking import memory_check
from flower_split.apps.checking.app_check import check_app
from flower_split.apps.checking.findings import Findings
from flower_split.errors import ConfigError, DataError

pytestmark = pytest.mark.medium


@pytest.fixture
def app(tmp_path, run_config):
    return write_app(tmp_path / "app", run_config)


def said(findings, kind):
    return [(one.topic, one.text) for one in findings.all if one.kind == kind]


def test_an_app_that_would_run(app):
    found, findings = check_app(app, silos=3)
    assert found is not None and found.is_ready_made
    assert findings.problems == [] and findings.warnings == []
    topics = [one.topic for one in findings.all]
    assert topics == [
        "archive",
        "strategy",
        "model",
        "cut",
        *["data"] * 3,
        "memory",
        *["address"] * 2,
    ]
    assert len(findings.examples) == 3
    # For whoever holds the data, and for no program that might pass it on.
    report = json.dumps(findings.as_json())
    assert not any(line in report for line in findings.examples[0].splitlines()[1:])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("trunk.devices='cpu, cpu'", "its 2 layers are laid over cpu, cpu"),
        ("trunk.engine='ray' trunk.stages=2 trunk.replicas=2", "2 replicas: 4 actors on Ray"),
    ],
)
def test_how_the_trunk_is_laid_out_is_said(app, given, text):
    _, findings = check_app(app, [given], silos=3)
    assert findings.problems == [] and findings.warnings == []
    assert any(topic == "trunk" and text in t for topic, t in said(findings, "ok"))


def test_a_device_that_a_server_elsewhere_may_have_is_no_problem_here(app):
    _, findings = check_app(app, ["trunk.device='cuda:7'"])
    assert findings.problems == []
    assert any(t.startswith("on this machine, trunk.device") for _, t in said(findings, "warning"))


def test_everything_is_said_at_once(app, tiny):
    (app / "notes.jsonl").write_text("a patient\n")
    given = ['data.text="nope" split.bottom-layers=9 strategy.min-nodes=7']
    _, findings = check_app(app, given, silos=3)
    problems = dict(said(findings, "problem"))
    assert "notes.jsonl (10 B, examples)" in problems["archive"]
    assert "a round starts with 7 silos at least, and there are 3" in problems["strategy"]
    assert "leave no layer" in problems["cut"]
    assert "no field 'nope'" in problems["data"]


def test_what_silos_may_choose_to_hold_is_said_and_counted(app, monkeypatch):
    _, plain = check_app(app, silos=3)
    given = ['split.max-bottom-layers=2 split.bottoms="1, 2"']
    _, findings = check_app(app, given, silos=3)
    assert findings.problems == []
    (fewest, most) = [text for topic, text in said(findings, "ok") if topic == "cut"]
    assert "a silo may choose to hold up to 2 bottom and 1 top layers" in most
    assert fewest in [text for _, text in said(plain, "ok")]
    needed = []
    monkeypatch.setattr(memory_check, "available_memory", lambda: 1)
    for asked in ([], given):
        (text,) = [t for topic, t in said(check_app(app, asked, silos=3)[1], "warning")]
        needed.append(text.partition("need about ")[2].partition(" for")[0])
    assert needed[0] != needed[1]


@pytest.mark.parametrize(
    ("given", "topic", "text"),
    [
        (["split.max-bottom-layers=4"], "cut", "of the model's 4, which leaves none for the trunk"),
        (["split.max-bottom-layers=4 split.bottoms='9'"], "settings", "split.bottoms has 9"),
        (["trunk.devices='cpu, cpu, cpu'"], "trunk", "trunk.devices makes 3 stages of a trunk"),
        (["trunk.engine='ray' trunk.stages=3"], "trunk", "trunk.stages makes 3 stages of a trunk"),
        (["trunk.device='cuda:7'"], "trunk", "trunk.device"),
        (["lora.rr=1"], "settings", "did you mean 'lora.r'?"),
        (["num-server-rounds=0"], "settings", "num-server-rounds must be"),
        (['lora.target-modules="nothing"'], "cut", "'nothing'"),
        (['model.name="/nowhere"'], "model", "/nowhere"),
        (["train.max-length=100000 train.batch-size=1"], "settings", "max-message-tokens"),
        (['trunk.host="no.such.host.invalid"'], "address", "no address that is known here"),
        (['strategy.name="krum" lora.ranks="2,4"'], "strategy", "lora.ranks"),
        (['data.path="/nowhere.jsonl"'], "data", "silos 0, 1, 2: there is no file /nowhere.jsonl"),
    ],
)
def test_a_single_problem(app, given, topic, text):
    _, findings = check_app(app, given, silos=3)
    assert {one[0] for one in said(findings, "problem") if text in one[1]} == {topic}


DP = "dp.noise=1.0 dp.clip=0.1 train.max-grad-norm=0.0 train.batch-size=2"


def test_an_unknown_key_hides_no_other_problem(app):
    found, findings = check_app(app, ['lora.rr=1 wire.h1="int9" lora.r="8"'])
    told = " ".join(one.text for one in findings.problems)
    assert all(key in told for key in ("-c lora.rr", "wire.h1", "lora.r must be"))
    assert [one.topic for one in findings.warnings] == ["settings"]
    assert found is not None and "lora.rr" not in found.settings


def test_dp_sgd_is_told_by_its_epsilon_before_a_run(app):
    pytest.importorskip("dp_accounting")
    _, findings = check_app(app, [DP], silos=3)
    assert findings.problems == []
    told = [text for topic, text in said(findings, "ok") if topic == "dp"]
    assert len(told) == 3 and all("(ε = " in text and "steps on" in text for text in told)
    _, findings = check_app(app, [f"{DP} dp.max-epsilon=0.2"], silos=3)
    refused = [text for topic, text in said(findings, "problem") if topic == "dp"]
    assert refused
    assert all("so that the run trains nothing" in one and "dp.noise" in one for one in refused)
    _, findings = check_app(app, [f"{DP} num-server-rounds=40 dp.max-epsilon=12"], silos=3)
    assert findings.problems == []
    warned = [text for topic, text in said(findings, "warning") if topic == "dp"]
    assert all("ends the run before" in text and "dp.noise" in text for text in warned) and warned
    _, findings = check_app(app, [f"{DP} train.accumulation=100"], silos=3)
    problems = dict(said(findings, "problem"))
    assert "a step expects 200 of them" in problems["dp"]


def test_central_privacy_is_told_by_its_epsilon_before_a_run(app):
    pytest.importorskip("dp_accounting")
    central = "strategy.dp-noise=8.0 strategy.dp-clip=0.5 num-server-rounds=30"
    _, findings = check_app(app, [central], silos=3)
    assert [text for topic, text in said(findings, "ok") if topic == "dp"] == [
        "(ε = 6.33, δ = 1e-05) for all data of a silo after 30 rounds"
    ]
    _, findings = check_app(app, [f"{central} strategy.dp-max-epsilon=2.0"], silos=3)
    assert findings.problems == []
    warned = next(text for topic, text in said(findings, "warning") if topic == "dp")
    assert "strategy.dp-max-epsilon 2 ends the run after 4 of them" in warned
    _, findings = check_app(app, [f"{central} strategy.dp-max-epsilon=0.5"], silos=3)
    assert "raise either" in dict(said(findings, "problem"))["strategy"]


def test_a_silos_own_file(app, tmp_path):
    file = tmp_path / "north.jsonl"
    file.write_text("".join(json.dumps({"text": f"the sum of {n}"}) + "\n" for n in range(20)))
    _, findings = check_app(app, ['data.prompt=""'], data=str(file), examples=1)
    assert next(text for topic, text in said(findings, "ok") if topic == "data").startswith(
        "this silo: 1"
    )
    assert "the sum of" in findings.examples[0]


def test_what_all_parts_of_a_file_lack_is_said_once(app, tmp_path):
    file = tmp_path / "qa.jsonl"
    file.write_text('{"question": "a", "answer": "b"}\n' * 40)
    _, findings = check_app(app, [f'data.path="{file}" data.prompt=""'], silos=3)
    (told,) = (text for topic, text in said(findings, "problem") if topic == "data")
    assert told.startswith("silos 0, 1, 2: ") and "set data.prompt to 'question'" in told.lower()


def test_an_app_of_ones_own_code_is_checked_as_far_as_it_is_known(tmp_path):
    example = Path(__file__).parents[3] / "examples/unsplit_lora"
    found, findings = check_app(example)
    assert found is not None and not found.is_ready_made
    assert findings.problems == []
    assert (
        "settings",
        "are read by the app's own ServerApp, unsplit_lora.server_app:app: not checked",
    ) in said(findings, "ok")


def test_what_is_submitted_is_checked_without_model_and_data(app):
    _, findings = check_app(app, ['model.name="/on/the/server"'], here=False)
    assert findings.problems == []
    assert {one.topic for one in findings.all} == {"archive", "strategy", "settings", "address"}
    assert "output-dir is empty" in said(findings, "warning")[0][1]


def test_findings_of_a_block_that_fails():
    findings = Findings()
    with findings.looking("settings"):
        raise ConfigError("2 problems", ["one", "two"])
    with findings.looking("data"):
        raise DataError("three")
    with findings.looking("archive"):
        raise DataError("one")  # which has been said
    with pytest.raises(KeyError), findings.looking("data"):
        raise KeyError
    assert [one.text for one in findings.problems] == ["one", "two", "three"]
    assert findings.as_json()["ok"] is False


def test_memory_that_is_not_free_is_warned_of_and_what_is_not_there_refused(app, monkeypatch):
    monkeypatch.setattr(memory_check, "available_memory", lambda: 1000)
    _, findings = check_app(app, silos=3)
    assert findings.problems == []
    assert "1.0 kB free now" in dict(said(findings, "warning"))["memory"]
    monkeypatch.setattr(memory_check.psutil, "virtual_memory", lambda: SimpleNamespace(total=2000))
    _, findings = check_app(app, silos=3)
    assert "this machine has 2.0 kB: take fewer silos" in dict(said(findings, "problem"))["memory"]


TOTAL = 2_000_000
"""Bytes."""


def test_memory_for_texts_that_no_silo_has_refuses_nothing(app, monkeypatch, tmp_path):
    file = tmp_path / "short.jsonl"
    file.write_text((json.dumps({"text": "the sum"}) + "\n") * 6)
    given = [f'data.path="{file}" data.prompt="" data.eval-fraction=0.0 train.max-length=1024']
    monkeypatch.setattr(memory_check, "available_memory", lambda: TOTAL)
    memory = SimpleNamespace(total=TOTAL)
    monkeypatch.setattr(memory_check.psutil, "virtual_memory", lambda: memory)
    _, findings = check_app(app, given, silos=3)
    assert findings.problems == []
    assert "for texts of 256 tokens" in dict(said(findings, "warning"))["memory"]
    assert "with 3 x 3 tokens, the longest that was seen" in dict(said(findings, "ok"))["memory"]
