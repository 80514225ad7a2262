import json
import logging
import math
import random
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flower_split.checkpoint import Checkpoint, decode, encode
from flower_split.checkpoint.archive import read_checkpoint, write_checkpoint
from flower_split.checkpoint.kinds import global_randomness, restore_global_randomness
from flower_split.errors import DamagedStateError, StateError


class Colour(Enum):
    RED = 1


@dataclass(frozen=True, slots=True)
class Event:
    size: int
    colour: Colour = Colour.RED


@dataclass
class Ledger:
    events: list[Event] = field(default_factory=list)


class Helper:
    def __init__(self, rate=0.5):
        self.rate = rate
        self.seen = 0

    def weigh(self, x):
        return x * self.rate


class Slotted:
    __slots__ = ("here", "unset")


def double(x):
    return 2 * x


def there_and_back(value, onto=None, folder=None, **options):
    encoded = encode(value, "x")
    assert encoded.lost == ()
    tree, arrays = json.loads(json.dumps(encoded.tree, allow_nan=False)), encoded.arrays
    if folder is not None:
        path = write_checkpoint(
            Checkpoint(server_round=0, arrays=arrays, state={"x": tree}), folder
        )
        read = read_checkpoint(path)
        tree, arrays = read.state["x"], read.arrays
    return decode(tree, arrays, **({} if onto is None else {"onto": onto}), **options)


def same(a, b):
    """Equal in type and to the bit, in everything inside too."""
    assert type(a) is type(b)
    if isinstance(a, (np.ndarray, np.generic)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.reshape(-1).view(torch.uint8).tolist() == b.reshape(-1).view(torch.uint8).tolist()
    elif isinstance(a, dict):
        assert len(a) == len(b)
        for (k, v), (key, w) in zip(a.items(), b.items(), strict=True):
            same(k, key)
            same(v, w)
    elif isinstance(a, (list, tuple, deque)):
        assert len(a) == len(b)
        for v, w in zip(a, b, strict=True):
            same(v, w)
    elif isinstance(a, float) and math.isnan(a):
        assert math.isnan(b)
    else:
        assert a == b
        assert not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b)
    return True


NUMBERS = [
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
]
ARRAYS = hnp.arrays(
    st.one_of(*NUMBERS), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), ARRAYS
)
KEYS = st.one_of(st.text(), st.integers(), st.booleans(), st.tuples(st.integers(), st.text()))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4),
        st.tuples(inner, inner),
    ),
    max_leaves=12,
)


@pytest.mark.medium
@settings(deadline=None)
@given(VALUES)
def test_any_plain_value_comes_back_to_the_bit(value):
    same(there_and_back(value), value)


@pytest.mark.parametrize(
    "value",
    [
        {1, 2, 2**70},
        frozenset({"a", None}),
        deque([1, 2], maxlen=5),
        OrderedDict([("b", 1), ("a", [2])]),
        2 + 3j,
        range(1, 9, 2),
        Path("/a/b"),
        Colour.RED,
        Event(size=3),
        Ledger([Event(1), Event(2)]),
        np.float64(0.1),
        np.int32(-3),
        torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
        torch.arange(6).reshape(2, 3),
        np.asfortranarray(np.random.rand(3, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_kinds_come_back_through_a_file(value, tmp_path):
    back = there_and_back(value, folder=tmp_path)
    same(back, value)
    if isinstance(value, np.ndarray):
        assert back.flags.f_contiguous


@pytest.mark.parametrize(
    "make",
    [
        lambda: random.Random(3),
        lambda: np.random.default_rng(3),
        lambda: np.random.Generator(np.random.Philox(3)),
        lambda: np.random.RandomState(3),
        lambda: torch.Generator().manual_seed(3),
    ],
)
def test_random_generators_go_on(make, tmp_path):
    def draw(generator):
        if isinstance(generator, torch.Generator):
            return torch.rand(5, generator=generator).tolist()
        if isinstance(generator, random.Random):
            return [generator.gauss(0, 1) for _ in range(5)]
        return [float(generator.normal()) for _ in range(5)]

    generator = make()
    draw(generator)
    back = there_and_back(generator, folder=tmp_path)
    assert draw(back) == draw(generator)


def test_the_global_generators_go_on(tmp_path):
    def draw():
        return random.random(), np.random.normal(), torch.rand(()).item()

    random.gauss(0, 1)
    states = there_and_back(global_randomness(), folder=tmp_path)
    wanted = draw()
    draw()
    restore_global_randomness(states)
    assert draw() == wanted


def test_what_was_one_object_is_one_object_again():
    array, shared = np.zeros(3), [1]
    generator = random.Random(1)
    value = {"a": array, "b": [array, shared], "c": shared, "g": (generator, generator)}
    value["self"] = value
    back = there_and_back(value)
    assert back["a"] is back["b"][0]
    assert back["c"] is back["b"][1]
    assert back["g"][0] is back["g"][1]
    assert back["self"] is back
    assert len(encode(value, "x").arrays) == 2


def test_objects_are_those_of_the_new_instance_with_the_attributes_of_the_old():
    class Strategy:
        def __init__(self, weigh):
            self.helper = Helper()
            self.weigh = weigh
            self.bound = self.helper.weigh
            self.lock, self.log = threading.Lock(), logging.getLogger("x")
            self.moments = None

    old = Strategy(partial(double, 3))
    old.helper.seen, old.moments, old.helper.extra = 7, {"w": np.arange(3.0)}, "more"
    new = Strategy(partial(double, 3))
    helper, lock = new.helper, new.lock
    assert there_and_back(old, onto=new) is new
    assert new.helper is helper
    assert (helper.seen, helper.extra) == (7, "more")
    assert new.bound.__self__ is helper
    assert new.lock is lock
    assert (new.moments["w"] == [0, 1, 2]).all()


def test_attributes_that_the_old_one_did_not_have_go():
    new = Helper()
    new.extra = 1
    there_and_back(Helper(), onto=new)
    assert not hasattr(new, "extra")


def test_slots_are_attributes_too():
    old, new = Slotted(), Slotted()
    old.here, new.unset = [1], 2
    there_and_back(old, onto=new)
    assert new.here == [1]
    assert not hasattr(new, "unset")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (double, math.sqrt, "was test_encoding:double .* and is math:sqrt now"),
        (Helper(), None, "test_encoding:Helper"),
        ([double], [], r"\[0\] was test_encoding:double .* and is not there now"),
        (Helper().weigh, double, "Helper.weigh"),
    ],
)
def test_other_code_than_then_is_refused(old, new, said):
    encoded = encode(old, "x")
    with pytest.raises(StateError, match=said.replace("test_encoding", __name__)) as caught:
        decode(encoded.tree, encoded.arrays, onto=new)
    assert not isinstance(caught.value, DamagedStateError)


def test_what_cannot_be_kept_is_named_all_at_once(tmp_path):
    with (tmp_path / "file").open("w") as file:
        helper = Helper()
        helper.file, helper.steps, helper.names = file, iter([1]), {"a": np.array(["text"])}
        helper.weights = [1.0, torch.zeros(2, requires_grad=True)]
        lost = encode(helper, "inner").lost
    assert {(one.where, one.kind) for one in lost} == {
        ("inner/file", "_io:TextIOWrapper"),
        ("inner/steps", "builtins:list_iterator"),
        ("inner/names/a", "numpy:ndarray"),
        ("inner/weights/1", "torch:Tensor"),
    }
    assert all(one.reason for one in lost)


def test_objects_made_during_the_run_are_lost_unless_they_are_their_fields():
    value = {"kept": Helper(), "later": None, "events": []}
    expected = encode(value, "x").expected
    value["events"] += [Event(1)]
    assert encode(value, "x", expected=expected).lost == ()
    value["later"] = Helper()
    (lost,) = encode(value, "x", expected=expected).lost
    assert (lost.where, lost.reason) == (
        "x/later",
        "it was made during the run, and a new instance has none",
    )


def test_node_ids_become_those_of_the_same_silos():
    value = {111: np.zeros(1), "seen": {111, 222}, "count": 5, "last": 222, "gone": 333}
    encoded = encode(value, "x", nodes={111: "a", 222: "b", 333: "c"})
    back = decode(encoded.tree, encoded.arrays, nodes={"a": 911, "b": 922})
    assert list(back) == [911, "seen", "count", "last", "gone"]
    assert back["seen"] == {911, 922}
    assert (back["count"], back["last"], back["gone"]) == (5, 922, 333)


@pytest.mark.parametrize(
    "tree",
    [
        {"kind": "unknown", "parts": []},
        {"kind": "array", "array": "absent"},
        {"kind": "same", "id": 4},
        {"kind": "dict", "items": [[1]]},
        {"kind": "list"},
        {},
        {"kind": "tuple", "parts": 3},
        {"kind": "numpy-generator", "parts": {"kind": "dict", "items": [["bit_generator", "os"]]}},
        {"kind": "enum", "class": "builtins:dict", "member": "x"},
        {"kind": "lost"},
        {"kind": "object", "class": None, "fields": {}},
    ],
)
def test_a_tree_that_nobody_wrote_is_refused(tree):
    with pytest.raises(DamagedStateError, match="not what this version writes"):
        decode(tree, {})


def test_no_class_is_imported_or_made_for_its_name():
    for name in ("antigravity:Nothing", "subprocess:Popen", "builtins:object"):
        with pytest.raises(StateError):
            decode({"kind": "object", "class": name, "fields": {}}, {})
