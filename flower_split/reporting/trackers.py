"""Trackers of experiments: a run's scalars in W&B, MLflow, Trackio and their like, as they come.

Each tracker is accelerate's integration of it, so that its own settings count: the environment
variables and files in which it looks for its server, its key and its mode. What a tracker is given
leaves this machine for wherever those lead: numbers, the names of silos, and the settings whose
values are neither texts nor files.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from flower_split.errors import ConfigError
from flower_split.reporting.result import RoundResult
from flower_split.reporting.tensorboard import ALL, scalars

logger = logging.getLogger(__name__)

PROJECT = "flower-split"
"""What a run belongs to, in the words of each tracker: project, experiment or workspace."""

# A tracker is told numbers; what it gathers by itself beyond that stays here.
_QUIET: Mapping[str, Callable[[], Mapping[str, Any]]] = {
    "wandb": lambda: {
        "settings": {
            "console": "off",
            "disable_code": True,
            "disable_git": True,
            "save_code": False,
            "x_disable_machine_info": True,
            "x_disable_meta": True,
            "x_disable_stats": True,
        }
    },
}


class Trackers:
    """A context manager that tells rounds to trackers.

    A tracker that fails while the run goes on is left out from then on, and a warning says so: it
    ends no run.

    Args:
        names: Of accelerate's trackers, such as `wandb`, `mlflow` and `trackio`.
        settings: The run's settings, told once.

    Raises:
        ConfigError: on entering: a tracker's package is not installed, or it cannot begin.
    """

    def __init__(self, names: Sequence[str], settings: Mapping[str, Any]) -> None:
        self._names = tuple(names)
        self._settings = {name: _plain(value) for name, value in settings.items()}
        self._trackers: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            for name in self._names:
                self._begin(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, one: RoundResult) -> None:
        """Tell every tracker a round."""
        values = {tag if run == ALL else f"{run}/{tag}": value for run, tag, value in scalars(one)}
        for name in [*self._trackers]:
            try:
                self._trackers[name].log(values, step=one.server_round)
            except Exception as error:  # a library's own, whatever it is
                del self._trackers[name]
                logger.warning(
                    "%s is told nothing from round %d on: %s", name, one.server_round, _shown(error)
                )

    def close(self) -> None:
        """Tell every tracker that the run has ended. Can be called twice."""
        trackers, self._trackers = self._trackers, {}
        for name, tracker in trackers.items():
            try:
                tracker.finish()
            except Exception as error:
                logger.warning("%s was not told that the run has ended: %s", name, _shown(error))

    def _begin(self, name: str) -> None:
        try:
            tracker = _class(name)(PROJECT, **_QUIET.get(name, dict)())
            tracker.start()
            self._trackers[name] = tracker
            tracker.store_init_configuration(self._settings)
        except ImportError as error:
            raise ConfigError(
                f"trackers names {name}, and its package is not installed where the ServerApp "
                f"runs: pip install {name}, or leave {name} out of trackers"
            ) from error
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"the tracker {name} cannot begin: {_shown(error)}. Set it up as its own "
                f"documentation says where the ServerApp runs, or leave {name} out of trackers"
            ) from error


def _class(name: str) -> Callable[..., Any]:
    # Imported late: it takes long, and only runs that name a tracker need it.
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState(cpu=True)  # the integrations log through it

    if name == "tensorboard":
        raise ConfigError("trackers has tensorboard, which has a key: set tensorboard to true")
    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
        raise ConfigError(f"trackers has {name!r}, and accelerate has these: {known}")
    return LOGGER_TYPE_TO_CLASS[name]


def _plain(value: Any) -> str | int | float | bool | None:
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _shown(error: Exception) -> str:
    said = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
