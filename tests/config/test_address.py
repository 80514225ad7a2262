"""Addresses are read and written alike, IPv6 in brackets, and nothing else passes as one."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_split.config.address import Address, bare_host, is_any, is_loopback
from flower_split.errors import ConfigError

PORTS = st.integers(0, 65535)
NAMES = st.from_regex(r"[a-z0-9-]{1,20}(\.[a-z0-9-]{1,20}){0,3}", fullmatch=True)
HOSTS = st.one_of(NAMES, st.ip_addresses().map(str))


@pytest.mark.medium
@settings(deadline=None)
@given(host=HOSTS, port=PORTS)
def test_what_is_written_is_read_again(host: str, port: int) -> None:
    address = Address(host, port)
    assert Address.parse(str(address)) == address
    assert str(address).startswith("[") == (":" in host)
    assert bare_host(str(address).rpartition(":")[0]) == host


@settings(deadline=None)
@given(text=st.text(max_size=30))
def test_any_other_text_is_refused_by_a_config_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except ConfigError as error:
        assert "host:port" in str(error)
    else:
        assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":1", "a", "a:", "a:b", "a:-1", "a:+1", "a: 1", "a:65536", "a:00000000001"),
        *("::1:443", "::1", "[::1]", "[::1]443", "[::1", "::1]:1", "[]:1", "[a]:1", "[1.2.3.4]:1"),
        *("[::1]:", "a b:1", "http://a:1", "u@a:1", "a:1:2", "a:\u0661", "\u00e4:1"),
    ],
)
def test_a_text_that_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="the thing must be host:port"):
        Address.parse(text, what="the thing")


def test_a_port_can_be_left_out_where_there_is_one_to_take() -> None:
    assert Address.parse("a.example", port=7) == Address("a.example", 7)
    assert Address.parse("[::1]", port=7) == Address("::1", 7)
    assert Address.parse("a:1", port=7) == Address("a", 1)
    with pytest.raises(ConfigError):
        Address.parse("::1", port=7)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST."]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host) and not is_any(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", ""])
def test_every_address_of_the_machine_is_not_loopback(host: str) -> None:
    assert is_any(host) and not is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "fe80::1", "localhost.example", "::ffff:10.0.0.1"])
def test_hosts_that_others_reach(host: str) -> None:
    assert not is_loopback(host) and not is_any(host)


def test_a_mapped_loopback_is_loopback() -> None:
    assert ipaddress.ip_address("::ffff:127.0.0.1").version == 6
    assert is_loopback("::ffff:127.0.0.1")
