"""The whole model with a silo's own LoRA adapter."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from flower_split import SplitConfig
from flower_split.segments import resolve_source


def adapted_model(config: SplitConfig, node_config: Mapping[str, Any]) -> PeftModel:
    """With the rank and alpha of the node config, or else the run config's."""
    model = AutoModelForCausalLM.from_pretrained(resolve_source(config.model.name).folder)
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=int(node_config.get("app.lora-r", config.lora.r)),
        lora_alpha=node_config.get("app.lora-alpha", config.lora.alpha),
        use_rslora=config.lora.rslora,
        target_modules=list(config.lora.target_modules),
    )
    return get_peft_model(model, lora)
