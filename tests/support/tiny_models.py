"""Tiny models: a plain one, and one of every family with values that are not the neutral ones."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 97
LAYERS = 4

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_MIXED_LAYERS = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]


_PLAIN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_head": 4, "n_positions": 64},
    "falcon": {"hidden_size": 32, "num_attention_heads": 4},
}
_PLAIN_LLAMA_LIKE: dict[str, Any] = {
    **_LLAMA_LIKE,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def tiny_model(model_type: str = "llama", layers: int = 5, **changes: Any) -> PreTrainedModel:
    """A model with random weights, the same at every call.

    Args:
        model_type: Of transformers; one that has `gpt2`'s or `falcon`'s fields, or `llama`'s.
        layers: How many.
        changes: Fields of its configuration.
    """
    values = {
        "vocab_size": VOCABULARY,
        "num_hidden_layers": layers,
        **_PLAIN.get(model_type, _PLAIN_LLAMA_LIKE),
        **changes,
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**values))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration of one family."""

    name: str
    model_type: str
    values: dict[str, Any] = field(default_factory=dict)

    def config(self, **changes: Any) -> PreTrainedConfig:
        """The configuration of a tiny model."""
        common = {
            "vocab_size": VOCABULARY,
            "num_hidden_layers": LAYERS,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        return CONFIG_MAPPING[self.model_type](**{**common, **self.values, **changes})

    def model(self, attention: str = "eager", **changes: Any) -> PreTrainedModel:
        """A tiny model with random weights, none of them at its neutral start value."""
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            self.config(**changes), attn_implementation=attention, dtype=torch.float32
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.eval()


def _case(name: str, model_type: str | None = None, **values: Any) -> Case:
    return Case(name=name, model_type=model_type or name, values=values)


def _like_llama(name: str, model_type: str | None = None, **values: Any) -> Case:
    return _case(name, model_type, **{**_LLAMA_LIKE, **values})


_DROPLESS_GPT2 = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

CASES: tuple[Case, ...] = (
    _case("gpt2", n_embd=32, n_head=4, n_positions=64, scale_attn_by_inverse_layer_idx=True),
    _case("gpt2-untied", "gpt2", n_embd=32, n_head=4, n_positions=64, tie_word_embeddings=False),
    _like_llama("llama", attention_bias=True, mlp_bias=True),
    _like_llama("llama-tied", "llama", tie_word_embeddings=True, head_dim=12),
    _like_llama("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=2),
    _like_llama("qwen2-tied", "qwen2", tie_word_embeddings=True),
    _like_llama(
        "qwen3", head_dim=12, use_sliding_window=True, sliding_window=5, max_window_layers=2
    ),
    _like_llama(
        "qwen3_moe",
        head_dim=12,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        mlp_only_layers=[1],
    ),
    _like_llama("mistral", sliding_window=5, head_dim=12),
    _like_llama("mixtral", sliding_window=5, num_local_experts=4, num_experts_per_tok=2),
    _like_llama("gemma", head_dim=12, hidden_activation="gelu_pytorch_tanh"),
    _like_llama(
        "gemma2",
        head_dim=12,
        sliding_window=5,
        layer_types=_MIXED_LAYERS,
        query_pre_attn_scalar=7,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=2.0,
    ),
    _like_llama(
        "gemma3_text",
        head_dim=12,
        sliding_window=5,
        layer_types=_MIXED_LAYERS,
        query_pre_attn_scalar=7,
        final_logit_softcapping=2.0,
    ),
    _like_llama("phi", partial_rotary_factor=0.5, qk_layernorm=True),
    _like_llama("phi3", sliding_window=5, tie_word_embeddings=True),
    _case(
        "gpt_neox",
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        rotary_pct=0.5,
        max_position_embeddings=64,
    ),
    _case(
        "gpt_neox-serial",
        "gpt_neox",
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        use_parallel_residual=False,
        tie_word_embeddings=True,
        max_position_embeddings=64,
    ),
    _case("opt", hidden_size=32, ffn_dim=48, num_attention_heads=4, max_position_embeddings=64),
    _case(
        "opt-projected",
        "opt",
        hidden_size=32,
        ffn_dim=48,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
    ),
    _case("bloom", hidden_size=32, n_head=4, apply_residual_connection_post_layernorm=True),
    _case("bloom-6-heads", "bloom", hidden_size=36, n_head=6, tie_word_embeddings=False),
    _case("falcon", hidden_size=32, num_attention_heads=4, bias=True),
    _case("falcon-alibi", "falcon", hidden_size=32, num_attention_heads=4, alibi=True),
    _case(
        "falcon-new",
        "falcon",
        hidden_size=32,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
    ),
    _case(
        "falcon-new-one-norm",
        "falcon",
        hidden_size=32,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
        num_ln_in_parallel_attn=1,
    ),
    _case(
        "falcon-serial",
        "falcon",
        hidden_size=32,
        num_attention_heads=4,
        parallel_attn=False,
        multi_query=False,
        alibi=True,
        tie_word_embeddings=False,
    ),
    _like_llama(
        "stablelm",
        partial_rotary_factor=0.5,
        qk_layernorm=True,
        use_qkv_bias=True,
        use_parallel_residual=True,
    ),
    _like_llama("olmo2", attention_bias=True),
    _like_llama("cohere", logit_scale=0.3, use_qk_norm=True),
    _like_llama(
        "granite",
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
        logits_scaling=2.0,
    ),
    _like_llama("granite-tied", "granite", embedding_multiplier=3.0, tie_word_embeddings=True),
    _like_llama(
        "smollm3",
        no_rope_layers=[1, 0, 1, 0],
        use_sliding_window=True,
        sliding_window=5,
        layer_types=_MIXED_LAYERS,
    ),
    _like_llama("starcoder2", sliding_window=5, residual_dropout=0.0, embedding_dropout=0.0),
    _case("gptj", n_embd=32, n_head=4, n_positions=64, rotary_dim=4, resid_pdrop=0.0),
    _case(
        "gpt_neo",
        hidden_size=32,
        num_heads=4,
        num_layers=LAYERS,
        max_position_embeddings=64,
        window_size=5,
        attention_types=[[["global", "local"], 2]],
    ),
)

CASE_BY_NAME: dict[str, Case] = {case.name: case for case in CASES}
_EAGER_ONLY = {"gemma2", "bloom", "gptj", "gpt_neo"}


def attentions(case: Case) -> list[str]:
    """The attention kernels that the family has on a CPU."""
    return ["eager"] if case.model_type in _EAGER_ONLY else ["eager", "sdpa"]
