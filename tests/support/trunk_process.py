"""`flower-split trunk serve` as a process of its own."""

import os
import socket
import subprocess
import sys

from federation import wait_for
from grpc import insecure_channel, secure_channel, ssl_channel_credentials
from grpc_health.v1 import health_pb2, health_pb2_grpc

CLI = [sys.executable, "-m", "flower_split.apps.cli", "trunk", "serve"]


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class TrunkProcess:
    """A process that can be killed and started again.

    Args:
        folder: The model's.
        log: What it writes.
        options: Of the command.
        devices: That hold the trunk.
        ca: Of its certificate; None without TLS.
    """

    def __init__(self, folder, log, *options, devices="cpu", ca=None):
        self._ca = ca
        place = "--devices" if "," in devices else "--device"
        self._ports = free_ports(4)
        data, control, health, metrics = map(str, self._ports)
        self._command = [
            *(*CLI, str(folder), place, devices, "--port", data),
            *("--control-port", control, "--health-port", health),
            *("--metrics", f"127.0.0.1:{metrics}"),
            *options,
        ]
        self.address, self._health, self.log = f"127.0.0.1:{control}", f"127.0.0.1:{health}", log
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        self.start()

    def start(self):
        with self.log.open("ab") as written:
            self.process = subprocess.Popen(
                self._command,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=written,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_for(self._serves, "the service serves", logs=self.log.read_text)
        except BaseException:  # or it would outlive the test
            self.kill()
            raise

    def _serves(self):
        assert self.process.poll() is None, self.log.read_text()
        trust = None if self._ca is None else ssl_channel_credentials(self._ca.read_bytes())
        with (
            insecure_channel(self._health) if trust is None else secure_channel(self._health, trust)
        ) as channel:
            request = health_pb2.HealthCheckRequest(service="flower_split.v1.Trunk")
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=2.0)
            except Exception:
                return False
            return answer.status == health_pb2.HealthCheckResponse.SERVING

    def kill(self):
        self.process.kill()
        self.process.wait(60.0)
