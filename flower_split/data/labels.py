"""Labels of examples: names or ids, checked against those that the model tells apart."""

from typing import Any

from flower_split.config.tasks import Task
from flower_split.data.examples import Examples
from flower_split.errors import DataError


def label_id(examples: Examples, index: int, value: Any, field: str, task: Task) -> int:
    """The id of a label.

    Args:
        examples: Where it is from.
        index: Of its example.
        value: Its name, or its id.
        field: That it is in.
        task: Knows the labels.

    Raises:
        DataError: it is none of the task's; it is not quoted.
    """
    names = task.labels
    if isinstance(value, str) and value in names:
        return names.index(value)
    if examples.untyped and isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        numbered = any(name.lstrip("-").isdigit() for name in names)
        within = 0 <= value < len(names)
        if within and (not numbered or names[value] == str(value)):
            return value
        if numbered and (within or str(value) in names):
            raise DataError(
                f"{examples.where(index)}: field {field!r} has labels as whole numbers, which "
                "may be ids, 0 for the first of model.labels, or the numbers that "
                "model.labels names in another order: name the labels there in the order 0, "
                "1, 2, …, or by words, or make the data's labels texts"
            )
        raise DataError(
            f"{examples.where(index)}: field {field!r} has a label's id that is none of the "
            f"{len(names)} of model.labels, 0 to {len(names) - 1}: name every label there"
        )
    known = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    # The label itself is the silo's, and errors go to the server.
    what = "a name" if isinstance(value, str) else f"a {type(value).__name__}"
    raise DataError(
        f"{examples.where(index)}: field {field!r} has a label ({what}) that is not in "
        f"model.labels, which has {known}: add it there, or mend the data"
    )


def words_of(examples: Examples, index: int, field: str) -> list[str]:
    """The words of an example.

    Raises:
        DataError: the field is no list of texts, or an empty one.
    """
    value = examples.value(index, field)
    if isinstance(value, list | tuple) and value and all(isinstance(w, str) for w in value):
        return list(value)
    raise DataError(
        f"{examples.where(index)}: field {field!r} must be a list of words for model.task "
        "'token-classification', and not be empty: split the text into words, and give each a "
        "label"
    )


def tags_of(examples: Examples, index: int, field: str, words: int, task: Task) -> list[int]:
    """The ids of the labels of an example's words.

    Raises:
        DataError: they are not one for each word, or none of the task's.
    """
    value = examples.value(index, field)
    if not isinstance(value, list | tuple):
        raise DataError(
            f"{examples.where(index)}: field {field!r} must be a list with a label for each word, "
            f"not {type(value).__name__}"
        )
    if len(value) != words:
        raise DataError(
            f"{examples.where(index)}: field {field!r} has {len(value)} labels for {words} words: "
            "give one for each"
        )
    return [label_id(examples, index, one, field, task) for one in value]
