"""The servers that are compared, each a process group that runs only while it is measured."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import network
import peers_setup
import protocols
import serving
from support import free_port

MAX_BATCH = 8
WORKERS = "Tessera, a worker a thread"
FAMILY = protocols.FAMILY
# Tessera's first start measures the family's modules.
READY_SECONDS, STOP_SECONDS = 600, 60
TICKS = os.sysconf("SC_CLK_TCK")
# Ends a group when the pipe closes, however this process ends: 18 wakes, 15 asks, 9 kills.
WATCH = """
import os, sys, time
group = int(sys.argv[1])
sys.stdin.read()
os.killpg(group, 18)
os.kill(group, 15)
time.sleep(15)
os.killpg(group, 9)
"""


class Server:
    """A server on ports of its own, paused unless awake."""

    def __init__(self, name, tensors, folder):
        self.name, self.folder = name, Path(folder) / name
        self.input, self.output = tensors
        self.http_port, self.grpc_port = free_port(), free_port()
        self.folder.mkdir()
        self.paused_seconds, self.seconds_before = 0.0, None
        self.process = self.watch = None

    def start(self, command, **environment):
        """Starts the process group, and waits until the network can be asked."""
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=serving.ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                env=os.environ | environment,
            )
        self.watch = subprocess.Popen(
            [sys.executable, "-S", "-c", WATCH, str(self.process.pid)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def wait_until_ready(self):
        url = f"http://127.0.0.1:{self.http_port}/v2/models/{FAMILY}/ready"
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=5).close()
                return
            time.sleep(0.2)
        raise peers_setup.Unavailable(f"is not ready: {self.last_words()}")

    def last_words(self):
        """Returns the last line of the log."""
        return peers_setup.last_line((self.folder / "log").read_text(errors="replace"))

    @contextlib.contextmanager
    def awake(self):
        """Lets the server run, and pauses it afterwards."""
        self.resume()
        try:
            yield
        finally:
            self.pause()

    def pause(self):
        """Stops every process of the group where it is, and notes the time they have taken."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 5
        while any(state not in "TtZX" for state, _ in self.members()):
            if time.monotonic() > deadline:
                raise peers_setup.Unavailable("does not pause")
            time.sleep(0.005)
        self.seconds_before = self.processor_seconds()

    def resume(self):
        """Lets the group run again, and adds up what it took while it was paused."""
        if self.seconds_before is not None:
            self.paused_seconds += self.processor_seconds() - self.seconds_before
            self.seconds_before = None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGCONT)

    def members(self):
        """Returns the state and the processor's ticks of each process of the group."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.process.pid:
                    found.append((fields[0], int(fields[11]) + int(fields[12])))
        return found

    def processor_seconds(self):
        """Returns the processor's time that the group has taken."""
        return sum(ticks for _, ticks in self.members()) / TICKS

    def stop(self):
        """Ends the group, by SIGTERM where that is enough."""
        if self.process is None:
            return
        self.resume()
        self.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        # The others may outlive the first: they remove what they have in shared memory.
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.watch.kill()
        self.watch.communicate()
        self.process = None

    def is_alive(self):
        """Tells whether any process of the group runs."""
        return any(state not in "ZX" for state, _ in self.members())


def start_tessera(options, folder):
    """Starts Tessera over the imported family."""
    if not options.binary.is_file():
        raise peers_setup.Unavailable(f"{options.binary} is not there; run `make build`")
    options.pool = protocols.prepare(options)
    server = Server("Tessera", ("pixel_values", "logits"), folder)
    server.start(
        [
            *serving.command_of(options, "serve"),
            "--port",
            server.http_port,
            "--grpc-port",
            server.grpc_port,
        ]
    )
    return server


def start_tessera_workers(options, folder):
    """Starts Tessera with as many workers as there are threads, each with one."""
    options.pool = protocols.prepare(options)
    server = Server(WORKERS, ("pixel_values", "logits"), folder)
    command = serving.command_of(argparse.Namespace(**vars(options) | {"threads": 1}), "serve")
    server.start(
        [
            *command,
            "--workers",
            options.threads,
            "--port",
            server.http_port,
            "--grpc-port",
            server.grpc_port,
        ]
    )
    return server


def start_pytriton(options, folder):
    """Starts PyTriton with dynamic batching."""
    programs = peers_setup.environment("pytriton")
    server = Server("PyTriton", (network.INPUT, network.OUTPUT), folder)
    server.start(
        [
            programs / "python",
            serving.ROOT / "benches/peers_pytriton.py",
            options.model,
            "--name",
            FAMILY,
            "--http-port",
            server.http_port,
            "--grpc-port",
            server.grpc_port,
            "--threads",
            options.threads,
            "--max-batch",
            MAX_BATCH,
        ],
        PYTRITON_HOME=str(server.folder / "home"),
    )
    return server


def start_mlserver(options, folder):
    """Starts MLServer with adaptive batching, in one process, which is faster here than two."""
    programs = peers_setup.environment("mlserver")
    server = Server("MLServer", (network.INPUT, network.OUTPUT), folder)
    settings = {
        "host": "127.0.0.1",
        "http_port": server.http_port,
        "grpc_port": server.grpc_port,
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "debug": False,
    }
    model = {
        "name": FAMILY,
        "implementation": "peers_mlserver.Network",
        "max_batch_size": MAX_BATCH,
        "max_batch_time": 0.001,
        "parameters": {"uri": str(options.model), "extra": {"threads": options.threads}},
    }
    (server.folder / "settings.json").write_text(json.dumps(settings))
    (server.folder / "model-settings.json").write_text(json.dumps(model))
    server.start(
        [programs / "mlserver", "start", server.folder], PYTHONPATH=str(serving.ROOT / "benches")
    )
    return server


STARTS = {
    "Tessera": start_tessera,
    WORKERS: start_tessera_workers,
    "PyTriton": start_pytriton,
    "MLServer": start_mlserver,
}
