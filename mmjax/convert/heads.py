"""Names of pyVTAB for the arrays of heads: the files `model_head.pt`.

Arrays of heads that pyVTAB does not have, and of pyramids, get the names that PyTorch would give to
the same modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax import tree
from mmjax.convert.matching import format_mismatches, is_statistic
from mmjax.convert.vision.names import COUNTER, conv_norm, resnet_block, statistics
from mmjax.errors import UserError
from mmjax.formats import name_rules
from mmjax.formats.name_rules import Rule, Rules, dense, match_keys, norm, with_prefix

_HEAD = "head/"  # path of a head with a pyramid


def _convolution(key: str, path: str) -> Rules:
    """Returns the rules of a convolution with bias."""
    return [
        Rule(f"{key}.weight", (f"{path}/kernel",), "convolution"),
        Rule(f"{key}.bias", (f"{path}/bias",)),
    ]


def _biased_unit(convolution: str, batch_norm: str, path: str) -> Rules:
    """Returns the rules of a convolution with bias and BatchNorm."""
    return [
        *_convolution(convolution, f"{path}/conv"),
        *norm(batch_norm, f"{path}/norm"),
        *statistics(batch_norm, f"{path}/norm"),
    ]


_UNET: Rules = [rule for n in range(1, 6) for rule in _convolution(f"up{n}.0", f"up{n}")]
_ASPP: Rules = [
    *(
        rule
        for n in range(1, 6)
        for rule in conv_norm(f"aspp.aspp{n}", f"aspp.aspp{n}_bn", f"aspp/branch{n}")
    ),
    *conv_norm("aspp.conv2", "aspp.bn2", "aspp/fuse"),
]
_DECODER: Rules = [
    *_biased_unit("low_level_feature_reducer.0", "low_level_feature_reducer.1", "reducer"),
    *_biased_unit("decoder.0", "decoder.1", "decoder/first"),
    *_biased_unit("decoder.3", "decoder.4", "decoder/second"),
    *_convolution("decoder.6", "decoder/output"),
]
_BLOCKS = ("block4.upsample_layer", "block4.conv.0", "block4.conv.1")
_DEEPLAB: Rules = [
    *_ASPP,
    *_DECODER,
    *(rule for j, key in enumerate(_BLOCKS) for rule in resnet_block(key, f"block4/{j}")),
]
RULES: dict[str, Rules] = {
    "linear": dense("head", "linear"),
    "mlp": [*dense("head.0", "hidden"), *dense("head.2", "output")],
    "unet": _UNET,
    "siamese_unet": [
        *_UNET,
        *(rule for n in range(1, 6) for rule in _convolution(f"fusion{n}", f"fusion{n}")),
    ],
    "deeplab": _DEEPLAB,
    "deeplab_plain": _DEEPLAB,
    "deeplab_classifier": [*_ASPP, *_DECODER, *dense("linear", "linear")],
}
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_LAYOUTS = {2: "dense", 4: "convolution"}  # by the number of axes of a kernel


def _rule_of(path: str, shape: Sequence[int]) -> Rule:
    """Returns the rule of an array without a name in pyVTAB."""
    *parts, leaf = path.split("/")
    layout = _LAYOUTS.get(len(shape), "same") if leaf == "kernel" else "same"
    return Rule(".".join([*parts, _LEAVES.get(leaf, leaf)]), (path,), layout)


def rules_of(head_name: str, arrays: Mapping[str, Any]) -> Rules:
    """Returns the rules of these arrays of a head.

    Args:
      head_name: Name of the head; see `mmjax.models.decoders.registry`.
      arrays: {path: array or abstract array} of its parameters and statistics.
    """
    rules = RULES.get(head_name, ())
    rules = [*rules, *with_prefix(rules, path=_HEAD)]
    by_path = {rule.paths[0]: rule for rule in rules}
    return [by_path.get(path) or _rule_of(path, x.shape) for path, x in arrays.items()]


def _flat(params: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    return tree.flatten(params) | tree.flatten(extra)


def to_torch(
    head_name: str, params: Mapping[str, Any], extra: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns {name: array} of a head as in `model_head.pt`, for `mmjax.formats.torch_writer`.

    Args:
      head_name: Name of the head.
      params: Its parameters, without an axis of seeds.
      extra: Its BatchNorm statistics.
    """
    arrays = {path: np.asarray(x) for path, x in _flat(params, extra).items()}
    result = name_rules.to_torch(arrays, rules_of(head_name, arrays))
    means = [name for name in result if name.endswith(".running_mean")]
    count = np.zeros((), np.int64)
    return result | {name.replace("running_mean", COUNTER): count for name in means}


def from_torch(
    head_name: str,
    arrays: Mapping[str, np.ndarray],
    params: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> tuple[dict, dict]:
    """Returns `(params, extra)` of a head, float32, from {name: array} of a `model_head.pt`.

    Args:
      head_name: Name of the head.
      arrays: Arrays of the file; see `mmjax.formats.torch_reader.tensors`.
      params: Parameters of the head, abstract or not, whose shapes the file must have.
      extra: Its BatchNorm statistics.

    Raises:
      UserError: Arrays are missing or unexpected, or have another shape.
    """
    target = _flat(params, extra)
    rules = rules_of(head_name, target)
    shapes = {name: x.shape for name, x in arrays.items() if not name.endswith(COUNTER)}
    leaves, mismatches, unexpected = match_keys(shapes, rules)
    mismatches |= dict.fromkeys(unexpected, "is unexpected")
    for rule in rules:
        path = rule.paths[0]
        shape = tuple(target[path].shape)
        if path in leaves and leaves[path].shape != shape:
            mismatches[rule.key] = f"gives {path} the shape {leaves[path].shape}; expected {shape}"
        elif path not in leaves:
            mismatches.setdefault(rule.key, f"is missing; required for {path} {shape}")
    if mismatches:
        raise UserError(
            f"These arrays are not those of this head ({head_name}):\n"
            f"{format_mismatches(mismatches)}\nUse the head, encoder and number of classes that "
            "the file was trained with."
        )
    values = {path: leaf.read(arrays) for path, leaf in leaves.items()}
    statistic = {path: x for path, x in values.items() if is_statistic(path)}
    rest = {path: x for path, x in values.items() if path not in statistic}
    return tree.unflatten(rest), tree.unflatten(statistic)
