"""Keeps bitsandbytes and torchao out of processes that tests start: PEFT imports what is installed.

That takes two processor seconds a process, and only quantized models need them. Python imports this
file where its folder is on the path.
"""

import sys

for name in ("bitsandbytes", "torchao"):
    sys.modules[name] = None  # type: ignore[assignment]
