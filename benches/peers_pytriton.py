"""Serves the network with PyTriton until SIGTERM; in an environment of `peers.py`.

Triton's Python backend loads libpython by name. Where the system has another one of the same minor
version, its interpreter does not fit this one's standard library, so this one's comes first.
"""

import argparse
import os
import signal
import sys
import sysconfig

import numpy
from peers_session import open_session
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main():
    """Binds the network and serves it."""
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    paths = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, paths))
    session = open_session(options.model, options.threads)
    given, found = session.get_inputs()[0], session.get_outputs()[0]

    @batch
    def infer(**inputs):
        return session.run(None, inputs)

    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=options.http_port,
        grpc_address="127.0.0.1",
        grpc_port=options.grpc_port,
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            options.name,
            infer,
            inputs=[tensor(given)],
            outputs=[tensor(found)],
            config=ModelConfig(max_batch_size=options.max_batch, batcher=DynamicBatcher()),
        )
        triton.serve()


def tensor(value):
    """Describes a tensor without its batch."""
    return Tensor(name=value.name, dtype=numpy.float32, shape=tuple(value.shape[1:]))


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--name", required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-batch", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
