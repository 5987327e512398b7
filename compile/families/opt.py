"""OPT: a decoder; its smaller embeddings, where it has them, are widened before and narrowed after the layers."""

from __future__ import annotations

from compile.families.table import Family, Projection

OPT = Family(
    model_type="opt",
    encoder_class="OPTModel",
    encoder_options=(),
    embeddings=("decoder.embed_tokens", "decoder.embed_positions"),
    layers="decoder.layers",
    layer_count_key="num_hidden_layers",
    hidden_size_key="hidden_size",
    output_size_key="word_embed_proj_dim",
    heads_key="num_attention_heads",
    units_key="ffn_dim",
    head_size_key=None,
    # The position table has two rows more than this; the model adds them by itself.
    position_limit_key="max_position_embeddings",
    positions_after_padding=False,
    token_types=False,
    causal=True,
    poolings=("mean", "last"),
    attention="self_attn",
    head_counts=("num_heads",),
    head_widths=("embed_dim",),
    heads=(
        Projection("self_attn.q_proj", 0),
        Projection("self_attn.k_proj", 0),
        Projection("self_attn.v_proj", 0),
        Projection("self_attn.out_proj", 1),
    ),
    units=(Projection("fc1", 0), Projection("fc2", 1)),
)
