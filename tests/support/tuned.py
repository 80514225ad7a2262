"""What a finished run leaves, with an adapter that changes what the tiny model says."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_checkpoint import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from flower_split.apps.prompt_format import prompt_format
from flower_split.apps.using.tuned_model import Answer
from flower_split.reporting import RunResult, write_result


def save_adapter(model: Path, folder: Path, **named: Any) -> Path:
    """A random LoRA adapter of the model in `model`."""
    torch.manual_seed(4)  # of an adapter that makes it say several words
    base = AutoModelForCausalLM.from_pretrained(model)
    tuned = get_peft_model(
        base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **named)
    )
    for name, part in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(part, std=0.5)
    tuned.save_pretrained(folder)
    return folder


def save_tuned_run(folder: Path, *, layers: int = 4, **config: Any) -> Path:
    """`folder` with `model`, and in `run` what a run with `config` left."""
    model = save_tiny_model(folder / "model", layers=layers)
    adapter = save_adapter(model, folder / "run" / "adapter")
    values = {"model.name": str(model), "split.bottom-layers": 1, "split.top-layers": 1, **config}
    result = RunResult(rounds=(), config=values, prompt_format=prompt_format(values))
    write_result(result, folder / "run" / "result.json")
    assert adapter.is_dir()
    return folder / "run"


def stock_ids(folder: Path, ids: list[int], **how: Any) -> list[int]:
    """What stock transformers and PEFT say after `ids`, greedily, by the whole model."""
    base = AutoModelForCausalLM.from_pretrained(folder.parent / "model")
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    given = torch.tensor([ids])
    mask = torch.ones_like(given)
    said = model.generate(input_ids=given, attention_mask=mask, do_sample=False, **how)
    return said[0][len(ids) :].tolist()


def stock_text(folder: Path, ids: list[int], **how: Any) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder.parent / "model")
    return str(tokenizer.decode(stock_ids(folder, ids, **how), skip_special_tokens=True))


class Form:
    """A form of chats whose prompt is one token a turn."""

    is_chat = True
    words = "a chat"
    fields = ()

    def ids(self, turns: Any, values: Any = None) -> list[int]:
        return list(range(1, len(turns) + 1))

    def plain_ids(self, text: str) -> list[int]:
        return [1]


class ScriptedModel:
    """Says `words`, and before each one calls `before`; looks whether it is to stop."""

    form = Form()
    where = "nowhere"
    context = 100

    def __init__(self, words: list[str], before: Any = lambda n: None) -> None:
        self.words = words
        self.before = before
        self.asked: list[list[int]] = []
        self.finished: list[str] = []

    def check(self, ids: list[int]) -> None:
        pass

    def answer(
        self,
        ids: list[int],
        sampling: Any = None,
        *,
        on_text: Any = lambda text: None,
        is_stopped: Any = lambda: False,
        goes_on: bool = False,
    ) -> Answer:
        self.asked.append(list(ids))
        said, finish = "", "stop"
        for number, word in enumerate(self.words):
            self.before(number)
            if is_stopped():
                finish = "interrupted"
                break
            said += word
            on_text(word)
        self.finished.append(finish)
        return Answer(
            text=said, prompt_tokens=len(ids), new_tokens=len(said.split()), finish=finish
        )
