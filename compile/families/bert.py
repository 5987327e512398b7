"""BERT and its look-alikes (MiniLM)."""

from __future__ import annotations

from compile.families.table import Family, Projection

BERT = Family(
    model_type="bert",
    encoder_class="BertModel",
    encoder_options=(("add_pooling_layer", False),),
    embeddings="embeddings",
    layers="encoder.layer",
    layer_count_key="num_hidden_layers",
    hidden_size_key="hidden_size",
    heads_key="num_attention_heads",
    position_limit_key="max_position_embeddings",
    position_offset=0,
    token_types=True,
    heads=(
        Projection("attention.self.query", 0),
        Projection("attention.self.key", 0),
        Projection("attention.self.value", 0),
        Projection("attention.output.dense", 1),
    ),
    units=(Projection("intermediate.dense", 0), Projection("output.dense", 1)),
    dropout_keys=("hidden_dropout_prob", "attention_probs_dropout_prob"),
)
