"""The table of the tasks: which model types are exact when they are cut for which of them.

::

    python tests/support/task_table.py --write [MODEL_TYPE …]
"""

import sys
import warnings
from collections.abc import Mapping

from family_table import SETTINGS, shortened
from proved_table import ProvedTable
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from flower_split.config.tasks import MASKED_LM, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION

NAMES = {
    SEQUENCE_CLASSIFICATION: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    TOKEN_CLASSIFICATION: MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    MASKED_LM: MODEL_FOR_MASKED_LM_MAPPING_NAMES,
}
TYPES = tuple(sorted({name for names in NAMES.values() for name in names}))


def line_of(model_type: str) -> str:
    """The row of one type, proved in this process."""
    found, reasons = [], list[str]()
    for task, names in NAMES.items():
        reason = prove_task(model_type, task) if model_type in names else "-"
        found.append("-" if reason == "-" else "no" if reason else "yes")
        if reason not in ("-", "", *reasons):
            reasons.append(reason)
    return f"| `{model_type}` | {' | '.join(found)} | {'; '.join(reasons[:1])} |"


def prove_task(model_type: str, task: str) -> str:
    """Why a type is not exact for a task; empty where it is."""
    from flower_split.errors import ModelError
    from flower_split.segments.stock_classes import stock_class
    from flower_split.verification import prove

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            settings = SETTINGS.get(model_type, {})
            decoder = settings.get("is_encoder_decoder") is False  # half of an encoder-decoder
            config = CONFIG_MAPPING[model_type](**({} if decoder else settings))
            config.architectures = [stock_class(config, task).__name__]
        except ModelError as error:
            return shortened(str(error))
        except Exception as error:
            return f"its default configuration is invalid: {type(error).__name__}"
        try:
            prove(config)
        except ModelError as error:
            return shortened(str(error))
        except Exception as error:
            return shortened(f"the stock code fails with {type(error).__name__}: {error}")
    return ""


def exact(line: str) -> dict[str, bool]:
    """By task, whether a line says that it is exact; without those that transformers has not."""
    cells = [cell.strip() for cell in line.split("|")[2:5]]
    return {t: cell == "yes" for t, cell in zip(NAMES, cells, strict=True) if cell != "-"}


def render(lines: Mapping[str, str]) -> str:
    """The table, of its lines by model type."""
    told = [exact(line) for line in lines.values()]
    counts = [
        f"{sum(one.get(task, False) for one in told)} of {sum(task in one for one in told)} for "
        f"`{task}`"
        for task in NAMES
    ]
    return "\n".join(
        (
            f"Exact when they are cut are {', '.join(counts)}. Default configurations were tried; "
            "`-` is what transformers does not have. Written by "
            "`python tests/support/task_table.py --write`.",
            "",
            "| `model_type` | sequences | tokens | masked | what differs, or why not |",
            "|---|---|---|---|---|",
            *(lines[model_type] for model_type in sorted(lines)),
            "",
        )
    )


TABLE = ProvedTable(
    command="task_table.py",
    page="tasks.md",
    mark="## Model types",
    types=TYPES,
    prove=line_of,
    render=render,
)

if __name__ == "__main__":
    TABLE.main(sys.argv[1:])
