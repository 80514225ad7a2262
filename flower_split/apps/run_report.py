"""The report of a run that lies in a folder, from its `result.json`."""

from pathlib import Path

from flower_split.errors import DataError, StateError
from flower_split.private_files import make_folder
from flower_split.reporting import RunResult, read_result
from flower_split.reporting.store import write_text

RESULT = "result.json"


def result_of(run: Path) -> tuple[Path, RunResult]:
    """The result file of a run's output folder, or that file itself, and what is in it.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = run / RESULT if run.is_dir() else run
    if not path.is_file():
        raise DataError(
            f"there is no {path}: name the output folder of a run, which has one after its first "
            "round"
        )
    return path, read_result(path)


def write_report(text: str, path: Path) -> None:
    """Write a report's text, whole or not at all.

    Raises:
        StateError: it cannot be written there.
    """
    try:
        make_folder(path.parent)
        write_text(path, text)
    except OSError as error:
        raise StateError(f"the report cannot be written to {path}: {error.strerror}") from error
