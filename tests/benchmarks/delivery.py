"""What a delivered model costs a silo and its server, against having the whole checkpoint.

A random checkpoint is made in a temporary folder. This process is the server: it makes the pack
and serves it over TLS on loopback. Silos are processes of their own: one fetches and loads its part
into an empty cache, one finds it there, and one loads the whole model as a silo without a cut
would. At last a session's round trips are timed alone and beside a download. Memory is the peak of
the resident set above what it was after the imports. The last line of the output is a JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torch
from rich.console import Console
from rich.table import Table
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

from flower_split import GrpcTransport, TrunkServer, load_client_model, session_spec, split_model
from flower_split.delivery.cache import PartCache
from flower_split.delivery.fetching import fetch_pack
from flower_split.delivery.pack import Pack
from flower_split.reporting.machine import resident_bytes
from flower_split.tls import ClientTls, ServerTls
from flower_split.transport.grpc.delivery import GrpcDelivery
from flower_split.transport.messages import ForwardRequest, Ticket

MIB = 1 << 20
# A server that asks for no tickets takes any.
TICKETS = [Ticket(run_id=1, node_id=1, server_round=1, token="t")]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of the checkpoint and of the work; the defaults make 1.4 GiB."""

    layers: int = 24
    hidden: int = 1024
    intermediate: int = 2816
    vocabulary: int = 32000
    bottom: int = 2
    top: int = 2
    round_trips: int = 200


def size_of(folder: Path) -> int:
    """Bytes of the files in `folder`, without those that links lead to."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def use(model: torch.nn.Module) -> None:
    """Read every weight once: a loader may leave them in the file until then."""
    for parameter in model.parameters():
        parameter.data.sum()


def make(folder: str, shape: dict[str, int]) -> dict[str, float]:
    """Role: write the checkpoint."""
    model = tiny_model(
        layers=shape["layers"],
        vocab_size=shape["vocabulary"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_key_value_heads=4,
    )
    model.save_pretrained(folder, max_shard_size="512MB")
    return {}


def fetch(
    address: str, ca: str, digest: str, cache: str, shape: dict[str, int]
) -> dict[str, float]:
    """Role: a silo that fetches its part, and loads it."""
    before = resident_bytes()
    trust = ClientTls(ca=ca.encode())
    fetched = fetch_pack(
        digest,
        TICKETS,
        lambda ticket: GrpcDelivery(address, ticket, tls=trust),
        PartCache(Path(cache)),
    )
    peak_fetching = resident_bytes(peak=True) - before
    start = time.perf_counter()
    cuts = {"bottom_layers": shape["bottom"], "top_layers": shape["top"]}
    use(load_client_model(fetched.folder, **cuts))
    return {
        "downloaded": fetched.num_bytes,
        "seconds": fetched.seconds,
        "peak_fetching": peak_fetching,
        "peak": resident_bytes(peak=True) - before,
        "load_seconds": time.perf_counter() - start,
    }


def whole(folder: str) -> dict[str, float]:
    """Role: a silo that loads the whole model."""
    before = resident_bytes()
    use(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    return {"peak": resident_bytes(peak=True) - before}


def start(role: str, *arguments: Any) -> "subprocess.Popen[str]":
    """A process in a role."""
    command = [sys.executable, __file__, "--role", json.dumps([role, *arguments])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> dict[str, float]:
    """What the process measured."""
    out, _ = process.communicate(timeout=1200)
    if process.returncode:
        raise SystemExit(f"a process of the benchmark failed with status {process.returncode}")
    measured: dict[str, float] = json.loads(out.splitlines()[-1])
    return measured


def round_trips(session: GrpcTransport, first: int, count: int) -> list[float]:
    """Milliseconds of forward passes through a tiny trunk, one at a time."""
    hidden, taken = torch.randn(1, 64, 64), []
    for number in range(first, first + count):
        begin = time.perf_counter()
        session.forward(ForwardRequest(step=0, microbatch=number, hidden=hidden)).result(120)
        taken.append(1000 * (time.perf_counter() - begin))
    return taken


def measure(shape: Shape) -> dict[str, float]:
    """All figures; bytes in MiB, times in seconds, latencies in milliseconds."""
    with tempfile.TemporaryDirectory() as temporary:
        return _measure(shape, Path(temporary))


def _measure(shape: Shape, folder: Path) -> dict[str, float]:
    model, fields = folder / "model", asdict(shape)
    finish(start("make", str(model), fields))
    tls, before, begin = ServerTls.ephemeral(), resident_bytes(), time.perf_counter()
    with Pack(model, bottom_layers=shape.bottom, top_layers=shape.top) as pack:
        pack_seconds, pack_peak = time.perf_counter() - begin, resident_bytes(peak=True) - before
        client, trunk = split_model(tiny_model(layers=3, hidden_size=64), 1, 1)
        with TrunkServer(trunk, pack=pack, tls=tls, health=False) as server:
            at = server.address, tls.ca.decode(), pack.digest
            first = finish(start("fetch", *at, str(folder / "cache"), fields))
            again = finish(start("fetch", *at, str(folder / "cache"), fields))
            spec = session_spec(client, plan=None, trunk_adapters="frozen")
            with GrpcTransport(server.address, spec, tls=ClientTls(ca=tls.ca)) as session:
                round_trips(session, 0, 20)
                alone = round_trips(session, 20, shape.round_trips)
                beside, number = list[float](), 20 + shape.round_trips
                other = start("fetch", *at, str(folder / "other"), fields)
                while other.poll() is None:
                    found = round_trips(session, number, 10)
                    number += 10
                    if server.num_deliveries:
                        beside += found
                finish(other)
            server_peak = resident_bytes(peak=True) - before
    uncut = finish(start("whole", str(model)))
    return {
        "checkpoint_mib": size_of(model) / MIB,
        "download_mib": first["downloaded"] / MIB,
        "cache_mib": size_of(folder / "cache") / MIB,
        "silo_peak_fetching_mib": first["peak_fetching"] / MIB,
        "silo_peak_mib": first["peak"] / MIB,
        "whole_peak_mib": uncut["peak"] / MIB,
        "fetch_seconds": first["seconds"],
        "load_seconds": first["load_seconds"],
        "second_download_mib": again["downloaded"] / MIB,
        "verify_seconds": again["seconds"],
        "pack_seconds": pack_seconds,
        "pack_peak_mib": pack_peak / MIB,
        "server_peak_mib": server_peak / MIB,
        "round_trip_alone_ms": statistics.median(alone),
        "round_trip_beside_ms": statistics.median(beside or [0.0]),
        "round_trip_beside_p95_ms": sorted(beside or [0.0])[int(0.95 * len(beside))],
    }


ROLES = {"make": make, "fetch": fetch, "whole": whole}


def main() -> None:
    """Measure with the shape of the command line, or play a role in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parsed = vars(parser.parse_args())
    role = parsed.pop("role")
    if role:
        name, *arguments = json.loads(role)
        print(json.dumps(ROLES[name](*arguments)))
        return
    figures = {name: round(value, 2) for name, value in measure(Shape(**parsed)).items()}
    table = Table("what", "figure")
    for name, value in figures.items():
        table.add_row(name, f"{value:g}")
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
