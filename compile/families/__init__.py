"""Model families as tables: where layers, heads and feed-forward units live, and along which axes."""

from __future__ import annotations

from compile.errors import BaseError
from compile.families.bert import BERT
from compile.families.distilbert import DISTILBERT
from compile.families.gpt2 import GPT2
from compile.families.opt import OPT
from compile.families.roberta import ROBERTA
from compile.families.t5 import T5
from compile.families.table import Family

FAMILIES: dict[str, Family] = {one.model_type: one for one in (BERT, DISTILBERT, ROBERTA, GPT2, OPT, T5)}


def family_of(model_type: str) -> Family:
    """The table of a transformers `model_type`; BaseError if there is none."""
    if model_type not in FAMILIES:
        raise BaseError("base", f"model type '{model_type}' is not supported", f"use one of {sorted(FAMILIES)}")
    return FAMILIES[model_type]
