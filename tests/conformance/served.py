"""Starts the server for the tests, once, and stops it at the end."""

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("TESSERA_BINARY", ROOT / "target/release/tessera"))
READY_SECONDS = 240


FAMILIES = {"text": ROOT / "models" / "text", "fashion": ROOT / "tests" / "pool" / "fashion"}


class Served:
    """A running server over a pool of the text family and the small image family, or of some, or
    of `others`: folders by name.
    """

    def __init__(
        self,
        *options,
        families=tuple(FAMILIES),
        others=None,
        copied=False,
        tls=None,
        environment=None,
    ):
        self.folder = tempfile.TemporaryDirectory()
        self.pool = Path(self.folder.name) / "pool"
        self.pool.mkdir()
        for name, folder in (others or {}).items():
            (self.pool / name).symlink_to(folder)
        for name in () if others else families:
            if copied:
                shutil.copytree(FAMILIES[name], self.pool / name)
            else:
                (self.pool / name).symlink_to(FAMILIES[name])
        self.http, self.grpc = free_ports(2)
        cache = os.environ.get("TESSERA_CACHE", str(ROOT / ".tessera" / "conformance-cache"))
        self.log = open(Path(self.folder.name) / "log", "w+")  # noqa: SIM115
        command = [
            str(BINARY),
            "serve",
            "--pool",
            str(self.pool),
            "--port",
            str(self.http),
            "--grpc-port",
            str(self.grpc),
            "--cache",
            cache,
            *options,
        ]
        self.tls = tls
        self.process = subprocess.Popen(
            command, stderr=self.log, cwd=ROOT, env=os.environ | (environment or {})
        )
        atexit.register(self.stop)
        self.wait()

    def wait(self):
        """Waits until the server is ready."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                scheme = "https" if self.tls else "http"
                url = f"{scheme}://{self.http_address}/v2/health/ready"
                urllib.request.urlopen(url, timeout=5, context=self.tls).close()
                return
            except OSError:
                time.sleep(0.2)
        self.log.seek(0)
        raise RuntimeError(f"the server is not ready:\n{self.log.read()}")

    def stop(self):
        """Stops the server, which must end by itself."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        self.log.close()
        self.folder.cleanup()

    def reload(self):
        """Has the server read its files again, and waits until it has."""
        before = self.messages().count("were read again")
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while self.messages().count("were read again") == before and time.monotonic() < deadline:
            time.sleep(0.02)

    def messages(self):
        """Returns what the server has logged."""
        return Path(self.log.name).read_text()

    @property
    def http_address(self):
        """Where HTTP is served."""
        return f"127.0.0.1:{self.http}"

    @property
    def grpc_address(self):
        """Where gRPC is served."""
        return f"127.0.0.1:{self.grpc}"


def post(server, family, tensor, parameters):
    """Asks a family about a tensor; returns the status and the answer."""
    body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    url = f"http://{server.http_address}/v2/models/{family}/infer"
    try:
        with urllib.request.urlopen(url, body, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def free_ports(count):
    """Returns ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


_served = None


def served():
    """Returns the one server of this run."""
    global _served
    _served = _served or Served()
    return _served
