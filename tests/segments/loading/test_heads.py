"""Heads of classifiers: drawn alike where a checkpoint has none, refused where it has others."""

import json

import pytest
import torch
from task_models import LABELS, save_task_model, uncut_base
from transformers import BertForMaskedLM

from flower_split.adapters import resolve_plan, wrap
from flower_split.apps.check import check
from flower_split.config.sections import LoraSettings, PeftSettings
from flower_split.config.tasks import MASKED_LM, SEQUENCE_CLASSIFICATION, Task
from flower_split.errors import AdapterError, ConfigError, HandshakeError, ModelError, WeightsError
from flower_split.remote import session_spec
from flower_split.segments import (
    TrunkPlace,
    check_exact,
    join,
    load_client_model,
    load_skeleton,
    load_trunk,
    split_model,
    split_segments,
)
from flower_split.server.engine import TrunkEngine
from flower_split.server.local import LocalTransport

TASK = Task(name=SEQUENCE_CLASSIFICATION, labels=LABELS)
IDS = torch.tensor([[5, 6, 7, 8, 9], [6, 7, 8, 0, 0], [0, 0, 5, 6, 7]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: save_task_model(root / family, family) for family in ("llama", "bert")}


def test_a_missing_head_is_the_same_at_every_cut_and_leaves_the_callers_numbers(folders):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    heads = []
    for bottom, top in ((0, 0), (1, 1), (2, 0)):
        client = load_client_model(
            folders["llama"], bottom_layers=bottom, top_layers=top, task=TASK
        )
        heads.append(client.score.weight)
        (place,) = (m for m in client.modules() if isinstance(m, TrunkPlace))
        assert place.fresh == ("score.weight",)
    assert torch.equal(torch.get_rng_state(), before)
    assert heads[0].shape == (3, 16) and heads[0].std() > 0
    assert all(torch.equal(head, heads[0]) for head in heads)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_padding_on_either_side_is_the_uncut_models(folders, family):
    whole = uncut_base(TASK.name)(folders[family])
    client, trunk = split_model(whole, 1, 1)
    join(client, trunk)
    mask = (IDS != 0).long()
    given = {"input_ids": IDS, "attention_mask": mask, "labels": torch.tensor([0, 2, 1])}
    ours, theirs = client(**given), whole(**given)
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.loss, theirs.loss)


def test_without_padding_a_decoder_is_refused_as_by_transformers(folders, tmp_path):
    whole = uncut_base(TASK.name)(folders["llama"])
    whole.config.pad_token_id = None
    client, trunk = split_model(whole, 1, 1)
    join(client, trunk)
    for model in (whole, client):
        with pytest.raises(ValueError, match="no padding token"):
            model(input_ids=IDS)


def saved(tmp_path, folder, model, **changes):
    for file in folder.iterdir():
        if not file.name.endswith(".safetensors"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    model.config.update(changes)
    model.save_pretrained(tmp_path)
    return tmp_path


def load(folder, labels=LABELS):
    return load_client_model(
        folder,
        bottom_layers=1,
        top_layers=1,
        task=Task(name=SEQUENCE_CLASSIFICATION, labels=labels),
    )


def test_a_checkpoints_own_head_is_taken(folders, tmp_path):
    whole = uncut_base(TASK.name)(folders["llama"])
    folder = saved(tmp_path, folders["llama"], whole)
    client = load(folder)
    assert torch.equal(client.score.weight, whole.score.weight)
    (place,) = (m for m in client.modules() if isinstance(m, TrunkPlace))
    assert place.fresh == ()
    with pytest.raises(WeightsError, match=r"score\.weight has the shape .* model\.labels"):
        load(folder, ("a", "b"))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "yes", "1": "no", "2": "maybe"}
    config["label2id"] = {"yes": 0, "no": 1, "maybe": 2}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"the labels yes, no, maybe, and model\.labels is no,"):
        load(folder)


def test_labels_that_do_not_exclude_each_other(folders, tmp_path):
    whole = uncut_base(TASK.name)(folders["llama"]).eval()
    client, trunk = (
        part(folders["llama"], bottom_layers=1, top_layers=1, task=TASK)
        for part in (load_client_model, load_trunk)
    )
    whole.score.load_state_dict(client.score.state_dict())
    join(client, trunk)
    given = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "labels": torch.eye(3)}
    ours, theirs = client(**given), whole(**given)  # transformers tells by their dtype
    assert torch.equal(ours.loss, theirs.loss) and ours.loss < torch.log(torch.tensor(3.0))
    kind = "multi_label_classification"
    whole = uncut_base(TASK.name)(folders["llama"])
    folder = saved(tmp_path, folders["llama"], whole, problem_type=kind)
    with pytest.raises(WeightsError, match=f"problem_type to '{kind}', and a text has one"):
        load(folder)


@pytest.mark.medium
def test_what_is_missing_and_would_not_be_trained_is_refused(folders, tmp_path):
    bare = BertForMaskedLM.from_pretrained(folders["bert"])
    assert bare.bert.pooler is None
    folder = saved(tmp_path, folders["bert"], bare)
    skeleton = load_skeleton(folder, task=TASK)
    lora = LoraSettings(target_modules=("query",))
    plan = resolve_plan(skeleton, lora, PeftSettings().with_heads())
    with pytest.raises(AdapterError, match=r"bert\.pooler\.dense.*add pooler to"):
        wrap(load(folder), plan)
    named = PeftSettings(options={"modules_to_save": "pooler"}).with_heads()
    wrapped = wrap(load(folder), resolve_plan(skeleton, lora, named))
    trained = {name for name, part in wrapped.named_parameters() if part.requires_grad}
    assert any("pooler" in name for name in trained)
    assert any("classifier" in name for name in trained)


def test_parties_of_other_tasks_do_not_meet_over_another_head(folders):
    cuts = {"bottom_layers": 1, "top_layers": 1}
    lora = LoraSettings(target_modules=("q_proj",))
    plans = {
        task: resolve_plan(load_skeleton(folders["llama"], task=task), lora, settings)
        for task, settings in ((TASK, PeftSettings().with_heads()), (Task(), PeftSettings()))
    }
    trunk = load_trunk(folders["llama"], **cuts)
    engine = TrunkEngine(trunk, plan=plans[Task()], mode="federated")
    client = wrap(load_client_model(folders["llama"], **cuts, task=TASK), plans[TASK])
    spec = session_spec(client, plan=plans[TASK], trunk_adapters="federated")
    with pytest.raises(HandshakeError, match="adapter"):
        LocalTransport(engine, spec)


def test_parts_of_their_own_and_check_exact_are_for_causal_models(folders):
    whole = uncut_base(TASK.name)(folders["llama"])
    with pytest.raises(ModelError, match="cut it with split_model"):
        split_segments(whole, 1, 1)
    with pytest.raises(ModelError, match="flower-split check MODEL --task sequence-class"):
        check_exact(whole, 1, 1)


def test_check_tells_of_a_task(folders):
    assert "is exact for masked-lm" in check(str(folders["bert"]), task=MASKED_LM)
    with pytest.raises(ModelError, match=r"no masked language model .* has model\.task causal-lm"):
        check(str(folders["llama"]), task=MASKED_LM)
    with pytest.raises(ConfigError, match="--task"):
        check(str(folders["llama"]), task="vision")
