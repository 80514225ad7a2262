"""A run that is over, and its model opened."""

import pytest
from tuned import save_tuned_run

from flower_split.apps.using.tuned_model import open_tuned
from flower_split.apps.using.tuned_run import tuned_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of a run with prompts and answers."""
    return save_tuned_run(tmp_path_factory.mktemp("tuned"), **{"data.prompt": "question"})


@pytest.fixture(scope="module")
def opened(finished):
    with tuned_run(finished) as run, open_tuned(run) as model:
        yield model
