"""Parties: the benchmark's processes, as their parent sees them."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from throughput.clock import Times
from throughput.machine import OthersMeter
from throughput.shapes import Shape, random_model

SECONDS = 20.0
"""For a process to end by itself."""
CORES = 2
"""That split and unsplit model share."""


class Party:
    """A process in a role of `party.py`, for the time of a `with` block.

    Args:
        role: `trunk`, `silo` or `whole`.
        checkpoint: Folder of the uncut model.
        shape: Its shape and the work's.
        threads: Of torch.
        keep: Keep freed memory, as the ready-made apps do.

    Raises:
        RuntimeError: the process ended; its standard error says why.
    """

    def __init__(
        self,
        role: str,
        checkpoint: Path,
        shape: Shape,
        *,
        threads: int = 1,
        keep: bool = True,
    ) -> None:
        self.role = role
        # Threads of libraries that torch does not set.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("party.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._say(
            role=role,
            checkpoint=str(checkpoint),
            shape=asdict(shape),
            threads=threads,
            keep=keep,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """The answer of a method of its role."""
        return self._say(call=method, **arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=SECONDS)
        self._process.kill()
        self._process.communicate()

    def _say(self, **line: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
            said = self._process.stdout.readline()
        except BrokenPipeError:
            said = ""
        if not said:
            raise RuntimeError(f"the {self.role} process of the benchmark ended; see above")
        answer: dict[str, Any] = json.loads(said)
        return answer


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step as it was measured; the mean of several where several were made."""

    seconds: float
    last: float
    """Seconds of the last one."""
    depth: int
    """Microbatches in flight in the last one."""
    waited: float = 0.0
    """Of these, in which the silo had nothing to do but to wait for the trunk."""
    work: Mapping[str, float]
    """Processor seconds of one thread by kind of work, as `silo forward`."""
    others: float
    """Share of the cores that other processes used."""


class Bench:
    """A trunk, a silo and two processes with the uncut model, on the same two cores.

    One of the two keeps freed memory as trunk and silo do; the other one is as torch comes.

    Args:
        shape: Of the model and of a step.
        checkpoint: Folder of a random model of that shape.
        stack: Ends the processes.
    """

    def __init__(self, shape: Shape, checkpoint: Path, stack: ExitStack) -> None:
        self.shape = shape
        self.checkpoint = checkpoint
        self.trunk = stack.enter_context(Party("trunk", checkpoint, shape))
        self.silo = stack.enter_context(Party("silo", checkpoint, shape))
        self.whole, self._whole_keeping = (
            stack.enter_context(Party("whole", checkpoint, shape, threads=CORES, keep=keep))
            for keep in (False, True)
        )
        parties = (self.trunk, self.silo, self.whole, self._whole_keeping)
        self._meter = OthersMeter([os.getpid(), *(party.pid for party in parties)])
        self.connect()

    def connect(self, codec: str = "fp32") -> None:
        """A new session of the silo at the trunk."""
        self.silo.call("connect", codec=codec, **self.trunk.call("address"))

    def unsplit(self, steps: int = 1, *, keep: bool = False) -> Step:
        """Optimizer steps of the uncut model, in the process that keeps freed memory or not."""
        whole = self._whole_keeping if keep else self.whole
        return self._step(whole.call, [], depth=1, steps=steps)

    def split(self, depth: int, steps: int = 1) -> Step:
        """Optimizer steps of the split one, with `depth` microbatches in flight."""
        return self._step(self.silo.call, [self.silo, self.trunk], depth=depth, steps=steps)

    def _step(self, call: Any, parties: list[Party], *, depth: int, steps: int) -> Step:
        for party in parties:
            party.call("read")
        self._meter.lap()
        found = call("train", depth=depth, steps=steps)
        others = self._meter.lap()
        work: dict[str, float] = {}
        waited = found["waited"]
        for party in parties:
            read = party.call("read")
            times: Times = read["times"]
            work |= {f"{party.role} {kind}": used / steps for kind, (_, used) in times.items()}
            work[f"{party.role} process"] = read["processor"] / steps
            if party is self.silo:
                wall, used = times["step"]
                waited += wall - used  # the silo's step begins with the trunk's
        return Step(
            seconds=sum(found["seconds"]) / steps,
            last=found["seconds"][-1],
            depth=found["depth"],
            waited=waited / steps,
            work=work,
            others=others,
        )


@contextmanager
def open_bench(shape: Shape) -> Iterator[Bench]:
    """The processes, each with its part of one random model, on two cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        random_model(shape).save_pretrained(folder)
        yield Bench(shape, Path(folder), stack)
