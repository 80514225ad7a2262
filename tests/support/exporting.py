"""`flower-split` as a command, and what an adapter that it wrote computes."""

from pathlib import Path

import torch
from peft import PeftModel
from typer.testing import CliRunner, Result
from uncut_model import base_model, logits

from flower_split.apps.cli import cli


def flower_split(*arguments: object) -> Result:
    """The ended command with its `exit_code` and `output`."""
    return CliRunner().invoke(cli, list(map(str, arguments)))


def logits_with(base: Path, adapter: Path) -> torch.Tensor:
    """Of the uncut model in `base` with the adapter, loaded by stock transformers and PEFT."""
    return logits(PeftModel.from_pretrained(base_model(base), adapter))
