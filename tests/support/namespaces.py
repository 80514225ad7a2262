"""Machines with addresses of their own: network namespaces that one bridge connects."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

SERVER = "10.213.77.1"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def permitted() -> bool:
    """Whether this process may make network namespaces."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = _name("probe")
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "del", name], check=True)
    return made.returncode == 0


@contextmanager
def machines(num_silos: int) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Command prefixes that run a program on the server's machine and on each silo's.

    The server has the address `SERVER`; a silo's own loopback is not the server's.
    """
    server, bridge = _name("server"), "br0"
    silos = [_name(f"silo{number}") for number in range(num_silos)]
    with ExitStack() as stack:
        for name in (server, *silos):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", server, "link", "add", bridge, "type", "bridge")
        ip("-n", server, "addr", "add", f"{SERVER}/24", "dev", bridge)
        ip("-n", server, "link", "set", bridge, "up")
        for number, silo in enumerate(silos):
            port = f"port{number}"
            peer = ["peer", "name", "eth0", "netns", silo]
            ip("-n", server, "link", "add", port, "type", "veth", *peer)
            ip("-n", server, "link", "set", port, "master", bridge, "up")
            ip("-n", silo, "addr", "add", f"10.213.77.{number + 2}/24", "dev", "eth0")
            ip("-n", silo, "link", "set", "eth0", "up")
        prefixes = [["ip", "netns", "exec", name] for name in (server, *silos)]
        yield prefixes[0], prefixes[1:]


@contextmanager
def shaped(num_silos: int, *qdisc: str) -> Iterator[None]:
    """Both ends of every silo's cable send by the discipline `qdisc`; inside `machines`."""
    ends = [(_name("server"), f"port{number}") for number in range(num_silos)]
    ends += [(_name(f"silo{number}"), "eth0") for number in range(num_silos)]
    with ExitStack() as stack:
        for name, device in ends:
            _tc(name, "add", device, *qdisc)
            stack.callback(_tc, name, "del", device)
        yield


def supports(*qdisc: str) -> bool:
    """Whether `tc` and the kernel know the queueing discipline `qdisc`."""
    if shutil.which("tc") is None or not permitted():
        return False
    name = _name("probe")
    ip("netns", "add", name)
    try:
        _tc(name, "add", "lo", *qdisc)
    except subprocess.CalledProcessError:
        return False
    finally:
        ip("netns", "del", name)
    return True


def _tc(name: str, action: str, device: str, *qdisc: str) -> None:
    words = ["ip", "netns", "exec", name, "tc", "qdisc", action, "dev", device, "root", *qdisc]
    subprocess.run(words, check=True, capture_output=True, text=True)


def _name(machine: str) -> str:
    return f"fs-{machine}-{os.getpid()}"
