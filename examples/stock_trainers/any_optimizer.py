"""The Trainer's own optimizer, or any other of torch: the trunk's adapter as parameters.

The trunk must allow it (`shares_adapter`), and an adapter's bytes go both ways.

::

    python any_optimizer.py
"""

import tempfile

from cut_model import cut_model
from trainer import main

if __name__ == "__main__":
    print(main(tempfile.mkdtemp(), cut_model(trunk_parameters=True), split=False))
