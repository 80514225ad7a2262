"""The whole model with a silo's own LoRA adapter."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from flower_split import SplitConfig
from flower_split.client.node_config import NodeConfig
from flower_split.segments import resolve_source


def adapted_model(config: SplitConfig, node_config: Mapping[str, Any]) -> PeftModel:
    """With the rank and alpha of the node config, or else the run config's."""
    model = AutoModelForCausalLM.from_pretrained(resolve_source(config.model.name).folder)
    torch.manual_seed(config.seed)
    own = NodeConfig.read(node_config).own_lora(config.lora)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=own.r,
        lora_alpha=own.alpha,
        use_rslora=own.rslora,
        target_modules=list(own.target_modules),
    )
    return get_peft_model(model, lora)
