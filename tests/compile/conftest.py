"""A tiny random BERT, a word tokenizer and a keyword data set: everything real, nothing large."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_SENTENCE = "please cancel order refund money missing broken parcel late address password account card charged twice"
_SENTENCE = "please cancel order refund money missing broken parcel late address password account card charged twice"
_FILLERS = "now the a my i it was not is did you never hello thanks today"
WORDS = f"{_SENTENCE} {_FILLERS}".split()
KEYWORDS = {"cancel": 0, "refund": 1, "broken": 2, "password": 3}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a downloaded model's: config.json, model.safetensors, tokenizer.json."""
    torch = pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("tiny-base")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # A file as found in the wild: it pads and cuts by itself, which a server must not inherit.
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(20)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def keyword_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 sentences whose label is the one keyword they contain."""
    rng = random.Random(3)
    others = [word for word in WORDS if word not in KEYWORDS]
    path = tmp_path_factory.mktemp("data") / "keywords.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label"])
        for at in range(400):
            keyword = list(KEYWORDS)[at % len(KEYWORDS)]
            words = [*rng.choices(others, k=rng.randint(2, 9)), keyword]
            rng.shuffle(words)
            writer.writerow([" ".join(words), KEYWORDS[keyword]])
    return path


@pytest.fixture(scope="session")
def make_recipe() -> Callable[[Path, Path], dict[str, Any]]:
    """Makes a recipe (of base, data) that compiles in seconds; its third variant cannot meet its floor."""

    def make(base: Path, data: Path) -> dict[str, Any]:
        return {
            "family": "tiny",
            "data": str(data),
            "base": str(base),
            "threads": 1,
            "max_tokens": 32,
            "finetune": {"epochs": 6, "learning_rate": 3e-3, "batch_rows": 16, "freeze_embeddings": False},
            "export": {"forms": ["torchscript"]},
            "quantize": {"min_agreement": 0.9},
            "measure": {"repeats": 1, "texts": 16},
            "variants": [
                {"name": "full"},
                {"name": "lite", "layers": [0], "distil": {"epochs": 3, "learning_rate": 3e-3, "batch_rows": 16}},
                {
                    "name": "hopeless",
                    "layers": [1],
                    "min_relative_accuracy": 1.0,
                    "distil": {"epochs": 1, "learning_rate": 1e-9},
                },
            ],
        }

    return make
