"""Runs of the ready-made apps in processes of their own, which a test may kill at any moment.

As a script it imports everything once, and forks a run for every line of standard input, JSON of
the silos' state folder and the run config: a killed run costs no imports. It answers with the run's
process id, and with its exit status when it has ended. Run id, node ids and their order are new for
every run, as Flower's are.
"""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from started_processes import python_path

SILOS = 3


def _serve():
    import in_process_grid
    import torch
    from flwr.app import Context, RecordDict

    import flower_split.apps.server_run
    import flower_split.client
    from flower_split.apps.client_app import app as client_app
    from flower_split.apps.server_app import app as server_app

    assert flower_split.apps.server_run and flower_split.client
    while line := sys.stdin.readline():
        state_home, values = json.loads(line)
        child = os.fork()
        if child == 0:
            os.environ["XDG_STATE_HOME"] = state_home
            torch.set_num_threads(1)
            in_process_grid.RUN_ID = secrets.randbits(62)
            ids = [(1 << 62) + secrets.randbits(61) for _ in range(SILOS)]
            grid = in_process_grid.InProcessGrid(client_app, SILOS, run_config=values, node_ids=ids)
            random.SystemRandom().shuffle(grid.order)
            context = Context(in_process_grid.RUN_ID, 1, {}, RecordDict(), values)
            status = 1
            try:
                server_app(grid, context)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)
        # Not before the test asks: until then the process id is nobody else's, and safe to kill.
        sys.stdin.readline()
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


class Runner:
    """A context manager that runs run configs, one after another."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "CUDA_VISIBLE_DEVICES": "",  # equality to the bit is the CPU's
                "PYTHONPATH": python_path(Path(__file__).parent),
                "GRPC_ENABLE_FORK_SUPPORT": "0",
            },
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.terminate()
        self._process.wait()

    def run(self, values, *, state_home, kill_when=None):
        """Whether a run came to its end; otherwise it was killed as `kill_when()` became true.

        A run that fails of itself is an error. Silos keep their state below `state_home`.
        """
        self._process.stdin.write(json.dumps([str(state_home), values]) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        while kill_when is not None and not kill_when():
            if _has_ended(child):
                break
            time.sleep(0.001)
        if kill_when is not None:
            os.kill(child, signal.SIGKILL)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        assert status in (0, -signal.SIGKILL), "the run failed of itself; its log is above"
        return status == 0


def after(seconds):
    """For `kill_when`: so long after now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def _has_ended(process):
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


if __name__ == "__main__":
    _serve()
