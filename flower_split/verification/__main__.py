"""The proof as a process: a configuration on standard input, the verdict into the file named.

::

    python -m flower_split.verification verdict.json < config.json
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING

from flower_split.errors import ModelError
from flower_split.segments.proving import Verdict, verdict_to_fields
from flower_split.verification.proof import prove


def main(answer: Path) -> None:
    """Prove, and write the verdict."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    settings = json.load(sys.stdin)
    config = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    try:
        verdict = Verdict(family=prove(config))
    except ModelError as error:
        verdict = Verdict(family=None, reason=str(error))
    answer.write_text(json.dumps(verdict_to_fields(verdict)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
