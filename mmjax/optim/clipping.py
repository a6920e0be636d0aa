"""Clipping of gradients by global norm, per group of parameters."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax import tree
from mmjax.errors import UserError, check_choice

LOOKUPS = ("summed", "separate")  # values of `clip_lookups`


def separates_lookups(cfg: Mapping[str, Any]) -> bool:
    """Returns whether `clip_lookups` is 'separate'; see `make_clipping`."""
    value = cfg.get("clip_lookups", LOOKUPS[0])
    check_choice("config.optimizer.clip_lookups", value, LOOKUPS)
    return value == "separate"


def make_clipping(cfg: Mapping[str, Any], params: Any) -> Callable[..., Any] | None:
    """Returns a function that clips gradients by global norm, per group of parameters.

    VATT's fine-tuning uses one norm for the backbone and one for the classifier.

    Args:
      cfg: The section `optimizer`. `clip_groups`: (pattern, norm) pairs; a parameter belongs to the
        first pattern that matches its path. `clip_norm`: Norm of all other parameters together. A
        norm of 0 does not clip. `clip_lookups`: Whether the gradients of rows of an embedding that
        were looked up with the same id are 'summed' before they count in a norm, or each counts
        'separate'ly, as in TensorFlow. The clipped gradients are sums in both cases.
      params: Tree of arrays or shapes, for its paths.

    Returns:
      `(gradients, squares={}) -> clipped gradients`; None if nothing is clipped. `squares` has
      the sums of squares that count instead of those of the gradients at the same paths; see
      `mmjax.lookups`.

    Raises:
      UserError: A negative norm, a pattern that matches no path, an unknown `clip_lookups`, or
        `clip_lookups='separate'` without a norm.
    """
    groups = pattern_pairs(cfg, "clip_groups")
    norms = [*(norm for _, norm in groups), cfg.get("clip_norm", 0.0)]
    if any(norm < 0 for norm in norms):
        raise UserError(
            "config.optimizer.clip_norm and the norms of clip_groups must be at least 0 (no "
            f"clipping); got {norms}."
        )
    matched = tree.first_match(
        [pattern for pattern, _ in groups],
        list(tree.flatten(params)),
        what="config.optimizer.clip_groups",
    )

    separate = separates_lookups(cfg)
    if not any(norms):
        if separate:
            raise UserError(
                "config.optimizer.clip_lookups='separate' needs a norm to clip to. Set "
                "config.optimizer.clip_norm, or config.optimizer.clip_lookups='summed'."
            )
        return None

    def clip(grads, squares=types.MappingProxyType({})):
        named = tree.flatten(grads)
        scales = {}
        for number, limit in enumerate(norms):
            members = {
                path: leaf
                for path, leaf in named.items()
                if (len(groups) if matched[path] is None else matched[path]) == number
            }
            if limit and members:
                norm = _norm(members, squares)
                # 1 up to the limit, and no division by a norm of 0.
                scale = limit / jnp.maximum(norm, limit)
                scales |= dict.fromkeys(members, scale)
        return tree.map_named(
            lambda path, g: (g * scales[path]).astype(g.dtype) if path in scales else g, grads
        )

    return clip


def _norm(members: Mapping[str, jax.Array], squares: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the global norm; `squares` replaces the sums of squares of some members."""
    norm = optax.global_norm({path: leaf for path, leaf in members.items() if path not in squares})
    replaced = [squares[path] for path in members if path in squares]
    return jnp.sqrt(norm**2 + sum(replaced)) if replaced else norm


def pattern_pairs(
    cfg: Mapping[str, Any], key: str, where: str = "optimizer"
) -> list[tuple[str, float]]:
    """Returns the (pattern, number) pairs of a key of a section.

    Args:
      cfg: The section.
      key: The key; pairs are empty if it is missing.
      where: Key of the section, for error messages.

    Raises:
      UserError: The value is anything else.
    """
    pairs = cfg.get(key, ())
    for pair in pairs if isinstance(pairs, list | tuple) else [pairs]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(
                f"config.{where}.{key} must be (pattern, number) pairs, for example "
                f"(('^video/', 0.1),); got {pair!r} in {pairs!r}."
            )
    return [(pattern, float(number)) for pattern, number in pairs]
