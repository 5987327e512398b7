"""DistilBERT: BERT without token types."""

from __future__ import annotations

from compile.families.table import Family, Projection

DISTILBERT = Family(
    model_type="distilbert",
    encoder_class="DistilBertModel",
    encoder_options=(),
    embeddings=("embeddings",),
    layers="transformer.layer",
    layer_count_key="n_layers",
    hidden_size_key="dim",
    output_size_key="dim",
    heads_key="n_heads",
    units_key="hidden_dim",
    head_size_key=None,
    position_limit_key="max_position_embeddings",
    positions_after_padding=False,
    token_types=False,
    causal=False,
    poolings=("mean", "cls"),
    attention="attention",
    head_counts=("n_heads",),
    head_widths=("dim",),
    heads=(
        Projection("attention.q_lin", 0),
        Projection("attention.k_lin", 0),
        Projection("attention.v_lin", 0),
        Projection("attention.out_lin", 1),
    ),
    units=(Projection("ffn.lin1", 0), Projection("ffn.lin2", 1)),
)
