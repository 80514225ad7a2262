import pytest

from flower_split.strategies.hosting.replies import readable

RAY = (
    "<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'\x1b[36mray::ClientAppActor.run()"
    '\x1b[39m (pid=7)\n  File "ray_actor.py", line 60, in run\nDataError: line 3 is '
    "empty\n\nThe above exception was the direct cause of the following exception:\n\n"
    "flwr.clientapp.client_app.ClientAppException: \n"
    "Exception ClientAppException occurred. Message: line 3 is empty'>"
)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("<class 'flower_split.errors.DataError'>:<'line 3'>", "DataError: line 3"),
        ("<class 'OSError'>:<'[Errno 2] it's gone'>", "OSError: [Errno 2] it's gone"),
        ("<class 'ValueError'>:<'two\nlines'>", "ValueError: two\nlines"),
        (RAY, "line 3 is empty"),
        ("ClientApp stopped responding.", "ClientApp stopped responding."),
        ("", ""),
    ],
)
def test_only_the_exceptions_own_words_stay(given, said):
    assert readable(given) == said
