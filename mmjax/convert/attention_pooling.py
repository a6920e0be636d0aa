"""FLAIR's names for the arrays of an attention pooling, `TextConditionedPooling`.

FLAIR has one as `visual_proj`, TTDL's segmentation models one as `bottleneck_adapter.attn_pool`.
"""

from __future__ import annotations

from mmjax.formats.name_rules import Rules, dense, norm

ATTENTION_POOLING: Rules = [
    *norm("ln_q", "query_norm"),
    *norm("ln_k", "key_norm"),
    *norm("ln_v", "value_norm"),
    *dense("attn.in_proj", "query", "key", "value", weight="_weight", bias="_bias"),
    *dense("attn.out_proj", "out"),
]
