"""The reader of ModuleFormer (MoLM), which no library has: references are its formulas."""

import copy

import moe_cases
from moe_moduleformer import ModuleFormer, write_moduleformer
from sweep_changes import COMMON, CONFIG, Space
from sweep_reference import Reference, Unreadable, draw_tokens, write_checkpoint

VALUES = {
    "activation_function": ["gelu", "relu"],
    "gate_type": ["gmm"],
    "layer_norm_epsilon": [0.3],
    "vocab_size": [60],
    "n_embd": [30],
    "n_layer": [1, 3],
    "n_head": [1, 2, 4],
    "att_hidden": [12, 15, 16],
    "k_att": [1, 3, 5, 9],
    "k_mlp": [1, 3, 9],
}
ADDED = {
    **COMMON,
    "aux_loss_type": ["mi"],
    "aux_loss_weight": [0.1],
    "att_func": ["stickbreaking", "softmax"],
    "attn_pdrop": [0.1],
    "embd_pdrop": [0.1],
    "local_size": [1, 2],
    "moe_pdrop": [0.1],
    "moe_type": ["moe"],
    "pre_norm": [True, False],
    "resid_pdrop": [0.1],
    "sample_topk": [0, 1],
    "universal": [False, True],
}


class Formulas:
    """A reader of ModuleFormer's checkpoints."""

    kind = "logits"

    def __init__(self):
        self.case = moe_cases.MODULEFORMER
        self.space = Space({CONFIG: self.case.config}, VALUES, ADDED)

    def write(self, folder, files, base):
        """Writes a checkpoint of the configuration; returns what the formulas compute with it.

        With `base`, the tensors are those of that folder.
        """
        raw = files[CONFIG]
        write_checkpoint(folder, raw, base, self.save)
        known = {"activation_function": "gelu_new", "gate_type": "mlp"}
        if any(raw.get(key) not in (None, value) for key, value in known.items()):
            raise Unreadable("the formulas have no such value")
        if raw.get("model_type") != "moduleformer":
            raise Unreadable("another architecture")
        ids, mask = (tensor.numpy() for tensor in draw_tokens())
        try:
            model = ModuleFormer(folder)
            # The original code has an epsilon of its own.
            model.config["layer_norm_epsilon"] = 1e-5
            if model.config.get("tie_word_embeddings"):
                model.weights["lm_head.weight"] = model.weights["transformer.wte.weight"]
            _, logits, _ = model(ids, mask)
        except Exception as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from error
        return Reference({"input_ids": ids, "attention_mask": mask}, logits, mask)

    def save(self, folder, raw):
        """Saves random tensors of the configuration."""
        folder.rmdir()
        try:
            write_moduleformer(folder, moe_cases.replace(self.case, config=copy.deepcopy(raw)))
        except Exception as error:  # Sizes may be missing, or of another type.
            folder.mkdir(exist_ok=True)
            raise Unreadable(f"{type(error).__name__}: {error}") from error


def readers():
    """Returns the reader by its name."""
    return {"moduleformer": Formulas()}
