"""The clients that ask the servers, and the load that they make."""

import http.client
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import network
import numpy
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from peers_servers import FAMILY
from tritonclient.utils import InferenceServerException

# What a client says when its server does not answer as it should.
ERRORS = (OSError, http.client.HTTPException, InferenceServerException, ValueError)
# The share of the measured time for which clients ask before it.
LEAD = 0.25
TOLERANCE = 1e-4
ANSWER_SECONDS = 60


@dataclass
class Load:
    """What clients saw that each ask again as soon as they are answered."""

    p50_ms: float
    rate: float


class Raw:
    """Runs a session in this process."""

    def __init__(self, session, values):
        self.session, self.feeds = session, {network.INPUT: values}

    def ask(self):
        return self.session.run(None, self.feeds)[0]

    def read(self, answer):
        return answer

    def close(self):
        pass


class Triton:
    """Asks with `tritonclient`, which sends and receives bytes."""

    def __init__(self, module, port, server, values):
        self.output = server.output
        self.client = module.InferenceServerClient(f"127.0.0.1:{port}")
        self.inputs = [module.InferInput(server.input, values.shape, "FP32")]
        self.inputs[0].set_data_from_numpy(values)
        self.outputs = [module.InferRequestedOutput(server.output)]

    def ask(self):
        answer = self.client.infer(FAMILY, self.inputs, outputs=self.outputs)
        return answer.as_numpy(self.output)

    def read(self, answer):
        return answer

    def close(self):
        self.client.close()


class Json:
    """Sends JSON made before and keeps the answer as text, so that the server's work counts."""

    def __init__(self, server, values):
        self.connection = http.client.HTTPConnection(
            "127.0.0.1", server.http_port, timeout=ANSWER_SECONDS
        )
        tensor = {
            "name": server.input,
            "shape": values.shape,
            "datatype": "FP32",
            "data": values.ravel().tolist(),
        }
        self.body = json.dumps({"inputs": [tensor]}).encode()

    def ask(self):
        self.connection.request(
            "POST", f"/v2/models/{FAMILY}/infer", self.body, {"content-type": "application/json"}
        )
        response = self.connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise ValueError(f"{response.status} {answer[:200].decode(errors='replace')}")
        return answer

    def read(self, answer):
        return numpy.array(json.loads(answer)["outputs"][0]["data"], numpy.float32)

    def close(self):
        self.connection.close()


def ways(server):
    """Returns the ways of asking a server: each connects a client that sends some values."""
    over_http = lambda values: Triton(httpclient, server.http_port, server, values)
    over_grpc = lambda values: Triton(grpcclient, server.grpc_port, server, values)
    over_json = lambda values: Json(server, values)
    # MLServer takes no bytes over HTTP.
    binary = {} if server.name == "MLServer" else {"HTTP binary": over_http}
    as_json = {} if server.name == "PyTriton" else {"HTTP JSON": over_json}
    return binary | {"gRPC": over_grpc} | as_json


def measure(connect, examples, seconds):
    """Has one client per example, of values and the answer to them, ask for so many seconds.

    An answer that comes or is asked for outside of these seconds counts by its share within them.
    """
    start = time.perf_counter() + LEAD * seconds
    stop = start + seconds
    with ThreadPoolExecutor(len(examples)) as threads:
        clients = [threads.submit(ask_until, connect, example, stop) for example in examples]
    times, count = [], 0.0
    for begin, end in (answer for client in clients for answer in client.result()):
        if inside := max(0.0, min(end, stop) - max(begin, start)):
            times.append(end - begin)
            count += inside / (end - begin)
    return Load(statistics.median(times) * 1e3, count / seconds)


def ask_until(connect, example, stop):
    """Asks in a closed loop; returns when each request began and when its answer was there."""
    values, expected = example
    client = connect(values)
    try:
        found = []
        while not found or found[-1][1] < stop:
            begin = time.perf_counter()
            answer = client.ask()
            found.append((begin, time.perf_counter()))
        check(client.read(answer), expected)
    finally:
        client.close()
    return found


def check(answer, expected):
    """Checks that an answer is the raw session's."""
    worst = numpy.abs(numpy.ravel(answer) - numpy.ravel(expected)).max()
    if not worst <= TOLERANCE:
        raise ValueError(f"an answer differs by {worst}")
