"""RoBERTa: BERT's layers; positions are counted from the padding token's number, pairs told apart by separators."""

from __future__ import annotations

from dataclasses import replace

from compile.families.bert import BERT

ROBERTA = replace(
    BERT, model_type="roberta", encoder_class="RobertaModel", positions_after_padding=True, token_types=False
)
