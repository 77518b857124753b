#!/usr/bin/env python3
"""Writes small folders as sentence-transformers makes them, with what they compute.

Each goes to tests/references/sentence/NAME, with texts and their embeddings in expected.json.

  python3 tools/sentence_reference.py --out tests/references/sentence
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer, models
from transformers import BertConfig, BertModel, BertTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "mail", "server", "answer", "hello"]
TEXTS = ["hello", "the mail server", "answer the server hello mail answer the mail mail the"]
WIDTH = 24
MAX_TOKENS = 8


def main():
    """Writes every case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.manual_seed(0)
    tanh, identity = torch.nn.Tanh(), torch.nn.Identity()
    case(out / "cls", pooling("cls"))
    case(out / "last", pooling("lasttoken"), models.Normalize())
    case(out / "max", pooling("max"))
    dense = models.Dense(WIDTH, 16, activation_function=tanh)
    linear = models.Dense(16, 12, bias=False, activation_function=identity)
    case(out / "dense", pooling("mean"), dense, linear, models.Normalize())
    case(out / "prompt", pooling("mean"), prompts={"query": "answer the "})
    case(out / "dot", pooling("cls"), similarity="dot")


def pooling(mode):
    """Returns the module that makes one vector of the tokens."""
    return models.Pooling(WIDTH, pooling_mode=mode)


def case(folder, *modules, prompts=None, similarity=None):
    """Saves a model, and what it makes of the texts."""
    with tempfile.TemporaryDirectory() as place:
        sizes = {"num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
        config = BertConfig(
            hidden_size=WIDTH, vocab_size=len(WORDS), max_position_embeddings=16, **sizes
        )
        bert = BertModel(config, add_pooling_layer=False)
        shake(bert)
        bert.save_pretrained(place)
        vocabulary = Path(place) / "vocab.txt"
        vocabulary.write_text("\n".join(WORDS))
        BertTokenizerFast(str(vocabulary)).save_pretrained(place)
        first = models.Transformer(place, max_seq_length=MAX_TOKENS)
        name = next(iter(prompts)) if prompts else None
        model = SentenceTransformer(
            modules=[first, *modules],
            prompts=prompts,
            default_prompt_name=name,
            similarity_fn_name=similarity,
            device="cpu",
        )
        for module in modules:
            shake(module)
        shutil.rmtree(folder, ignore_errors=True)
        model.save(str(folder), create_model_card=False)

    def rows(name=None):
        found = model.encode(TEXTS, prompt_name=name, convert_to_numpy=True)
        return [[round(float(x), 8) for x in row] for row in found]

    expected = {"texts": TEXTS, "embeddings": rows()}
    if prompts:
        expected["named"] = {name: rows(name) for name in sorted(model.prompts)}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def shake(model):
    """Makes every parameter matter: initial values are too small, or all alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))


if __name__ == "__main__":
    main()
