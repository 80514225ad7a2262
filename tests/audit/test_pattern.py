"""What is known of split models shows on a small pretrained one: the depth of the cut and coarse
codecs protect nothing, and noise of a hundred times the signal leaves nothing."""

from pathlib import Path

import pytest

from flower_split.audit import AuditSettings, Budget, Policy, run_audit
from flower_split.audit.outcome import best_of
from flower_split.audit.subject import open_subject
from flower_split.audit.texts import load_texts
from flower_split.config.run_config import read_run_config
from flower_split.segments import load_skeleton, load_tokenizer, table_sizes

SHARED = Path(__file__).parents[3] / "shared" / "data" / "models" / "stories260K"


@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
def test_the_known_pattern() -> None:
    name = str(SHARED) if SHARED.is_dir() else "flower_split.quickstart:base"
    values = {"model.name": name, "split.bottom-layers": 2, "split.top-layers": 1}
    config = read_run_config(values)
    settings = AuditSettings(documents=24, tokens=40, public_documents=400)
    texts = load_texts(config, settings, load_tokenizer(name), table_sizes(name))
    sizes = load_skeleton(name).config
    subject = open_subject(
        config,
        layers=sizes.num_hidden_layers,
        hidden=sizes.hidden_size,
        adapter=None,
        device="cpu",
    )
    found = run_audit(subject, texts, Policy(), settings=settings, budget=Budget(45))
    assert [one.name for one in found.controls if not one.passed] == []
    assert found.status == 3 and len(found.controls) == 11 and not found.used_up

    depths = [one for one in found.sweep if one.kind == "depth"]
    nearest = [one.shares["F1"] for one in depths]
    learnt = [one.shares["F2"] for one in depths]
    assert nearest[0] > 0.99 and nearest[-1] < nearest[0] - 0.3
    assert min(learnt) > nearest[-1] + 0.2 and min(learnt) > 0.7
    codecs = {one.setting: one.shares for one in found.sweep if one.kind == "codec"}
    for codec in ("int8", "nf4"):
        assert abs(codecs[codec]["F2"] - codecs["fp32"]["F2"]) < 0.1
        assert codecs[codec]["B2"] > codecs[codec]["model's own guess"] + 0.2
    labels = next(one for one in found.attacks if one.key == "B2")
    assert labels.labels is not None and labels.guess is not None
    assert labels.labels.value > labels.guess.value + 0.3
    searched, best = best_of(found.attacks, "F3"), best_of(found.attacks, "F2")
    assert searched is not None and searched.recovery is not None
    assert best is not None and best.recovery is not None
    assert searched.recovery.tokens.value > best.recovery.tokens.value - 0.02
