"""The steps of a loop of one's own under DP-SGD: what was drawn is used as it is, and once."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from flower_split.errors import SequenceError
from flower_split.training import Batch

Microbatches = TypeVar("Microbatches", bound=Sequence[Batch])


class DrawnSteps:
    """Notes which examples a step has drawn, and that no other are added to it."""

    def __init__(self) -> None:
        self._drawn: object = None
        self._filled = -1

    def noting(self, steps: Iterable[Microbatches]) -> Iterator[Microbatches]:
        """The steps, each noted as it is taken."""
        for microbatches in steps:
            self._drawn = microbatches
            yield microbatches

    def use(self, microbatches: Sequence[Batch], step: int) -> None:
        """Raise `SequenceError` unless these are the examples that were drawn last, for this step.

        Args:
            microbatches: That are to be added to a step.
            step: Its number.
        """
        if microbatches is not self._drawn or step == self._filled:
            raise SequenceError(
                "with DP-SGD (dp.noise) a step has the examples that were drawn for it, all of "
                "them and no others: give session.accumulate() each list of "
                "session.train_steps() as it comes, then call session.optimizer.step()"
            )
        self._drawn, self._filled = None, step
