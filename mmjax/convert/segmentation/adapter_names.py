"""TTDL's names for the arrays of bottleneck adapters, below `bottleneck_adapter.`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mmjax.convert.attention_pooling import ATTENTION_POOLING
from mmjax.convert.segmentation.names import biased
from mmjax.convert.vision.names import statistics
from mmjax.errors import UserError
from mmjax.formats.name_rules import LAYOUTS, Rule, Rules, dense, norm, with_prefix

PREFIX = "bottleneck_adapter."
# The three adapters with only a matrix `mlp`; shapes tell which one it is.
MATRIX = "contrastive"
_BATCH_NORM: Rules = [*norm("bn1", "norm"), *statistics("bn1", "norm")]
_ATTENTION: Rules = [
    Rule("conv1.weight", ("tokens/kernel",), "convolution"),
    *with_prefix(ATTENTION_POOLING, key="attn_pool.", path="pooling/"),
]
# {adapter: its rules}, the ones with more arrays first.
RULES: dict[str, Rules] = {
    "conv_attn_pool": [*_ATTENTION, Rule("learnable_query", ("query",))],
    "conv_attn_pool_by_text": _ATTENTION,
    "conv2_BN_GAP": [
        Rule("conv1.weight", ("first/kernel",), "convolution"),
        *_BATCH_NORM,
        *biased("conv2", "second"),
    ],
    "GAP_linear2_BN": [
        Rule("linear1.weight", ("first/kernel",), "dense"),
        *_BATCH_NORM,
        *dense("linear2", "second"),
    ],
    "GAP_linear2_noBN": [*dense("linear1", "first"), *dense("linear2", "second")],
    "GAP_linear": dense("linear", "linear"),
    MATRIX: [Rule("mlp.weight", ("linear/kernel",), "dense")],
}


def rules_of(adapter: str) -> Rules:
    """Returns the rules of an adapter with the prefixes of a model."""
    return with_prefix(RULES[adapter], key=PREFIX, path="adapter/")


def by_names(names: Collection[str]) -> str | None:
    """Returns the key of `RULES` for the names of a file; None without an adapter.

    Args:
      names: Names of all arrays of a model.

    Raises:
      UserError: The adapter is not one of TTDL's.
    """
    own = {name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)}
    if not own:
        return None
    for adapter, rules in RULES.items():
        if {rule.key for rule in rules} <= own:
            return adapter
    raise UserError(
        f"{PREFIX}… has the arrays {', '.join(sorted(own)[:6])}, which are not those of one of "
        f"TTDL's adapters ({', '.join(RULES)}). Remove them from the file, or complete them."
    )


def by_paths(arrays: Mapping[str, Any]) -> str | None:
    """Returns the key of `RULES` for the arrays of a model in mmjax; None without an adapter.

    Args:
      arrays: {path: array} of a model; statistics have no `extra/` in front.

    Raises:
      UserError: The adapter is not one of TTDL's.
    """
    own = {
        path.removeprefix("adapter/"): len(array.shape)
        for path, array in arrays.items()
        if path.startswith("adapter/")
    }
    if not own:
        return None
    for adapter, rules in RULES.items():
        ndims = {path: LAYOUTS[rule.layout].ndim for rule in rules for path in rule.paths}
        if ndims.keys() == own.keys() and all(
            ndim in (None, own[path]) for path, ndim in ndims.items()
        ):
            return adapter
    raise UserError(
        "The bottleneck adapter of the source is not one of TTDL's. Only these have names in "
        f"PyTorch: {', '.join(RULES)}."
    )
