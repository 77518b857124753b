"""Embeds two texts within a latency budget over HTTP, with Python's standard library alone.

make serve                                  # in another terminal
python3 examples/http_infer.py [http://127.0.0.1:8000]
"""

import json
import sys
import urllib.error
import urllib.request

SERVER = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"


def post(path: str, body: dict) -> dict:
    """Returns the answer to a POST of JSON, also where it is an error."""
    request = urllib.request.Request(
        SERVER + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)


def main() -> None:
    """Asks for a good answer, for a fast one, and for one that no plan can give."""
    texts = ["the mail servers answer", "the servers answer mail"]
    inputs = [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}]
    for budget_ms in (200, 20, 0.01):
        body = {"inputs": inputs, "parameters": {"latency_budget_ms": budget_ms}}
        answer = post("/v2/models/text/infer", body)
        if "error" in answer:
            print(f"{budget_ms} ms: {answer['error']}")
            continue
        report, output = answer["parameters"], answer["outputs"][0]
        took = f"{output['shape']} in {report['latency_ms']:.1f} ms"
        print(f"{budget_ms} ms: plan {report['plan']}, {took}")


if __name__ == "__main__":
    main()
