"""The socket that HTTP is served on."""

import socket

import pytest

from flower_split.apps.monitoring.listening import listening
from flower_split.config.address import Address
from flower_split.errors import ConfigError


def test_who_comes_before_the_server_has_begun_is_kept_waiting():
    with listening(Address("127.0.0.1", 0), "monitor-address") as bound:
        port = bound.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5) as reader:
            reader.sendall(b"GET / HTTP/1.1\r\n")
            served, _ = bound.accept()
            with served:
                assert served.recv(3) == b"GET"


def test_a_port_in_use_is_said_by_its_setting():
    with listening(Address("127.0.0.1", 0), "monitor-address") as bound:
        place = Address("127.0.0.1", bound.getsockname()[1])
        with pytest.raises(ConfigError, match=f"monitor-address {place} .*it is in use"):
            listening(place, "monitor-address")
