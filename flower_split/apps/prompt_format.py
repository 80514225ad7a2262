"""The prompt format of a run: how fields become the text that a model reads and learns from.

Whoever uses the adapter must write prompts in the same form, so it is kept with result and adapter.
"""

import json
from collections.abc import Mapping
from typing import Any

from flower_split.config.tasks import CAUSAL_LM, CLASSIFYING
from flower_split.data import PROMPT_SEPARATOR

FILE = "prompt_format.json"
"""Name in the adapter's folder."""


def prompt_format(settings: Mapping[str, Any]) -> dict[str, str]:
    """The format that a run's settings describe.

    Args:
        settings: Every run-config key, see `flower_split.config.resuming`.

    Returns:
        `template`: what the model reads, with the names of fields in braces and special tokens as
        BOS and EOS. `prompt`: its part without a loss, which a prompt to the adapter has in front.
        `separator`: between prompt and answer, where it is not the template's own. Of chats
        `written_by` the chat template that makes the text, and `tools` where the field with them
        is. Of other tasks than causal language modelling the template alone, and the field with
        the label.
    """
    text, task = (
        str(settings.get("data.text") or "text"),
        str(settings.get("model.task") or CAUSAL_LM),
    )
    if task != CAUSAL_LM:
        pair = str(settings.get("data.text-pair") or "")
        template = f"{{{text}}}{{{pair}}}" if pair else f"{{{text}}}"
        label = {"label": str(settings.get("data.label") or "label")} if task in CLASSIFYING else {}
        return {"template": template, **label}
    if chat := str(settings.get("data.messages") or ""):
        tools = str(settings.get("data.tools") or "")
        return {
            "template": f"{{{chat}}}",
            "written_by": "the chat template of the base model's tokenizer",
            **({"tools": f"{{{tools}}}"} if tools else {}),
        }
    if form := str(settings.get("data.template") or ""):
        before, field, _ = form.partition(f"{{{text}}}")
        return {
            "template": f"BOS{form}{'' if field else f'{{{text}}}'}EOS",
            "prompt": before,
            "separator": "",
        }
    asked = str(settings.get("data.prompt") or "")
    prompt = f"{{{asked}}}{PROMPT_SEPARATOR}" if asked else ""
    return {
        "template": f"BOS{prompt}{{{text}}}EOS",
        "prompt": prompt,
        "separator": PROMPT_SEPARATOR if asked else "",
    }


def written(form: Mapping[str, str]) -> str:
    """The content of `FILE`."""
    return json.dumps(form, indent=2, ensure_ascii=False) + "\n"
