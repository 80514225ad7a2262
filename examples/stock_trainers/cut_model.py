"""A client model with a LoRA adapter, and its trunk in the same process for a first look."""

from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase

from flower_split import LocalTransport, attach_trunk, load_client_model, load_tokenizer, load_trunk
from flower_split.adapters import resolve_lora
from flower_split.config.sections import LoraSettings
from flower_split.remote import session_spec
from flower_split.segments import load_skeleton
from flower_split.server.engine import TrunkEngine

BASE = "flower_split.quickstart:base"
CUTS = {"bottom_layers": 2, "top_layers": 2}
LORA = LoraSettings(r=4, alpha=8.0)


def cut_model(*, trunk_parameters: bool = False):
    """The silo's part of the model, attached to a trunk that trains an adapter of its own.

    Args:
        trunk_parameters: Whether any optimizer shall train the trunk's adapter, and not
            `SplitAdamW` alone.
    """
    plan = resolve_lora(load_skeleton(BASE), LORA)
    engine = TrunkEngine(load_trunk(BASE, **CUTS), plan=plan, shares_adapter=trunk_parameters)
    client = load_client_model(BASE, **CUTS)
    targets = [name for name in plan.modules if name in dict(client.named_modules())]
    settings = LoraConfig(
        task_type="CAUSAL_LM", r=LORA.r, lora_alpha=LORA.alpha, target_modules=targets
    )
    client = get_peft_model(client, settings)
    spec = session_spec(client, plan=plan, trunk_adapters="federated")
    attach_trunk(client, LocalTransport(engine, spec), trunk_parameters=trunk_parameters)
    return client


def tokenizer() -> PreTrainedTokenizerBase:
    """The model's, with a token to pad with."""
    found = load_tokenizer(BASE)
    found.pad_token = found.pad_token or found.eos_token
    return found


TEXTS = [
    "Returns the sum of the array's values.",
    "Raises an error if the axis is out of bounds.",
    "The number of elements along the given axis.",
    "Reads the file and returns its first line.",
    "Sorts the list in place, the largest value first.",
    "Closes the connection and frees its buffers.",
    "Splits the text at every comma.",
    "Computes the mean over all rows.",
]
