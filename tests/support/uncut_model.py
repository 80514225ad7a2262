"""The uncut model with PEFT's adapters, and what a model computes."""

import torch
from flwr.app import ArrayRecord
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from steps import TARGETS
from transformers import AutoModelForCausalLM


def base_model(folder, auto=AutoModelForCausalLM, **changes):
    return auto.from_pretrained(folder, dtype=torch.float32, **changes)


def peft_model(
    folder, *, r=4, alpha=8, rslora=False, targets=TARGETS, config=None, base=base_model
):
    """The uncut model with PEFT's adapters, initialised by PEFT from seed 0.

    `config` makes PEFT's configuration, where it is not LoRA's of the rest; `base` the model.
    """
    model = base(folder)
    torch.manual_seed(0)
    if config is not None:
        return get_peft_model(model, config())
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        use_rslora=rslora,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    return get_peft_model(model, config)


def initial_arrays(folder, **lora):
    """The adapter that every run starts from; `lora` is `peft_model`'s."""
    return ArrayRecord(get_peft_model_state_dict(peft_model(folder, **lora)))


def prompt_state(model):
    """What is trained of a prompt, by the names that a run gives it."""
    encoder = model.prompt_encoder["default"]
    held = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    if set(held) == {"embedding.weight"}:
        return {"prompt_embeddings": held["embedding.weight"]}
    return {f"prompt_encoder.{name}": tensor for name, tensor in held.items()}


def load_prompt(model, state):
    """Overwrite what is trained of a prompt."""
    named = {"prompt_embeddings": "embedding.weight"}
    inner = {named.get(n, n.removeprefix("prompt_encoder.")): t for n, t in state.items()}
    model.prompt_encoder["default"].load_state_dict(inner)


@torch.no_grad()
def logits(model):
    """Of a fixed input."""
    was = model.training
    model.eval()
    found = model(input_ids=torch.arange(4, 14).reshape(2, 5)).logits
    model.train(was)
    return found


@torch.no_grad()
def dense_logits(folder, updates):
    """Logits of the uncut model with dense updates (by module, outputs x inputs) added to it."""
    model = base_model(folder)
    for name, update in updates.items():
        module = model.get_submodule(name.removeprefix("base_model.model."))
        module.weight += (update.T if type(module).__name__ == "Conv1D" else update).float()
    return logits(model)
