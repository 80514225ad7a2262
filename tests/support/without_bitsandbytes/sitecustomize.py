"""Keeps bitsandbytes out of processes that tests start: PEFT imports it wherever it is installed.

That takes two processor seconds a process, and only quantized models need it. Python imports this
file where its folder is on the path.
"""

import sys

sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
