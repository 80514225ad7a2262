"""What is left of a run for a reader: `result.json`, a plot of the losses, a summary to print.

Plain data in, files and text out; nothing here knows Flower or a model.
"""

from flower_split.reporting.machine import describe_machine
from flower_split.reporting.plot import plot_losses
from flower_split.reporting.result import RoundResult, RunResult, installed_versions
from flower_split.reporting.store import read_result, write_result
from flower_split.reporting.summary import print_summary, summarise

__all__ = [
    "RoundResult",
    "RunResult",
    "describe_machine",
    "installed_versions",
    "plot_losses",
    "print_summary",
    "read_result",
    "summarise",
    "write_result",
]
