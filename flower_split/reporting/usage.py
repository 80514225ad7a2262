"""Code that uses what a run has learned: stock PEFT and transformers, as a reader pastes it."""

import re
from collections.abc import Mapping

from flower_split.config.tasks import CAUSAL_LM

_CODE = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
{load}
base = {base}  # folder or hub name of the base model
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "adapter")
{prompt}
written = model.generate(**prompt, max_new_tokens=64)
print(tokenizer.decode(written[0], skip_special_tokens=True))
"""

_CHAT = """chat = [{"role": "user", "content": "Your question"}]
prompt = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""


def usage_code(base_model: str, prompt_format: Mapping[str, str], *, task: str = CAUSAL_LM) -> str:
    """Python that loads the folder `adapter` and continues a prompt; empty for other tasks.

    Args:
        base_model: A name on the hub, a folder, or a package's folder.
        prompt_format: How fields became the text that the model reads, see `ModelCard`.
        task: What the model is for.
    """
    if task != CAUSAL_LM or "template" not in prompt_format:
        return ""
    asked = re.sub(r"\{[^}]*\}", "Your question", prompt_format.get("prompt", ""))
    source = repr(base_model)
    load = ""
    if re.fullmatch(r"[A-Za-z_][\w.]*:[\w/.-]+", base_model):  # a package's folder
        load = "from flower_split.segments import resolve_source\n"
        source = f"str(resolve_source({source}).folder)"
    prompt = f'prompt = tokenizer({asked or "The beginning of"!r}, return_tensors="pt")'
    if "written_by" in prompt_format:
        prompt = _CHAT
    return _CODE.format(load=load, base=source, prompt=prompt)
