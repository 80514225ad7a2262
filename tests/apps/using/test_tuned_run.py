"""What a run's folder has for use, and the sentence where it has nothing."""

import json
import shutil

import pytest
from tuned import save_tuned_run

from flower_split.apps.using.tuned_run import Choice, tuned_run
from flower_split.errors import AdapterError, ConfigError, DataError, ModelError, StateError
from flower_split.reporting import RunResult, write_result


def test_a_run_has_adapter_model_cut_and_format(finished) -> None:
    with tuned_run(finished) as run:
        assert run.adapter == finished / "adapter"
        assert run.config.model.name == str(finished.parent / "model")
        assert (run.config.split.bottom_layers, run.config.split.top_layers) == (1, 1)
        assert run.prompt_format["prompt"] == "{question}\n"


def test_settings_may_be_replaced_and_others_are_left_alone(finished) -> None:
    given = {"model.name": "/other", "data.template": "Q {x} A", "data.prompt": ""}
    with tuned_run(finished, overrides=given) as run:
        assert run.config.model.name == "/other" and run.config.split.bottom_layers == 1
        assert run.prompt_format["prompt"] == "Q {x} A"
    with (
        pytest.raises(ConfigError, match=r"model\.nmae"),
        tuned_run(finished, overrides={"model.nmae": "x"}),
    ):
        pass


def test_keys_of_an_app_of_ones_own_are_passed_over(tmp_path) -> None:
    folder = save_tuned_run(tmp_path, **{"my-own-key": 3, "train.batch-size": 10**9})
    with tuned_run(folder) as run:
        assert run.config.train.batch_size == 8


def test_an_adapter_folder_says_its_model_and_its_format(finished, tmp_path) -> None:
    folder = shutil.copytree(finished / "adapter", tmp_path / "mine")
    with tuned_run(folder) as run:
        assert run.config.model.name == str(finished.parent / "model")
        assert run.prompt_format == {}
    with tuned_run(folder, overrides={"data.prompt": "q"}) as run:
        assert run.prompt_format["prompt"] == "{q}\n"
    (folder / "prompt_format.json").write_text('{"template": "x", "prompt": "{w}: "}')
    with tuned_run(folder) as run:
        assert run.prompt_format["prompt"] == "{w}: "


def changed(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_an_adapter_folder_that_says_no_model_needs_one(finished, tmp_path) -> None:
    folder = shutil.copytree(finished / "adapter", tmp_path / "mine")
    changed(folder, base_model_name_or_path=None)
    with pytest.raises(ModelError, match="--model"), tuned_run(folder):
        pass
    with tuned_run(folder, overrides={"model.name": "some/model"}) as run:
        assert run.config.model.name == "some/model"


@pytest.mark.parametrize("content", ["[]", "{", '{"prompt": 3}', "[" * 10**5])
def test_a_broken_format_is_said(finished, tmp_path, content) -> None:
    folder = shutil.copytree(finished / "adapter", tmp_path / "mine")
    (folder / "prompt_format.json").write_text(content)
    with (
        pytest.raises(AdapterError, match=r"prompt_format\.json cannot be read"),
        tuned_run(folder),
    ):
        pass


@pytest.mark.parametrize("content", ["[]", "{", "[" * 10**5])
def test_a_broken_adapter_config_is_said(finished, tmp_path, content) -> None:
    folder = shutil.copytree(finished / "adapter", tmp_path / "mine")
    (folder / "adapter_config.json").write_text(content)
    says = r"adapter_config\.json cannot be read"
    with pytest.raises(AdapterError, match=says), tuned_run(folder):
        pass


def test_a_folder_without_an_adapter_says_what_to_give(finished, tmp_path) -> None:
    with pytest.raises(StateError, match="there is no folder"), tuned_run(tmp_path / "absent"):
        pass
    with pytest.raises(StateError, match=r"has no adapter\. Give"), tuned_run(tmp_path):
        pass
    write_result(RunResult(rounds=(), failure="no silo came"), tmp_path / "result.json")
    with pytest.raises(StateError, match=r"ended early \(no silo came\)"), tuned_run(tmp_path):
        pass
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(DataError, match="format"), tuned_run(tmp_path):
        pass


def test_a_run_of_another_task_is_refused(tmp_path) -> None:
    classifying = {"model.task": "sequence-classification", "model.labels": "a,b"}
    folder = save_tuned_run(tmp_path, **classifying)
    with pytest.raises(ModelError, match="answers no prompts"), tuned_run(folder):
        pass


def test_a_choice_among_rounds_needs_checkpoints(finished) -> None:
    choice = Choice(best=True)
    with pytest.raises(StateError, match="--best"), tuned_run(finished, choice=choice):
        pass
