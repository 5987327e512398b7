"""T5's encoder: relative positions, whose bias table lies in the first layer; feed-forward plain (v1.0) or gated."""

from __future__ import annotations

from compile.families.table import Family, Projection

T5 = Family(
    model_type="t5",
    encoder_class="T5EncoderModel",
    encoder_options=(),
    embeddings=("shared",),
    layers="encoder.block",
    layer_count_key="num_layers",
    hidden_size_key="d_model",
    output_size_key="d_model",
    heads_key="num_heads",
    units_key="d_ff",
    head_size_key="d_kv",
    position_limit_key=None,
    positions_after_padding=False,
    token_types=False,
    causal=False,
    poolings=("mean",),
    attention="layer.0.SelfAttention",
    head_counts=("n_heads",),
    head_widths=("inner_dim",),
    heads=(
        Projection("layer.0.SelfAttention.q", 0),
        Projection("layer.0.SelfAttention.k", 0),
        Projection("layer.0.SelfAttention.v", 0),
        Projection("layer.0.SelfAttention.o", 1),
    ),
    units=(
        Projection("layer.1.DenseReluDense.wi", 0),
        Projection("layer.1.DenseReluDense.wi_0", 0),
        Projection("layer.1.DenseReluDense.wi_1", 0),
        Projection("layer.1.DenseReluDense.wo", 1),
    ),
    position_bias="layer.0.SelfAttention.relative_attention_bias",
)
