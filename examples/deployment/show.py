"""On the server, after a run: print its summary, and check that its adapter loads.

::

    python show.py FOLDER      # the run's output folder
"""

import argparse
import sys
from pathlib import Path

from flower_split.errors import FlowerSplitError
from flower_split.reporting import print_summary, read_result


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the run's output folder")
    folder = parser.parse_args().folder
    try:
        result = read_result(folder / "result.json")
        print_summary(result)
        if result.failure:
            return 1
        tensors = load_adapter(str(result.config["model.name"]), folder / "adapter")
    except (FlowerSplitError, OSError, ValueError) as error:
        print(f"show.py: {error}", file=sys.stderr)
        return 1
    print(f"the adapter in {folder / 'adapter'} loads into the uncut model: {tensors} tensors")
    return 0


def load_adapter(model: str, adapter: Path) -> int:
    """Load the uncut model with the adapter, by stock transformers and PEFT; count its tensors."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from flower_split.segments.loading.source import resolve_source

    source = resolve_source(model)
    base = AutoModelForCausalLM.from_pretrained(source.repository or source.folder)
    adapted = PeftModel.from_pretrained(base, adapter)
    trained = [p for n, p in adapted.named_parameters() if "lora_B" in n and p.abs().sum() > 0]
    if not trained:
        raise ValueError(f"{adapter} has no tensor that training has changed")
    return sum("lora_" in name for name, _ in adapted.named_parameters())


if __name__ == "__main__":
    sys.exit(main())
