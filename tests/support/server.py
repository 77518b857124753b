"""Starts servers, on ports of the system's choice, and stops them.

Environment: TESSERA_BINARY (the binary), TESSERA_CACHE (the folder of profiles).
"""

import atexit
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from support.metrics import Metrics
from support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("TESSERA_BINARY", ROOT / "target/release/tessera")).resolve()
CACHE = Path(os.environ.get("TESSERA_CACHE", ROOT / ".tessera/conformance-cache")).resolve()
# The first start measures every module of the pool.
READY_SECONDS = 1800
STOP_SECONDS = 60
REQUEST_SECONDS = 60
ADDRESS = re.compile(r"serving (HTTP|gRPC) address=127\.0\.0\.1:(\d+)")
READ_AGAIN = re.compile(r"were read again| as they were: | as it was: ")


def free_port():
    """Returns a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


class Server:
    """A running server over a pool. It is ready once it is made."""

    def __init__(self, pool, *options, binary=BINARY, tls=None, environment=None):
        """Starts the server; `tls` is the context of encrypted connections to it."""
        self.tls = tls
        self.num_files = ("--clients" in options) + (tls is not None)
        self.protocols = {"HTTP"} if "--no-grpc" in options else {"HTTP", "gRPC"}
        self.log, self.last_messages = tempfile.NamedTemporaryFile(), ""  # noqa: SIM115
        command = [binary, "serve", "--pool", Path(pool).resolve(), "--port", 0, "--grpc-port", 0]
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [str(part) for part in (*command, *options)],
            cwd=ROOT,
            stdout=self.log,
            stderr=self.log,
            # Colours would stand between the log's words.
            env=os.environ | {"NO_COLOR": "1"} | (environment or {}),
        )
        atexit.register(self.stop)
        try:
            self.wait_until_ready()
        except BaseException:
            self.process.kill()
            self.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def wait_until_ready(self):
        """Waits until the server listens and every family is served."""
        try:
            self.ports = eventually(self.find_ports, READY_SECONDS, pause=0.002)
            eventually(self.is_ready, READY_SECONDS, pause=0.002)
        except AssertionError as error:
            raise RuntimeError(f"the server is not ready:\n{self.messages()}") from error

    def find_ports(self):
        """Returns the ports by protocol; None until the server listens on all of them."""
        self.check_runs()
        found = {protocol: int(port) for protocol, port in ADDRESS.findall(self.messages())}
        return found if found.keys() >= self.protocols else None

    def is_ready(self):
        """Returns whether every family is served."""
        self.check_runs()
        try:
            return self.request("/v2/health/ready")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def check_runs(self):
        """Fails if the server has ended."""
        if (code := self.process.poll()) is not None:
            raise RuntimeError(f"the server has ended with {code}:\n{self.messages()}")

    def stop(self):
        """Stops the server, which must end by itself and well unless it was killed.

        Does nothing if that is done.
        """
        atexit.unregister(self.stop)
        if self.log.closed:
            return
        self.process.terminate()
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"the server does not stop:\n{self.messages()}") from error
        finally:
            self.last_messages = self.messages()
            self.log.close()
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the server ended with {code}:\n{self.last_messages}")

    def reload(self):
        """Has the server read its files again, and waits until it has, well or not."""
        # It says so of its clients and of its certificate, where it has them.
        num_said = len(READ_AGAIN.findall(self.messages())) + self.num_files
        self.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(READ_AGAIN.findall(self.messages())) >= num_said)

    def messages(self):
        """Returns what the server has logged."""
        if self.log.closed:
            return self.last_messages
        return Path(self.log.name).read_text(errors="replace")

    def request(self, path):
        """Returns the status and the text of what lies at `path`."""
        if self.tls:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self.http_address, timeout=REQUEST_SECONDS, context=self.tls
            )
        else:
            connection = http.client.HTTPConnection(self.http_address, timeout=REQUEST_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metrics(self):
        """Returns what the server counts now."""
        status, text = self.request("/metrics")
        if status != 200:
            raise RuntimeError(f"no metrics: {status} {text}")
        return Metrics(text)

    def metric(self, name, **labels):
        """Returns the sum of a metric over the samples that have these labels."""
        return self.metrics().total(name, **labels)

    def wait_until_loaded(self):
        """Waits until no modules have been loaded ahead of their use for a second."""
        known, since = None, time.monotonic()
        while time.monotonic() - since < 1:
            num_loaded = self.metric("tessera_runtime_resident_modules")
            if num_loaded != known:
                known, since = num_loaded, time.monotonic()
            time.sleep(0.1)

    def memory_bytes(self, kind="VmRSS"):
        """Returns the bytes that the process holds; the most that it ever held is `VmHWM`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{kind}:\s+(\d+) kB", status, re.M)[1]) * 1024

    @property
    def http_port(self):
        """Port of HTTP."""
        return self.ports["HTTP"]

    @property
    def grpc_port(self):
        """Port of gRPC."""
        return self.ports["gRPC"]

    @property
    def http_address(self):
        """Address of HTTP."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc_address(self):
        """Address of gRPC."""
        return f"127.0.0.1:{self.grpc_port}"


class Served(Server):
    """A running server over a pool of its own: links to families, or copies of them."""

    def __init__(self, families, *options, copied=False, **process):
        """Starts the server over `families`, folders by name; `process` is for `Server`."""
        self.folder = tempfile.TemporaryDirectory()
        self.pool = Path(self.folder.name) / "pool"
        self.pool.mkdir()
        for name, folder in families.items():
            if copied:
                shutil.copytree(folder, self.pool / name)
            else:
                (self.pool / name).symlink_to(folder)
        super().__init__(self.pool, *options, **process)

    def stop(self):
        """Stops the server and removes its pool."""
        try:
            super().stop()
        finally:
            self.folder.cleanup()
