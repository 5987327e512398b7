"""BERT and its look-alikes (MiniLM)."""

from __future__ import annotations

from compile.families.table import Family, Projection

BERT = Family(
    model_type="bert",
    encoder_class="BertModel",
    encoder_options=(("add_pooling_layer", False),),
    embeddings=("embeddings",),
    layers="encoder.layer",
    layer_count_key="num_hidden_layers",
    hidden_size_key="hidden_size",
    output_size_key="hidden_size",
    heads_key="num_attention_heads",
    units_key="intermediate_size",
    head_size_key=None,
    position_limit_key="max_position_embeddings",
    positions_after_padding=False,
    token_types=True,
    causal=False,
    poolings=("mean", "cls"),
    attention="attention.self",
    head_counts=("num_attention_heads",),
    head_widths=("all_head_size",),
    heads=(
        Projection("attention.self.query", 0),
        Projection("attention.self.key", 0),
        Projection("attention.self.value", 0),
        Projection("attention.output.dense", 1),
    ),
    units=(Projection("intermediate.dense", 0), Projection("output.dense", 1)),
)
