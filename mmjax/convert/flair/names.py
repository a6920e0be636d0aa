"""FLAIR's names for its arrays, and TTDL's for its adapters.

FLAIR names its towers as OpenCLIP, but projects after them.
"""

from __future__ import annotations

from mmjax.convert.attention_pooling import ATTENTION_POOLING
from mmjax.convert.clip import names as clip_names
from mmjax.formats.name_rules import Rule, Rules, with_prefix
from mmjax.models.flair import ADAPTERS

SCALARS = ("logit_scale", "logit_bias")
# A name that identifies a file; its prefix is that of all names.
KEY = "image_post.proj"
_TOWER_PROJECTIONS = ("proj", "text_projection")


def _tower(rules: Rules) -> Rules:
    return [rule for rule in rules if rule.key not in _TOWER_PROJECTIONS]


RULES: Rules = [
    *with_prefix(_tower(clip_names.IMAGE), key="visual.", path="image/"),
    *with_prefix(_tower(clip_names.TEXT), path="text/"),
    Rule(KEY, ("image_projection/kernel",)),  # [in, out], as in mmjax
    Rule("text_post.proj", ("text_projection/kernel",)),
    *with_prefix(ATTENTION_POOLING, key="visual_proj.", path="pooling/"),
    *(Rule(f"{name}.weight", (f"{name}/kernel",), "dense") for name in ADAPTERS),
    *(Rule(name, (name,)) for name in SCALARS),
]
