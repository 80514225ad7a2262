"""The benchmark runs, on a toy; what is stored is what the documentation says."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

STORED = Path(__file__).parent / "results" / "codec_gradients.json"
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "pyproject.toml"
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).with_name("codec_gradients.py")
    spec = importlib.util.spec_from_file_location("codec_gradients", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_float32_is_exact_and_coarser_codecs_err_more(benchmark: ModuleType) -> None:
    settings = benchmark.flat_settings(QUICKSTART) | {"data.max-examples": 32}
    found = benchmark.measure(settings, warm=1, batches=1)
    exact = found["fp32"]
    assert (exact.bytes, exact.loss, exact.relative_error, exact.progress) == (1, 1, 0, 1)
    errors = [found[codec].relative_error for codec in ("bf16", "int8", "nf4")]
    assert 0 < errors[0] < errors[1] < errors[2]
    assert all(
        0 < one.bytes < 1 and one.cosine < 1 for name, one in found.items() if name != "fp32"
    )


def test_the_page_says_what_is_stored() -> None:
    page, stored = PAGE.read_text(encoding="utf-8"), json.loads(STORED.read_text())["codecs"]
    for figure in ("relative_error", "cosine", "loss", "progress"):
        told = ", ".join(f"{stored[codec][figure]:.3f}" for codec in ("bf16", "int8", "nf4"))
        assert told in page, (figure, told)
