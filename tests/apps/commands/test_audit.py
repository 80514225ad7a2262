"""`flower-split audit`: its files, its status, and bad input in one sentence."""

import json
import stat
from pathlib import Path

import pytest
from tiny_checkpoint import save_texts, save_tiny_model
from tuned import save_adapter
from typer.testing import CliRunner

from flower_split.apps.cli import cli

SMALL = ("--documents", "8", "--tokens", "8", "--public-documents", "40", "--no-sweeps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("audited")
    save_tiny_model(made / "model")
    save_texts(made / "own.jsonl", 40)
    save_texts(made / "few.jsonl", 5)
    save_adapter(made / "model", made / "adapter")
    (made / "policy.toml").write_text("[limits]\ntoken = 0.5\n")
    return made


def audit(folder: Path, *words: str | Path) -> tuple[int, str, str]:
    given = ["audit", *map(str, words), "--public", str(folder / "own.jsonl"), *SMALL]
    done = CliRunner().invoke(cli, given)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.slow
def test_an_audit_leaves_a_private_report(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    (tmp_path / "policy.toml").write_text("[limits]\ntokens = 0.5\n")
    given = ("--adapter", folder / "adapter", "--policy", tmp_path / "policy.toml")
    own = ("--data", folder / "own.jsonl", "--out", out, "--with-texts")
    own = (*own, "-c", "train.local-steps=2")
    status, said, _ = audit(folder, folder / "model", *given, *own)
    result = json.loads((out / "audit.json").read_bytes())
    assert status == result["status"] in (3, 4)
    assert "lower bound" in said and result["verdict"] in said
    controls = {one["name"]: one for one in result["controls"]}
    assert controls["positive control"]["passed"] and controls["span check"]["passed"]
    assert controls["one recording"]["passed"] and len(controls) == 11
    made = [one["attack"] for one in result["attacks"]]
    assert {"F1", "F2", "F3", "F4", "B1", "B2", "B3", "B3+F2", "U1", "U2", "M1", "H1"} == {*made}
    # The trunk's operator alone makes those again for which the adapter matters.
    parties = {(one["attack"], one["party"]) for one in result["attacks"]}
    assert {
        (key, who) for key in ("F2", "F3", "F4", "B2", "B3", "H1") for who in ("T", "A+T")
    } <= parties
    assert {one["recording"] for one in result["attacks"]} == {result["recordings"]["own"]}
    assert result["subject"]["adapter"] == "adapter"
    best = max(a["recovery"]["tokens"]["value"] for a in result["attacks"] if a["recovery"])
    assert best > 0.9  # a tiny model at one layer hides nothing

    page = (out / "audit.html").read_text(encoding="utf-8")
    local = (out / "audit-with-texts.html").read_text(encoding="utf-8")
    text = json.loads((folder / "own.jsonl").read_text().splitlines()[0])["text"]
    word = max(text.split(), key=len)
    assert f"the text: {word}" not in page and "the text:" in local and "<script" not in local
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert {stat.S_IMODE(one.stat().st_mode) for one in out.iterdir()} == {0o600}


def test_a_budget_that_is_used_up_gives_no_verdict(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    given = ("--budget", "0.00001", "--out", out, "--json", "--data", folder / "own.jsonl")
    status, said, _ = audit(folder, folder / "model", *given)
    answer = json.loads(said)
    assert status == answer["status"] == 5 and answer["budget-used-up"] and not answer["ok"]
    assert "U1" in answer["not-run"] and not (out / "audit-with-texts.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model", "--policy", "policy.toml"), "unknown limit 'token'"),
        (("adapter",), "is a PEFT adapter"),
        (("model", "-c", "split.bottom-layers=7"), "leave no layer of 4"),
        (("model", "--data", "few.jsonl"), "has 5 texts"),
        (("model", "-c", "wire.h1-noise=1.0"), "wire.h1-clip"),
        (("model", "-c", "model.task='masked-lm'"), "reconstruct the texts of language models"),
        (("model", "--budget", "0"), "--budget must be a number above 0"),
        (("model", "--adapter", "model"), "is no PEFT folder"),
    ],
)
def test_bad_input_is_one_sentence(folder: Path, tmp_path: Path, words, said: str) -> None:
    named = [str(folder / word) if (folder / word).exists() else word for word in words]
    own = () if "--data" in words else ("--data", folder / "own.jsonl")
    status, out, err = audit(folder, *named, *own, "--out", tmp_path / "report")
    assert status == 1 and out.count("\n") <= 2
    assert err.startswith("error: ") and said in err and "Traceback" not in err
    assert not (tmp_path / "report" / "audit.json").exists()
