"""Readers of the folders that sentence-transformers saves, which read texts."""

import copy
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from sweep_changes import COMMON, Space
from sweep_reference import Reference, Unreadable, shake
from transformers import BertConfig, BertModel, BertTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "mail", "server", "answer", "hello"]
WORDS += ["Hello", "cafe", "café", "中", "##文", "中文"]
TEXTS = [
    "hello",
    "the Mail café server",
    "answer the server 中文 hello mail answer the mail mail the",
    "Hello [MASK] cafe",
]
WIDTH = 24
ACTIVATIONS = [
    f"torch.nn.modules.activation.{name}" for name in ("Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
]
POOLINGS = ["cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean"]
DENSE = "2_Dense/config.json"
POOLING = "1_Pooling/config.json"
FOLDER = "config_sentence_transformers.json"
TOKENIZER = "tokenizer_config.json"
TRANSFORMER = "sentence_bert_config.json"
VALUES = {
    "max_position_embeddings": [12],
    "hidden_act": ["relu", "gelu_new"],
    f"{POOLING}:pooling_mode": [*POOLINGS, ["mean"], ["cls", "mean"]],
    f"{POOLING}:embedding_dimension": [12],
    f"{DENSE}:in_features": [12],
    f"{DENSE}:out_features": [12, 24],
    f"{DENSE}:bias": [True, False],
    f"{DENSE}:activation_function": [*ACTIVATIONS, "torch.nn.modules.linear.Identity"],
    f"{DENSE}:module_input_name": ["token_embeddings"],
    f"{DENSE}:module_output_name": ["token_embeddings", "other"],
    f"{FOLDER}:prompts": [{}, {"query": "the "}],
    f"{FOLDER}:prompts.query": ["", "mail "],
    f"{FOLDER}:prompts.document": ["mail "],
    f"{FOLDER}:default_prompt_name": ["query", "document", "other"],
    f"{FOLDER}:similarity_fn_name": ["cosine", "dot", "euclidean", "manhattan", "maxsim"],
    f"{TOKENIZER}:model_max_length": [6, 10, 1000000000000000019884624838656],
    f"{TOKENIZER}:cls_token": ["[MASK]"],
    f"{TOKENIZER}:strip_accents": [True, False],
    f"{TOKENIZER}:tokenizer_class": ["BertTokenizerFast", "PreTrainedTokenizerFast"],
    f"{TRANSFORMER}:transformer_task": ["fill-mask", "text-generation"],
    f"{TRANSFORMER}:module_output_name": ["sentence_embedding"],
    f"{TRANSFORMER}:modality_config": [
        {"text": {"method": "forward", "method_output_name": "pooler_output"}}
    ],
}
ADDED = {
    **{key: COMMON[key] for key in ("position_embedding_type", "is_decoder", "made_up")},
    f"{POOLING}:word_embedding_dimension": [24],
    **{
        f"{POOLING}:pooling_mode_{name}": [True, False]
        for name in (
            *("cls_token", "lasttoken", "max_tokens", "mean_tokens"),
            *("mean_sqrt_len_tokens", "weightedmean_tokens"),
        )
    },
    f"{POOLING}:made_up": [3],
    f"{DENSE}:use_residual": [True, False],
    f"{DENSE}:init_weight": [None],
    f"{DENSE}:made_up": [3],
    f"{FOLDER}:truncate_dim": [4, None],
    f"{FOLDER}:prompts": [{"query": "the "}],
    f"{FOLDER}:made_up": [3],
    f"{TOKENIZER}:do_lower_case": [False, True],
    f"{TOKENIZER}:lowercase": [False, True],
    f"{TOKENIZER}:do_basic_tokenize": [True, False],
    f"{TOKENIZER}:never_split": [None, ["hello"]],
    f"{TOKENIZER}:padding_side": ["left", "right"],
    f"{TOKENIZER}:truncation_side": ["left", "right"],
    f"{TOKENIZER}:max_length": [4],
    f"{TOKENIZER}:max_len": [4],
    f"{TOKENIZER}:model_input_names": [["input_ids", "attention_mask"]],
    f"{TOKENIZER}:add_special_tokens": [False],
    f"{TOKENIZER}:pad_to_multiple_of": [4],
    f"{TOKENIZER}:stride": [1],
    f"{TOKENIZER}:truncation_strategy": ["longest_first"],
    f"{TOKENIZER}:clean_up_tokenization_spaces": [True],
    f"{TOKENIZER}:extra_special_tokens": [{}],
    f"{TOKENIZER}:additional_special_tokens": [["hello"]],
    f"{TRANSFORMER}:max_seq_length": [6, 10, None],
    f"{TRANSFORMER}:do_lower_case": [True, False],
    f"{TRANSFORMER}:made_up": [3],
    f"{TRANSFORMER}:unpad_inputs": [False, True],
    f"{TRANSFORMER}:query_length": [4],
    f"{TRANSFORMER}:document_length": [4],
    f"{TRANSFORMER}:query_expansion": [True],
    f"{TRANSFORMER}:processing_kwargs": [{"text": {"max_length": 4, "truncation": True}}, {}],
    f"{TRANSFORMER}:tokenizer_args": [{}],
    f"{TRANSFORMER}:model_args": [{}],
    "tokenizer.json:truncation": [
        {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        {"direction": "Left", "max_length": 6, "strategy": "LongestFirst", "stride": 0},
    ],
    "tokenizer.json:padding": [
        {
            "strategy": "BatchLongest",
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        }
    ],
}


class Sentence:
    """A reader of a folder with some modules."""

    kind = "texts"

    def __init__(self, modules, prompts=None, name=None, similarity=None):
        """`name` is that of the prompt before every text."""
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name) / "a"
        self.save(modules, {"prompts": prompts, "default_prompt_name": name}, similarity)
        files = {
            str(path.relative_to(self.folder)): json.loads(path.read_text())
            for path in sorted(self.folder.glob("**/*.json"))
        }
        tokenizer = files.pop("tokenizer.json")
        self.space = Space(files, VALUES, ADDED)
        # Only what is added is changed in it.
        self.others = {"tokenizer.json": tokenizer}

    def save(self, modules, prompts, similarity):
        """Saves the folder that is changed."""
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as place:
            sizes = {"num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
            places = {"vocab_size": len(WORDS), "max_position_embeddings": 16}
            bert = BertModel(BertConfig(hidden_size=WIDTH, **places, **sizes))
            shake(bert)
            bert.save_pretrained(place)
            vocabulary = Path(place) / "vocab.txt"
            vocabulary.write_text("\n".join(WORDS))
            BertTokenizerFast(str(vocabulary)).save_pretrained(place)
            first = Transformer(place, max_seq_length=8)
            for module in modules:
                shake(module)
            model = SentenceTransformer(
                modules=[first, *modules], device="cpu", similarity_fn_name=similarity, **prompts
            )
            model.save(str(self.folder), create_model_card=False)

    def write(self, folder, files, base):
        """Writes the folder with changed files; returns what the library computes with it.

        With `base`, all tensors are those of that folder.
        """
        shutil.copytree(base or self.folder, folder, dirs_exist_ok=True)
        if "tokenizer.json" in files:
            files["tokenizer.json"] = self.others["tokenizer.json"] | files["tokenizer.json"]
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content, indent=1))
        if DENSE in files and not base:
            write_dense(folder / "2_Dense", copy.deepcopy(files[DENSE]))
        kind = files[FOLDER].get("model_type", "SentenceTransformer")
        if kind != "SentenceTransformer":
            raise Unreadable("the library reads another folder, and makes this one of it")
        try:
            model = SentenceTransformer(
                str(folder),
                device="cpu",
                local_files_only=True,
                model_kwargs={"dtype": torch.float32},
            )
            length = model.max_seq_length
            found = model.encode(TEXTS, convert_to_numpy=True)
            if model.similarity_fn_name == "cosine":
                # What is compared by the angle is given with length 1; the library leaves it open.
                found = torch.nn.functional.normalize(torch.from_numpy(found)).numpy()
            return Reference({}, found, texts=TEXTS, max_tokens=min(length or 16, 16))
        except Exception as error:  # It fails in any way on values that it does not know.
            raise Unreadable(f"{type(error).__name__}: {error}") from error


def write_dense(folder, config):
    """Writes the tensors that a configuration of `Dense` tells of."""
    sizes = {key: config.get(key) for key in ("in_features", "out_features")}
    try:
        module = Dense(**sizes, bias=config.get("bias", True))
        module.use_residual = bool(config.get("use_residual"))
        if module.use_residual and sizes["in_features"] != sizes["out_features"]:
            module.residual = torch.nn.Linear(*sizes.values(), bias=False)
    except TypeError:
        return
    shake(module)
    save_file(module.state_dict(), folder / "model.safetensors")


def readers():
    """Returns the readers by name."""
    prompts = {"query": "answer the ", "document": ""}
    dense = [Pooling(WIDTH, "mean"), Dense(WIDTH, 16), Normalize()]
    return {
        "sentence": Sentence([Pooling(WIDTH, "cls")], prompts),
        "sentence-dense": Sentence(dense, prompts, similarity="dot"),
        "sentence-prompt": Sentence([Pooling(WIDTH, "mean")], prompts, "query", "dot"),
    }
