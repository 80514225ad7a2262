"""A conversation with a tuned model: its turns, and the answer to the next one."""

from collections.abc import Mapping

from flower_split.apps.using.answering_thread import Pieces, pieces_of
from flower_split.apps.using.prompts import ASSISTANT, SYSTEM, USER, Turn
from flower_split.apps.using.tuned_model import Answer, Sampling, TunedModel
from flower_split.errors import PromptError


class Conversation:
    """Turns of one conversation; where the run's prompts have one question, only the last one.

    Args:
        model: Answers.
        sampling: How.
        system: What the model is told beforehand; empty for nothing.
        values: By name, fields of the prompt other than the one that is asked.

    Raises:
        PromptError: the run's prompts have no place for a system's words.
    """

    def __init__(
        self,
        model: TunedModel,
        sampling: Sampling,
        *,
        system: str = "",
        values: Mapping[str, str] | None = None,
    ) -> None:
        if system and not model.form.is_chat:
            raise PromptError(
                f"the run's prompts ({model.form.words}) have no place for a system's words: "
                "leave --system out"
            )
        self._model = model
        self._sampling = sampling
        self._values = dict(values or {})
        self._first: list[Turn] = [{"role": SYSTEM, "content": system}] if system else []
        self._turns = [*self._first]

    def begin_anew(self) -> None:
        """Forget all turns."""
        self._turns = [*self._first]

    def ask(self, text: str) -> Pieces:
        """The answer to `text`, piece by piece; returns it whole.

        An answer that is stopped stays a turn as far as it came; a question without an answer is
        forgotten.

        Raises:
            PromptError: there is nothing to answer, or no room for it.
            TrunkError: the trunk is gone.
        """
        turns = [*self._turns, _turn(USER, text)]
        ids = self._model.form.ids(turns, self._values)
        self._model.check(ids)
        said = list[str]()
        try:
            pieces = pieces_of(self._model.answer, ids, self._sampling)
            answer = yield from _noted(pieces, said)
            return answer
        finally:
            if self._model.form.is_chat and (heard := "".join(said)).strip():
                self._turns = [*turns, _turn(ASSISTANT, heard)]


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _noted(pieces: Pieces, said: list[str]) -> Pieces:
    try:
        while True:
            piece = next(pieces)
            said.append(piece)
            yield piece
    except StopIteration as ended:
        answer: Answer = ended.value
        return answer
    finally:
        pieces.close()
