"""Whatever fails in a silo leaves it without its text."""

import errno

import pytest

from flower_split.client.discretion import discreet
from flower_split.errors import DataError, SiloError


def test_the_text_stays_in_the_silos_log(caplog):
    said = r"^KeyError at test_discretion\.py:\d+; "
    with pytest.raises(SiloError, match=said) as caught, discreet():
        raise KeyError("a secret")
    assert "secret" not in str(caught.value)
    assert "secret" in caplog.text


def test_the_projects_own_errors_pass():
    with pytest.raises(DataError, match="line 3"), discreet():
        raise DataError("line 3 is empty")


def test_an_interrupt_is_no_failure():
    with pytest.raises(KeyboardInterrupt), discreet():
        raise KeyboardInterrupt


def test_what_the_system_says_is_told_and_the_file_is_not():
    said = r"^OSError \(No space left on device\) at test_discretion\.py:\d+; "
    with pytest.raises(SiloError, match=said) as caught, discreet():
        raise OSError(errno.ENOSPC, "a secret", "/secret")
    assert "secret" not in str(caught.value)
    with pytest.raises(SiloError, match=r"^OSError at"), discreet():
        raise OSError("a secret")
