"""The table of all methods of the installed PEFT, written from what the code takes and refuses.

::

    python -m flower_split.apps.method_reference > docs/peft-methods.md
"""

import sys

from flower_split.adapters.methods import (
    INITS,
    LORA_KEYS,
    ON_QUANTIZED,
    REFUSED,
    method_keys,
    method_names,
    working_methods,
)

_HEAD = """# PEFT's methods

`peft.type` chooses the adapters' method by PEFT's own name, and every further key under `peft` is
a field of PEFT's config of that method, with a hyphen for an underscore: `peft.type = "VERA"` and
`peft.projection-prng-key = 7`. Lists are text with commas between the entries, dicts are JSON, as
in `peft.rank-pattern = '{"q_proj": 4}'`. What is left out stands at PEFT's default. An unknown
method or key ends the run at its start with an error that names what there is.

`LORA` is the default, and the keys under `lora` describe it. Further keys under `peft` are added
to them: `peft.use-dora = true` is DoRA, `peft.init-lora-weights = "pissa"` is PiSSA. Without such
keys it is plain LoRA, whose ranks and alphas a silo may choose where the strategy takes them.

The adapter begins as PEFT begins it in the uncut model with the run's `seed`. A split run equals
plain Flower and PEFT on the uncut model, tensor for tensor, and what it exports is PEFT's own
folder. `tests/strategies/test_methods.py` shows that for every method below that is not refused.

- **Strategies.** Flower's own average every tensor by itself, which is what users of PEFT do, and
  take every method. Those that compute with updates of low rank (`fedavglora` and the like in
  [strategies](strategies.md)), `strategy.personal`, `lora-r` and `lora-alpha` of a node config
  take plain LoRA only.
- **What is drawn from a seed** and not trained (the projections of VeRA and RandLoRA, the
  permutations of BOFT) is not sent and not written: every party draws it, and compares it with
  that of the uncut model. A silo that drew otherwise is refused.
- **What begins from the weights** (DoRA's magnitudes, copies of modules, PiSSA, OLoRA, DeLoRA's
  norms): the server computes what the run begins with, and reads the silos' layers for that.
  PiSSA and OLoRA take it out of the layers' own weights: each party does that with its own.
- **`ADALORA`** allocates ranks over the whole model: each party has PEFT's allocator for its own
  layers, the trunk tells the silo its triplets' scores (4 bytes each, when there is something to
  mask), and the silo tells the threshold over both. `peft.total-step` is a silo's optimizer steps
  in the whole run; with `train.local-steps` it is `num-server-rounds` times those where it is left
  out. Steps count from 0 through all rounds. The training loss has the orthogonal term of all
  modules, as PEFT's has, and none with `masked-lm`, for which PEFT has no class of its own;
  evaluations are of the cross-entropy alone. Importances begin anew each
  round, as in a Flower app that makes its PEFT model in each, and are in no checkpoint; so the last
  allocation, at `total-step` less `tfinal`, is refused as the first step of a round. A round
  after the last allocation keeps the ranks of the adapter that it was sent: where silos disagree,
  those of any. Values are averaged one by one and the export has masked triplets as zeros, at
  `init_r` throughout. It needs `trunk.adapters` `"federated"`, or `"frozen"` for a budget of the
  silo's layers alone. In a loop of one's own `session.model.base_model.update_and_allocate(step)`
  goes between `step()` and `zero_grad()`; a client model with it is not saved by PEFT.
- **`model.quantization`** other than `none` is for plain LoRA and the methods that the second table
  names: those that PEFT trains on such weights, where the cut model equals the uncut quantized one.
- **`peft.bias`** trains biases of the layers themselves, of which a trunk has one set for all
  sessions: it needs `trunk.adapters = "frozen"`.
- **`TRAINABLE_TOKENS`** has no tensors in the trunk: it needs `trunk.adapters = "frozen"`.
- **Prompts** (`PROMPT_TUNING`, `P_TUNING`, `PREFIX_TUNING`, `CARTRIDGE`) are the silo's: they need
  `trunk.adapters = "frozen"`. Their virtual tokens count towards the model's context and the
  trunk's bounds. The first token after a prompt has a loss, as in PEFT. Of an encoder every tensor
  is averaged, and exported is what it gives, which is what PEFT saves.
  `peft.prompt-tuning-init` needs its tokenizer at the server only. A prefix's keys and values for
  the trunk's layers travel with every microbatch, see [wire](wire.md).

This page is written by `python -m flower_split.apps.method_reference`.

"""


def render() -> str:
    """The page as Markdown."""
    page = [_HEAD, "| `peft.type` | on a cut model | keys under `peft` |\n|---|---|---|\n"]
    for name in method_names():
        if name in REFUSED:
            page.append(f"| `{name}` | refused: {REFUSED[name]} | |\n")
        else:
            keys = ", ".join(f"`{_key(key)}`" for key in sorted(method_keys(name)))
            page.append(f"| `{name}` | works | {keys} |\n")
    inits = ", ".join(f"`{str(one).lower()}`" for one in INITS)
    own = ", ".join(f"`{key}`" for key in LORA_KEYS.values())
    page.append(
        f"\n{len(working_methods())} of {len(method_names())} methods work. Of `LORA`, {own} have "
        f"keys of their own, and `init-lora-weights` takes {inits}.\n"
    )
    page.append("\n| `model.quantization` | `peft.type` beside plain LoRA |\n|---|---|\n")
    for kind, methods in ON_QUANTIZED.items():
        page.append(f"| `{kind}` | {', '.join(f'`{name}`' for name in sorted(methods))} |\n")
    return "".join(page)


def _key(name: str) -> str:
    return name.replace("_", "-")


if __name__ == "__main__":
    sys.stdout.write(render())
