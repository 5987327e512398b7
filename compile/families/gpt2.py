"""GPT-2 (and DistilGPT-2): a decoder whose projections are `Conv1D`, with query, key and value in one matrix."""

from __future__ import annotations

from compile.families.table import Family, Projection

GPT2 = Family(
    model_type="gpt2",
    encoder_class="GPT2Model",
    encoder_options=(),
    embeddings=("wte", "wpe"),
    layers="h",
    layer_count_key="n_layer",
    hidden_size_key="n_embd",
    output_size_key="n_embd",
    heads_key="n_head",
    units_key="n_inner",
    head_size_key=None,
    position_limit_key="n_positions",
    positions_after_padding=False,
    token_types=False,
    causal=True,
    poolings=("mean", "last"),
    attention="attn",
    head_counts=("num_heads",),
    head_widths=("split_size",),
    heads=(
        Projection("attn.c_attn", 1, "conv1d", parts=3),
        Projection("attn.c_proj", 0, "conv1d"),
    ),
    units=(Projection("mlp.c_fc", 1, "conv1d"), Projection("mlp.c_proj", 0, "conv1d")),
)
