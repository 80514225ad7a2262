"""What counts as progress, and how long things may take."""

import pytest

from flower_split.errors import ConfigError
from flower_split.server.grpc.progress import Deadlines, Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_session_is_idle_since_its_last_progress() -> None:
    clock = Clock()
    progress = Progress(clock)
    clock.now = 3.0
    assert progress.idle_seconds == 3.0
    with progress.working():
        clock.now = 10.0
        assert progress.idle_seconds == 0.0
    clock.now = 11.0
    assert progress.idle_seconds == 1.0
    progress.note()
    assert progress.idle_seconds == 0.0


def test_what_does_not_count_only_suspends() -> None:
    clock = Clock()
    progress = Progress(clock)
    with progress.working(counts=False), progress.working(counts=False):
        clock.now = 5.0
        assert progress.idle_seconds == 0.0
    assert progress.idle_seconds == 5.0


def test_a_large_message_has_more_time() -> None:
    deadlines = Deadlines(transfer=10.0, rate=100)
    assert [deadlines.of(size) for size in (0, 100, 5000)] == [10.0, 11.0, 60.0]


@pytest.mark.parametrize("wrong", [{"idle": 0.0}, {"transfer": -1.0}, {"rate": 0}])
def test_deadlines_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Deadlines(**wrong)  # type: ignore[arg-type]
