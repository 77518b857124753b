"""Embeds a text over gRPC with Triton's client; the call's deadline is the latency budget.

pip install 'tritonclient[grpc]'
python3 examples/grpc_infer.py [127.0.0.1:8001]
"""

import sys

import numpy
import tritonclient.grpc as triton

SERVER = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"


def main() -> None:
    """Sends one text and prints the plan that answered it."""
    client = triton.InferenceServerClient(SERVER)
    texts = numpy.array([b"the mail servers answer"], dtype=object)
    text = triton.InferInput("text", [1], "BYTES")
    text.set_data_from_numpy(texts)
    answer = client.infer("text", [text], client_timeout=0.5)
    response = answer.get_response()
    plan = response.parameters["plan"].string_param
    print(f"plan {plan}, shape {list(answer.as_numpy(response.outputs[0].name).shape)}")


if __name__ == "__main__":
    main()
