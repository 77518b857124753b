"""ModuleFormer (MoLM), which transformers does not have, from its formulas in float64."""

import json
import math

import numpy
from moe_cases import draw
from safetensors.numpy import load_file, save_file


def write_moduleformer(folder, case):
    """Writes random weights under the names of MoLM's checkpoints."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(case.config, indent=2, sort_keys=True) + "\n")
    random = numpy.random.default_rng(case.seed)
    weights = {}
    for name, shape in moduleformer_shapes(case.config).items():
        fan_in = shape[-2] if name.endswith("experts.weight") else shape[-1]
        weights[name] = draw(random, name, shape, fan_in)
    # Buffers that the original class saves along; no reader needs them.
    context = case.config["block_size"] + case.config["history_length"]
    for layer in range(case.config["n_layer"]):
        attention = f"transformer.h.{layer}.attn"
        weights[f"{attention}.mask"] = numpy.tri(context, dtype=numpy.int8)
        weights[f"{attention}.cum_weight"] = numpy.tri(context, k=-1, dtype=numpy.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def moduleformer_shapes(config):
    """Returns the shapes of all parameters; those of experts are [expert, in, out]."""
    width, keys = config["n_embd"], config["att_hidden"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (config["vocab_size"], width)}
    for layer in range(config["n_layer"]):
        block = f"transformer.h.{layer}"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        shapes |= moduleformer_expert_shapes(
            f"{block}.attn.q_proj", config, config["n_att_experts"], keys
        )
        for name in ("k_proj", "v_proj"):
            shapes[f"{block}.attn.{name}.weight"] = (keys, width)
            shapes[f"{block}.attn.{name}.bias"] = (keys,)
        shapes |= moduleformer_expert_shapes(
            f"{block}.mlpf", config, config["n_mlp_experts"], config["ffd_hidden"]
        )
    return shapes | {
        "transformer.ln_f.weight": (width,),
        "transformer.ln_f.bias": (width,),
        "lm_head.weight": (config["vocab_size"], width),
    }


def moduleformer_expert_shapes(prefix, config, num_experts, inner):
    """Returns the shapes of a bank of experts and its router."""
    width, hidden = config["n_embd"], config["gating_size"]
    return {
        f"{prefix}.experts.weight": (num_experts, width, inner),
        f"{prefix}.output_experts.weight": (num_experts, inner, width),
        f"{prefix}.gate.w_gate.0.weight": (hidden, width),
        f"{prefix}.gate.w_gate.0.bias": (hidden,),
        f"{prefix}.gate.w_gate.3.weight": (num_experts, hidden),
    }


class ModuleFormer:
    """MoLM in float64: every expert runs, those not chosen have gate zero."""

    def __init__(self, folder):
        """Loads a checkpoint."""
        self.config = json.loads((folder / "config.json").read_text())
        stored = load_file(folder / "model.safetensors")
        self.weights = {name: tensor.astype(numpy.float64) for name, tensor in stored.items()}

    def __call__(self, ids, _mask):
        """Returns last_hidden_state, logits, and (probabilities, chosen) of every router.

        Padding is on the right and attention looks left only, so the mask changes nothing.
        """
        routers = []
        hidden = self.weights["transformer.wte.weight"][ids]
        for layer in range(self.config["n_layer"]):
            block = f"transformer.h.{layer}"
            normed = self.normalize(f"{block}.ln_1", hidden)
            hidden = hidden + self.attend(f"{block}.attn", normed, routers)
            normed = self.normalize(f"{block}.ln_2", hidden)
            hidden = hidden + self.feed(f"{block}.mlpf", normed, routers)
        hidden = self.normalize("transformer.ln_f", hidden)
        return hidden, hidden @ self.weights["lm_head.weight"].T, routers

    def normalize(self, name, x):
        """Applies a LayerNorm."""
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        scaled = centred / numpy.sqrt(variance + self.config["layer_norm_epsilon"])
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def project(self, name, x):
        """Applies a Linear with bias."""
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def gates(self, name, x, num_chosen, routers):
        """Returns the probabilities of the chosen experts, not renormalised, others zero."""
        hidden = gelu(self.project(f"{name}.gate.w_gate.0", x))
        scores = hidden @ self.weights[f"{name}.gate.w_gate.3.weight"].T
        powers = numpy.exp(scores - scores.max(-1, keepdims=True))
        probabilities = powers / powers.sum(-1, keepdims=True)
        routers.append((probabilities, num_chosen))
        least = -numpy.sort(-probabilities, -1)[..., num_chosen - 1 : num_chosen]
        return numpy.where(probabilities >= least, probabilities, 0)

    def feed(self, name, x, routers):
        """Runs the feed-forward experts."""
        gates = self.gates(name, x, self.config["k_mlp"], routers)
        inner = numpy.einsum("btd,edf->btef", x, self.weights[f"{name}.experts.weight"])
        outputs = self.weights[f"{name}.output_experts.weight"]
        return numpy.einsum("bte,btef,efd->btd", gates, gelu_new(inner), outputs, optimize=True)

    def attend(self, name, x, routers):
        """Runs stick-breaking attention, whose experts have queries and outputs of their own.

        # Shapes
        - queries: [rows, tokens, experts, heads, head width]
        - keys, values: [rows, tokens, heads, head width]
        """
        rows, tokens, _ = x.shape
        heads = self.config["n_head"]
        gates = self.gates(f"{name}.q_proj", x, self.config["k_att"], routers)
        queries = numpy.einsum("btd,eda->btea", x, self.weights[f"{name}.q_proj.experts.weight"])
        queries = queries.reshape(rows, tokens, gates.shape[-1], heads, -1)
        keys = self.project(f"{name}.k_proj", x).reshape(rows, tokens, heads, -1)
        values = self.project(f"{name}.v_proj", x).reshape(rows, tokens, heads, -1)
        scores = numpy.einsum("biehw,bjhw->behij", queries, keys) / math.sqrt(keys.shape[-1])
        mixed = numpy.einsum("behij,bjhw->biehw", break_stick(scores), values)
        mixed = mixed.reshape(rows, tokens, gates.shape[-1], -1)
        outputs = self.weights[f"{name}.q_proj.output_experts.weight"]
        return numpy.einsum("bte,btea,ead->btd", gates, mixed, outputs, optimize=True)


def break_stick(scores):
    """Returns a_ij = σ(l_ij) · exp(Σ_{m=j+1..i} log σ(−l_im)) for j ≤ i, else zero."""
    is_seen = numpy.tri(scores.shape[-1], dtype=bool)
    left = numpy.where(is_seen, -numpy.logaddexp(0, scores), 0)
    after = numpy.cumsum(left[..., ::-1], -1)[..., ::-1] - left
    return numpy.where(is_seen, numpy.exp(-numpy.logaddexp(0, -scores) + after), 0)


def gelu(x):
    """Applies the exact GELU, of the routers."""
    return 0.5 * x * (1 + numpy.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_new(x):
    """Applies the GELU by tanh, of the experts."""
    return 0.5 * x * (1 + numpy.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
