"""A client model with a LoRA adapter, and its trunk in the same process for a first look."""

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flower_split import (
    LocalTransport,
    SplitAdamW,
    attach_trunk,
    load_client_model,
    load_tokenizer,
    load_trunk,
)
from flower_split.adapters import (
    AdapterPlan,
    initial_adapter,
    load_state,
    resolve_plan,
    split_state,
    wrap,
)
from flower_split.config.sections import LoraSettings, PeftSettings
from flower_split.config.tasks import CAUSAL, Task
from flower_split.remote import session_spec
from flower_split.segments import layers_path, load_skeleton
from flower_split.server.engine import TrunkEngine

BASE = "flower_split.quickstart:base"
CUTS = {"bottom_layers": 2, "top_layers": 2}
LORA = LoraSettings(r=4, alpha=8.0)


REWARD = Task(name="sequence-classification", labels=("reward",))


def start(task: Task = CAUSAL) -> tuple[AdapterPlan, dict[str, Tensor]]:
    """Which modules get which adapter, and its tensors, as both parties begin with them."""
    skeleton, settings = load_skeleton(BASE, task=task), PeftSettings()
    if task.classifies:
        settings = settings.with_heads()  # trained as a whole, as PEFT does it
    plan = resolve_plan(skeleton, LORA, settings)
    parts = [load_client_model(BASE, **CUTS, task=task), load_trunk(BASE, **CUTS, task=task).model]
    return plan, initial_adapter(skeleton, plan, LORA, parts, seed=0)


def cut_model(*, trunk_parameters: bool = False, task: Task = CAUSAL):
    """The silo's part of the model, attached to a trunk that trains an adapter of its own.

    Args:
        trunk_parameters: Whether any optimizer shall train the trunk's adapter, and not
            `SplitAdamW` alone.
        task: What the model is for.
    """
    trunk = load_trunk(BASE, **CUTS, task=task)
    plan, whole = start(task)
    own, trunks = split_state(whole, layers_path(trunk.model), trunk.cuts)
    engine = TrunkEngine(trunk, plan=plan, initial=trunks, shares_adapter=trunk_parameters)
    client = load_client_model(BASE, **CUTS, task=task)
    client = wrap(client, plan)  # PEFT's LoRA on the silo's layers
    load_state(client, own)
    spec = session_spec(client, plan=plan, trunk_adapters="federated")
    attach_trunk(client, LocalTransport(engine, spec), trunk_parameters=trunk_parameters)
    return client


def tokenizer() -> PreTrainedTokenizerBase:
    """The model's, with a token to pad with."""
    found = load_tokenizer(BASE)
    found.pad_token = found.pad_token or found.eos_token
    return found


SHORT = {
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}
"""Arguments of TRL's configs that the examples have in common."""


def train(trainer_of, model, optimizer=None, **settings) -> list[float]:
    """The losses of the trainer that `trainer_of` makes for the texts below."""
    optimizer = optimizer or SplitAdamW(model, lr=1e-2)
    trainer = trainer_of(model, tokenizer(), TEXTS, optimizer, **settings)
    trainer.train()
    return losses_of(trainer)


def losses_of(trainer) -> list[float]:
    """The losses that a trainer has logged, of every step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


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
