import pytest

from flower_split.client.session import discreet
from flower_split.errors import DataError, SiloError


def test_the_text_stays_in_the_silos_log(caplog):
    said = r"^KeyError at test_failures\.py:\d+; "
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
