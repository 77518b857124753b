"""MLServer's runtime for the network: `mlserver start` loads it in an environment of its own."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from peers_session import open_session


class Network(MLModel):
    """The network in ONNX Runtime."""

    async def load(self):
        """Opens the session."""
        parameters = self.settings.parameters
        self.session = open_session(parameters.uri, parameters.extra["threads"])
        return True

    async def predict(self, payload):
        """Runs a batch."""
        feeds = {
            tensor.name: self.decode(tensor, default_codec=NumpyCodec) for tensor in payload.inputs
        }
        outputs = zip(self.session.get_outputs(), self.session.run(None, feeds), strict=False)
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(output.name, values) for output, values in outputs],
        )
