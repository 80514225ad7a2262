"""Every method of PEFT on a tiny model: what a run config sets, and the same of PEFT's config."""

from dataclasses import dataclass, field, replace

TWO = "q_proj, down_proj"
LISTED = ["q_proj", "down_proj"]


@dataclass(frozen=True, kw_only=True)
class MethodCase:
    """One configuration of a method."""

    method: str = "LORA"
    keys: dict = field(default_factory=dict)
    """Of the run config, beside `peft.type`."""
    values: dict = field(default_factory=dict)
    """Of PEFT's config."""
    frozen: bool = False
    """Whether the trunk has no adapter; `values` name the silo's layers then."""
    family: str = "llama"
    """Of the model."""


def lora(*, frozen=False, run=(), **values):
    """LoRA of rank 4 and alpha 8, with `run` beside the values' own keys."""
    given = {f"peft.{n.replace('_', '-')}": v for n, v in values.items()} | dict(run)
    plain = {"r": 4, "lora_alpha": 8, "target_modules": LISTED}
    return MethodCase(
        keys={"lora.r": 4, "lora.alpha": 8, "lora.target-modules": TWO, **given},
        values=plain | values,
        frozen=frozen,
    )


def of(method, *, targets=True, frozen=False, hidden=(), **values):
    """A method, on two kinds of modules unless it finds its own."""
    keys = {f"peft.{n.replace('_', '-')}": v for n, v in values.items()}
    own = values | dict(hidden)
    if targets:
        keys["peft.target-modules"] = TWO
        own["target_modules"] = LISTED
    return MethodCase(method=method, keys=keys, values=own, frozen=frozen)


def listed(case, **values):
    """`case` with PEFT's values of those keys that a run config writes as text."""
    return replace(case, values=case.values | values)


def prompt(method, **values):
    """A method that trains what comes before a row, three tokens of it."""
    case = of(method, targets=False, frozen=True, num_virtual_tokens=3, **values)
    return replace(case, keys=case.keys | {"train.max-length": 128})


SEEDED = {"save_projection": False}

CASES = {
    "LoRA": lora(init_lora_weights=True),
    "rsLoRA": MethodCase(
        keys=lora().keys | {"lora.rslora": True, "peft.init-lora-weights": "gaussian"},
        values=lora().values | {"use_rslora": True, "init_lora_weights": "gaussian"},
    ),
    "DoRA": lora(use_dora=True),
    "PiSSA": lora(init_lora_weights="pissa"),
    "OLoRA": lora(init_lora_weights="olora"),
    "orthogonal": lora(init_lora_weights="orthogonal"),
    "rank and alpha patterns": listed(
        lora(rank_pattern='{"q_proj": 2}', alpha_pattern='{"layers.1.mlp.down_proj": 3}'),
        rank_pattern={"q_proj": 2},
        alpha_pattern={"layers.1.mlp.down_proj": 3},
    ),
    "layers to transform": listed(
        lora(layers_to_transform="1, 2", use_dora=True), layers_to_transform=[1, 2]
    ),
    "modules to save": listed(
        lora(modules_to_save="lm_head, input_layernorm"),
        modules_to_save=["lm_head", "input_layernorm"],
    ),
    "trainable tokens": listed(
        lora(trainable_token_indices="5, 7"), trainable_token_indices=[5, 7]
    ),
    "modules to save and trainable tokens": listed(
        lora(modules_to_save="lm_head, input_layernorm", trainable_token_indices="5, 7"),
        modules_to_save=["lm_head", "input_layernorm"],
        trainable_token_indices=[5, 7],
    ),
    "biases of LoRA": lora(lora_bias=True),
    "biases of the layers": MethodCase(
        family="gpt2",
        frozen=True,
        keys=lora(bias="lora_only").keys | {"lora.target-modules": "c_attn, c_fc"},
        values=lora(bias="lora_only").values
        | {"target_modules": ["c_attn", "c_fc"], "layers_to_transform": [0, 3]},
    ),
    "DoRA, silos only": replace(
        listed(lora(use_dora=True), layers_to_transform=[0, 3]), frozen=True
    ),
    "trainable tokens, tied": MethodCase(
        family="gpt2",
        keys=lora(trainable_token_indices="5, 7").keys | {"lora.target-modules": "c_attn"},
        values=lora().values | {"target_modules": ["c_attn"], "trainable_token_indices": [5, 7]},
    ),
    "modules to save, tied": MethodCase(
        family="gpt2",
        keys=lora(modules_to_save="wte").keys | {"lora.target-modules": "c_attn"},
        values=lora().values | {"target_modules": ["c_attn"], "modules_to_save": ["wte"]},
    ),
    "IA3, Conv1D": MethodCase(
        method="IA3",
        family="gpt2",
        keys={
            "peft.target-modules": "c_attn, mlp.c_proj",
            "peft.feedforward-modules": "mlp.c_proj",
        },
        values={"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]},
    ),
    "VERA, Conv1D": MethodCase(
        method="VERA",
        family="gpt2",
        keys={"peft.r": 8, "peft.target-modules": "c_attn"},
        values={"r": 8, "target_modules": ["c_attn"], **SEEDED},
    ),
    "DoRA, Conv1D": MethodCase(
        family="gpt2",
        keys=lora(use_dora=True).keys | {"lora.target-modules": "c_attn, c_fc"},
        values=lora(use_dora=True).values | {"target_modules": ["c_attn", "c_fc"]},
    ),
    "PiSSA, Conv1D": MethodCase(
        family="gpt2",
        keys=lora(init_lora_weights="pissa").keys | {"lora.target-modules": "c_attn, c_fc"},
        values=lora(init_lora_weights="pissa").values | {"target_modules": ["c_attn", "c_fc"]},
    ),
    "ADALORA": of("ADALORA", init_r=6, target_r=2, tinit=1, deltaT=2, total_step=6),
    "ADALORA, final rounds": of(
        "ADALORA", init_r=6, target_r=2, tfinal=4, total_step=6, orth_reg_weight=0.1, lora_alpha=3
    ),
    "ADALORA, silos only": replace(
        of("ADALORA", init_r=6, target_r=2, total_step=6, layers_to_transform="0, 3", frozen=True),
        values=of("ADALORA", init_r=6, target_r=2, total_step=6).values
        | {"layers_to_transform": [0, 3]},
    ),
    "ADALORA, Conv1D": MethodCase(
        method="ADALORA",
        family="gpt2",
        keys={
            "peft.target-modules": "c_attn, c_fc",
            "peft.init-r": 6,
            "peft.target-r": 2,
            "peft.total-step": 6,
        },
        values={
            "target_modules": ["c_attn", "c_fc"],
            "init_r": 6,
            "target_r": 2,
            "total_step": 6,
        },
    ),
    "BEFT": of("BEFT"),
    "BOFT": of("BOFT", boft_block_size=4),
    "C3A": of("C3A", block_size=4),
    "DEFT": of("DEFT", r=4),
    "DELORA": of("DELORA", r=4),
    "FOURIERFT": of("FOURIERFT", n_frequency=20),
    "GLORA": of("GLORA", r=4),
    "GRALORA": of("GRALORA", r=4),
    "HIRA": of("HIRA", r=4),
    "HRA": of("HRA", r=4),
    "IA3": listed(of("IA3", feedforward_modules="down_proj"), feedforward_modules=["down_proj"]),
    "LN_TUNING": of("LN_TUNING", targets=False),
    "LOHA": of("LOHA", r=4),
    "LOKR": of("LOKR", r=4),
    "MISS": of("MISS", r=4),
    "OFT": of("OFT", oft_block_size=4),
    "PEANUT": of("PEANUT", r=4),
    "PSOFT": of("PSOFT", r=4),
    "RANDLORA": of("RANDLORA", r=4, hidden=SEEDED),
    "ROAD": of("ROAD", group_size=16),
    "TRAINABLE_TOKENS": listed(
        of("TRAINABLE_TOKENS", targets=False, token_indices="5, 7", frozen=True),
        token_indices=[5, 7],
    ),
    "VERA": of("VERA", r=8, hidden=SEEDED),
    "WAVEFT": of("WAVEFT", n_frequency=20),
    "PROMPT_TUNING": prompt("PROMPT_TUNING"),
    "PROMPT_TUNING, words": replace(
        prompt("PROMPT_TUNING", prompt_tuning_init="SAMPLE_VOCAB"), family="gpt2"
    ),
    "PREFIX_TUNING": prompt("PREFIX_TUNING"),
    "PREFIX_TUNING, projected": replace(
        prompt("PREFIX_TUNING", prefix_projection=True, encoder_hidden_size=12), family="gpt2"
    ),
    "CARTRIDGE": prompt("CARTRIDGE"),
    "P_TUNING": prompt("P_TUNING", encoder_hidden_size=12),
    "P_TUNING, LSTM": replace(
        prompt("P_TUNING", encoder_reparameterization_type="LSTM", encoder_num_layers=1),
        family="gpt2",
    ),
}
