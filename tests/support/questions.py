"""Requests that families of the default pool answer."""

import json
import urllib.error
import urllib.request

PIXELS = {"name": "pixel_values", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.5] * 784}
TEXT = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["It does not fit."]}


def post(server, family, tensor, **parameters):
    """Asks a family about a tensor; returns the status and the answer."""
    body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    url = f"http://{server.http_address}/v2/models/{family}/infer"
    try:
        with urllib.request.urlopen(url, body, timeout=300) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
