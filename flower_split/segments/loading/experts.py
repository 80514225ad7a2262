"""Experts of a mixture: which one's tensors are unlike those of the others.

The stock loader stacks a layer's experts, and says little where one of them does not fit.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

_EXPERT = re.compile(r"(?P<layer>.*\.experts)\.(?P<number>\d+)\.(?P<rest>.+)")

Shape = tuple[int, ...]


def unlike_expert(shapes: Mapping[str, Shape]) -> str | None:
    """What is wrong with the first expert unlike the others of its layer; None if all are alike.

    Args:
        shapes: Checkpoint names with their shapes.
    """
    groups: dict[tuple[str, str], dict[int, Shape]] = defaultdict(dict)
    numbers: dict[str, set[int]] = defaultdict(set)
    for name, shape in shapes.items():
        if match := _EXPERT.fullmatch(name):
            number = int(match["number"])
            groups[match["layer"], match["rest"]][number] = shape
            numbers[match["layer"]].add(number)
    for (layer, rest), experts in sorted(groups.items()):
        if absent := numbers[layer] - experts.keys():
            return f"the tensor '{layer}.{min(absent)}.{rest}' is missing"
        usual, _ = Counter(experts.values()).most_common(1)[0]
        for number, shape in sorted(experts.items()):
            if shape != usual:
                return (
                    f"the tensor '{layer}.{number}.{rest}' has the shape {shape}, expected "
                    f"{usual} like the other experts"
                )
    return None
