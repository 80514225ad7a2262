"""Synthetic records with planted identifiers: victims for who would not take real ones."""

import random
import re

FIRST = ("Anna", "Omar", "Lucy", "Ben", "Mary", "Tom", "Ida", "Paul", "Nora", "Sam", "Eva", "Max")
LAST = ("Miller", "Hansen", "Okafor", "Silva", "Brown", "Weber", "Novak", "Green", "Rossi", "Lind")
WHAT = ("a cough", "chest pain", "a broken arm", "headaches", "a fever", "a rash", "back pain")
DONE = ("was sent home", "stayed for two days", "got an x-ray", "was given tablets", "had surgery")
WHEN = ("in the morning", "at night", "after lunch", "on Monday", "last week", "in the spring")

_SHAPES = (
    "{first} {last}, record {number}, came {when} with {what} and {done}.",
    "Record {number}: {first} {last} had {what} {when}. {first} {done}.",
    "{when_} {first} {last} came with {what}. The record is {number}. {first} {done}.",
    "The patient {first} {last} ({number}) said that {what} began {when}, and {done}.",
)

_IDENTIFIER = re.compile(r"\d[\d./-]{2,}\d|[\w.+-]+@[\w-]+\.[\w.]+")


def synthetic_records(count: int, seed: int) -> list[dict[str, str]]:
    """`count` records of a sentence or two, no two alike, each with a name and a number.

    Args:
        count: How many.
        seed: Which ones.
    """
    drawn = random.Random(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        when = drawn.choice(WHEN)
        text = drawn.choice(_SHAPES).format(
            first=drawn.choice(FIRST),
            last=drawn.choice(LAST),
            number=f"{drawn.randrange(10**6):06d}",
            what=drawn.choice(WHAT),
            done=drawn.choice(DONE),
            when=when,
            when_=when[0].upper() + when[1:],
        )
        made.setdefault(text)
    return [{"text": text} for text in made]


def canary_records(count: int, seed: int) -> list[dict[str, str]]:
    """`count` records that differ in a random number alone, so that none is easier than another."""
    drawn = random.Random(seed)
    numbers = dict.fromkeys(f"{drawn.randrange(10**10):010d}" for _ in range(2 * count))
    return [{"text": f"The number is {number}."} for number in list(numbers)[:count]]


def identifiers(text: str) -> list[str]:
    """Numbers of four digits or more, dates and mail addresses in `text`, each once."""
    return list(dict.fromkeys(_IDENTIFIER.findall(text)))
