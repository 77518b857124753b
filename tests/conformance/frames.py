"""HTTP/2 by hand, right and wrong: frames, heads, calls of gRPC, and what an answer says."""

import gzip
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION = 9
ACK = END_STREAM = 1
END_HEADERS = 4
PADDED = 8
SERVICE = "/inference.GRPCInferenceService/"


def frame(kind, flags=0, stream=0, payload=b"", length=None):
    """Returns a frame, which may say another length than its payload has."""
    length = len(payload) if length is None else length
    return length.to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def settings(**values):
    """Returns the settings with these numbers, such as `_4=0` for windows of 0 bytes."""
    pairs = [struct.pack(">HI", int(name[1:]), value) for name, value in values.items()]
    return frame(SETTINGS, payload=b"".join(pairs))


def integer(value, prefix_bits, first=0):
    """Returns an integer of HPACK (RFC 7541, 5.1)."""
    most = 2**prefix_bits - 1
    if value < most:
        return bytes([first | value])
    out, value = [first | most], value - most
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def text(value):
    """Returns a string of HPACK."""
    value = value if isinstance(value, bytes) else value.encode()
    return integer(len(value), 7) + value


def literal(name, value, first=0):
    """Returns a field that is written out; 0x40 as `first` adds it to the table."""
    return bytes([first]) + text(name) + text(value)


def fields(*pairs):
    """Returns a block of written-out fields."""
    return b"".join(literal(*pair) for pair in pairs)


def request_head(method, path, *more):
    """Returns the block of a request's head."""
    pseudo = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x")]
    return fields(*pseudo, *more)


def request(stream, method, path, *more, body=b""):
    """Returns the frames of a request."""
    block = request_head(method, path, *more)
    end = 0 if body else END_STREAM
    head = frame(HEADERS, END_HEADERS | end, stream, block)
    parts = [body[start : start + 16384] for start in range(0, len(body), 16384)]
    data = [
        frame(DATA, END_STREAM if index == len(parts) - 1 else 0, stream, part)
        for index, part in enumerate(parts)
    ]
    return head + b"".join(data)


def message(content, packed=0, length=None):
    """Returns a message of gRPC, which may say another length than it has."""
    length = len(content) if length is None else length
    return struct.pack(">BI", packed, length) + content


def call(stream, name, body, *more):
    """Returns the frames of a gRPC call."""
    head = [("content-type", "application/grpc"), ("te", "trailers"), *more]
    return request(stream, "POST", SERVICE + name, *head, body=body)


def bomb(size):
    """Returns `size` zeros in gzip."""
    return gzip.compress(bytes(size), 9)
