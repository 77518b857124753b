"""Sends one small bomb of each kind to a server whose address space is bounded.

Bombs are few bytes that ask for much memory: compressed, nested, repeated or announced. Requests
come over HTTP and gRPC, files lie in families that are loaded while another one is served. The
server refuses each, holds no more than 256 MiB beyond what it held, and answers a good request.
"""

import gzip
import hashlib
import http.client
import json
import resource
import shutil
import socket
import struct
import sys
import tempfile
import zlib
from pathlib import Path

from case import CACHE, ROOT, Server, Wrong, ask, main

sys.path.insert(0, str(ROOT / "tests/conformance"))
import frames

ROOM = 1 << 30
MOST = 256 << 20
PIXELS = {"name": "pixel_values", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.5] * 784}
MANIFEST = """format = 1
name = "NAME"
task = "sentence-embedding"
description = "Small."
license = "Apache-2.0"
reference = "a"
[limits]
max_tokens = 16
[output]
name = "embedding"
width = 24
[quality]
metric = "recall@10"
file = "quality.json"
[anchors.a]
folder = ""
tokenizer = "tokenizer.json"
[anchors.a.sha256]
"""
# Without a body it would not be posted.
LOAD = {"parameters": {}}
FILES = ["config.json", "model.safetensors", "tokenizer.json"]


def family(pool, name, manifest=MANIFEST, **files):
    """Writes a small family with other contents of some of its files."""
    folder = pool / name
    folder.mkdir()
    source = ROOT / "tests/references/sentence/cls"
    digests = ""
    for file in FILES:
        key = file.split(".")[0]
        content = files.pop(key) if key in files else (source / file).read_bytes()
        (folder / file).write_bytes(content)
        digests += f'"{file}" = "{hashlib.sha256(content).hexdigest()}"\n'
    for file, content in files.items():
        (folder / f"{file}.json").write_bytes(content)
    (folder / "family.toml").write_text(manifest.replace("NAME", name) + digests)


def exported(pool, name, dims):
    """Writes a family of an ONNX file whose only weight says to have these extents."""

    def varint(value):
        out = []
        while value >= 128:
            out.append(value % 128 + 128)
            value //= 128
        return bytes([*out, value])

    def field(number, content):
        return varint(number << 3 | 2) + varint(len(content)) + content

    weight = b"".join(b"\x08" + varint(dim) for dim in dims) + b"\x10\x01"
    weight += field(8, b"w") + field(9, bytes(16))
    graph = field(1, field(1, b"w") + field(1, b"input_ids") + field(2, b"y") + field(4, b"Gather"))
    shape = field(1, field(2, b"batch")) + field(1, field(2, b"tokens"))
    ids = field(1, b"input_ids") + field(2, field(1, b"\x08\x07" + field(2, shape)))
    graph += field(5, weight) + field(11, ids) + field(12, field(1, b"y"))
    content = b"\x08\x08" + field(7, graph) + field(8, b"\x10\x11")
    folder = pool / name
    folder.mkdir()
    (folder / "a.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    tokenizer = (ROOT / "tests/references/sentence/cls/tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(tokenizer)
    manifest = MANIFEST.replace('folder = ""\n', "")
    manifest = manifest.replace(
        "[anchors.a.sha256]",
        '[anchors.a.onnx]\nfile = "a.onnx"\nstem = "y"\nblocks = []\nwidth = 24\n'
        "[anchors.a.sha256]",
    )
    manifest += f'"a.onnx" = "{digest}"\n'
    manifest += f'"tokenizer.json" = "{hashlib.sha256(tokenizer).hexdigest()}"\n'
    (folder / "family.toml").write_text(manifest.replace("NAME", name))


def file_bombs(pool):
    """Writes families that are bombs; returns their names."""
    config = json.loads((ROOT / "tests/references/sentence/cls/config.json").read_text())
    large = lambda **keys: json.dumps(config | keys).encode()
    family(pool, "header", model=struct.pack("<Q", 1 << 60) + b"{}")
    family(pool, "tensors", model=struct.pack("<Q", 64) + b'{"a":{"dtype":"F32"'.ljust(64))
    shape = {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 2**62]}}
    head = json.dumps(shape).encode()
    family(pool, "shapes", model=struct.pack("<Q", len(head)) + head)
    family(pool, "layers", config=large(num_hidden_layers=10**12))
    family(pool, "widths", config=large(hidden_size=2**62, num_attention_heads=1))
    family(pool, "positions", config=large(max_position_embeddings=2**62))
    family(pool, "nested", tokenizer=b"[" * 10_000_000)
    words = ",".join(f'"w{number}":{number}' for number in range(200_000)).encode()
    start = b'{"version":"1.0","model":{"type":"WordLevel","unk_token":"a","vocab":{'
    family(pool, "words", tokenizer=start + words)
    entry = '[[maps]]\nfrom = "a.0"\nto = "a.{}"\nform = "tokens"\nfeatures = ["token"]\n'
    entries = "".join(entry.format(number) for number in range(100_000))
    digests = "[anchors.a.sha256]\n"
    family(pool, "entries", MANIFEST.replace(digests, entries + digests))
    keys = "".join(f"k{number} = 1\n" for number in range(1_000_000))
    family(pool, "keys", keys + MANIFEST)
    family(pool, "deep", ".".join("a" * 1_000_000) + " = 1\n" + MANIFEST)
    family(pool, "modules", modules=b"[" + b'{"type":"x.Transformer"},' * 200_000 + b"{}]")
    family(pool, "quality", quality=b'{"plans":{' + b'"a":1,' * 3_000_000 + b'"b":1}}')
    exported(pool, "dims", [2**62, 2**62])
    exported(pool, "rank", [2] * 1_000_000)
    folders = [path.name for path in pool.iterdir() if path.is_dir()]
    return sorted(set(folders) - {"fashion"})


def profile():
    """Returns a profile of another machine with a grid that says to have a billion cells."""
    knots = list(range(1, 31_624))
    grid = {"batches": knots, "tokens": knots, "values": []}
    module = {"latency_seconds": grid, "activation_bytes": grid}
    machine = {"processor": "x", "num_threads": 1, "spin": True, "runtime": ""}
    own = {"machine": machine, "calibration_seconds": 1, "modules": {"a": module}, "proven": []}
    return json.dumps({"machines": [own]})


def picture(width, height):
    """Returns a PNG that says to be of this size, and holds a megabyte of zeros in a kilobyte."""

    def chunk(kind, content):
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20), 9)
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(256 << 20), 9))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + text + chunk(b"IDAT", pixels) * 100 + chunk(b"IEND", b"")


def http_bombs():
    """Yields a path, a body and headers."""
    infer, packed = "/v2/models/fashion/infer", {"Content-Encoding": "gzip"}
    bomb = frames.bomb(1 << 30)
    yield infer, bomb, packed
    yield infer, gzip.compress(bomb), packed
    yield infer, zlib.compress(bytes(256 << 20), 9), {"Content-Encoding": "deflate"}
    yield infer, b"[" * (15 << 20), {}
    yield infer, gzip.compress(b'{"inputs":[{"data":[' + b"[1]," * (4 << 20)), packed
    yield infer, gzip.compress(b'{"inputs":[' + b"{}," * (5 << 20) + b"{}]}"), packed
    yield infer, gzip.compress(b'{"a":' * (3 << 20)), packed
    yield "/v1/embeddings", gzip.compress(b'{"input":[' + b"[1]," * (4 << 20) + b"1]}"), packed
    yield (
        "/v2/models/fashion/plan",
        gzip.compress(b'{"parameters":{' + b'"a":1,' * (2 << 20)),
        packed,
    )
    for image in [picture(60_000, 60_000), picture(2**31 - 1, 2**31 - 1), picture(4_000, 4_000)]:
        tensor: dict = {"name": "image", "shape": [1], "datatype": "BYTES"}
        tensor["parameters"] = {"binary_data_size": 4 + len(image)}
        head = json.dumps({"inputs": [tensor]}).encode()
        body = head + struct.pack("<I", len(image)) + image
        yield infer, body, {"Inference-Header-Content-Length": str(len(head))}
    frame = b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0"
    gif = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff" + frame * 100_000 + b";"
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": 4 + len(gif)}
    head = json.dumps({"inputs": [tensor]}).encode()
    body = head + struct.pack("<I", len(gif)) + gif
    yield infer, body, {"Inference-Header-Content-Length": str(len(head))}
    data = ["A" * (12 << 20)]
    yield infer, json.dumps({"inputs": [{**tensor, "parameters": {}, "data": data}]}).encode(), {}
    raw: dict = {"name": "image", "shape": [2**62], "datatype": "BYTES"}
    raw["parameters"] = {"binary_data_size": 2**62}
    head = json.dumps({"inputs": [raw]}).encode()
    yield infer, head, {"Inference-Header-Content-Length": str(len(head))}


def grpc_bombs():
    """Yields bytes for the port of gRPC."""
    packed = [("grpc-encoding", "gzip")]
    name = b"\x0a\x07fashion"
    for field in [0x22, 0x2A, 0x32, 0x3A]:
        content = gzip.compress(name + bytes([field, 0]) * (4 << 20), 9)
        yield frames.call(1, "ModelInfer", frames.message(content, 1), *packed)
    for number, element in [(1, b"\1"), (3, b"\1"), (6, bytes(4)), (7, bytes(8)), (8, None)]:
        many = b"\x42\0" * (4 << 20) if element is None else element * ((8 << 20) // len(element))
        contents = many if element is None else frames.integer(number << 3 | 2, 7) + varint(many)
        tensor = b"\x2a" + varint(contents)
        content = gzip.compress(name + b"\x2a" + varint(tensor), 9)
        yield frames.call(1, "ModelInfer", frames.message(content, 1), *packed)
    yield frames.call(1, "ModelInfer", frames.message(frames.bomb(1 << 30), 1), *packed)
    yield frames.call(1, "ModelInfer", frames.message(b"", 0, length=2**32 - 1))
    block = frames.literal("x", "y" * 4000, first=0x40) + bytes([0xBE]) * 12000
    head = frames.request_head("POST", "/x") + block
    yield frames.frame(frames.HEADERS, frames.END_HEADERS, 1, head[:16384])


def varint(content):
    """Returns bytes behind their length, as Protocol Buffers have them."""
    return frames.integer(len(content), 7) + content if len(content) < 127 else length(content)


def length(content):
    """Returns long bytes behind their length."""
    out, value = [], len(content)
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value]) + content


def post(server, path, body, headers):
    """Returns the status of a request, or None if the connection was closed."""
    connection = http.client.HTTPConnection(server.http_address, timeout=120)
    try:
        connection.request("POST", path, body, headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def send(server, sent):
    """Sends bytes to the port of gRPC and reads until something is said about them."""
    try:
        with socket.create_connection(("127.0.0.1", server.grpc_port), 30) as connection:
            connection.sendall(frames.PREFACE + frames.settings() + sent)
            received = b""
            while b"grpc-status" not in received and len(received) < 1000:
                part = connection.recv(1 << 16)
                if not part:
                    break
                received += part
                connection.settimeout(2)
    except OSError:
        pass


def check(server, what):
    """Checks that the server runs, answers, and has held a bounded amount of memory."""
    if server.process.poll() is not None:
        raise Wrong(f"{what}: the server has ended: {server.messages()[-500:]}")
    status, answer = ask(server, "/v2/models/fashion/infer", {"inputs": [PIXELS]})
    if status != 200:
        raise Wrong(f"{what}: then a good request gets {status} {answer}")


def bombs():
    """Sends everything."""
    with tempfile.TemporaryDirectory() as place:
        pool = Path(place) / "pool"
        pool.mkdir()
        shutil.copytree(ROOT / "tests/pool/fashion", pool / "fashion")
        server = Server(pool, "--cache", CACHE)
        try:
            return explode(server, pool)
        finally:
            server.stop()


def explode(server, pool):
    """Sends everything to a server that is then bounded."""
    check(server, "before")
    size, held = server.memory_bytes("VmSize"), server.memory_bytes("VmHWM")
    limits = (size + ROOM, size + ROOM)
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, limits)
    count = 0
    for index, (path, body, headers) in enumerate(http_bombs()):
        status = post(server, path, body, headers)
        check(server, f"HTTP bomb {index}")
        if status == 200:
            raise Wrong(f"HTTP bomb {index} is answered")
        count += 1
    for index, sent in enumerate(grpc_bombs()):
        send(server, sent)
        check(server, f"gRPC bomb {index}")
        count += 1
    most = server.memory_bytes("VmHWM") - held
    if most > MOST:
        raise Wrong(f"requests took {most >> 20} MiB")
    for name in file_bombs(pool):
        status, _ = ask(server, f"/v2/repository/models/{name}/load", LOAD)
        check(server, f"family {name}")
        if status == 200:
            raise Wrong(f"family {name} is loaded")
        count += 1
    (pool / "profile.json").write_text(profile())
    ask(server, "/v2/repository/models/fashion/load", LOAD)
    check(server, "profile")
    return f"{count + 1} bombs, at most {most >> 20} MiB more for a request"


if __name__ == "__main__":
    main(bombs)
