"""The ONNX Runtime session that the peers serve, and that the raw loop runs."""

import onnxruntime


def open_session(model, threads):
    """Opens the network with as many threads within an operator."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(model), settings, ["CPUExecutionProvider"])
