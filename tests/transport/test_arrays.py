import tracemalloc

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flower_split.errors import AdapterError
from flower_split.transport.arrays import read_array

DTYPES = (np.float32, np.float64, np.float16, np.int64, np.bool_)


@given(
    st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0))),
    st.booleans(),
)
def test_what_numpy_saved_is_read_as_flower_reads_it(values, fortran):
    array = Array(np.asfortranarray(values) if fortran else values)
    read = read_array("a", array)
    expected = array.numpy()
    np.testing.assert_array_equal(read, expected)
    assert read.dtype == expected.dtype and read.shape == expected.shape and read.flags.writeable


@given(st.binary(max_size=200), st.integers(0, 160), st.integers(0, 8))
def test_bytes_that_were_changed_are_refused_or_of_the_same_kind(noise, at, cut):
    honest = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
    data = honest.data[:at] + noise + honest.data[at + len(noise) :]
    changed = Array("float32", (2, 3), "numpy.ndarray", data[: len(data) - cut])
    try:
        read = read_array("a", changed)
    except AdapterError as error:
        assert str(error).startswith("a ") and len(str(error)) < 400
    else:
        assert read.shape == (2, 3) and read.dtype == np.float32


def header(text):
    padded = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()


HUGE = header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (Array("float32", (1,), "pickle", b""), "a 'pickle', expected a 'numpy.ndarray'"),
        (Array("float32", (1,), "numpy.ndarray", b""), "no array of numpy.save's"),
        (Array("float32", (1,), "numpy.ndarray", b"\x80\x04K\x01."), "no array of numpy.save's"),
        (Array("float32", (1000000, 1000000), "numpy.ndarray", HUGE), "expected 4000000000000"),
        (Array("object", (1,), "numpy.ndarray", header("{'descr': '|O', 'fortran_order': False, "
         "'shape': (1,), }")), "of dtype object, expected numbers"),
        (Array("float32", (2,), "numpy.ndarray", Array(np.zeros(3, np.float32)).data), "shape"),
        (Array("float32", (3,), "numpy.ndarray", Array(np.zeros(3)).data), "float64"),
        (Array("float32", (3,), "numpy.ndarray", Array(np.zeros(3, np.float32)).data + b"x"),
         "13 bytes of values, expected 12"),
        (Array("f" * 10**6, (3,), "numpy.ndarray", Array(np.zeros(3, np.float32)).data), "ffff…"),
        (Array("float32", (1,), "numpy.ndarray", header("(" * 110)), "no array of numpy.save's"),
    ],
)  # fmt: skip
def test_what_is_no_array_is_refused_before_anything_is_allocated(array, said):
    tracemalloc.start()
    with pytest.raises(AdapterError) as told:
        read_array("a", array)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said in str(told.value) and len(str(told.value)) < 600
    assert peak < 4 * 2**20
