"""How an evaluator's data differ from those of training: its `views` of the data config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmjax.errors import UserError, unknown
from mmjax.modalities import INPUTS

_POLICY = ("corrupt", "max_corrupt")  # keys of config.data that are no sections


def merge(data_cfg: Mapping[str, Any], views: Mapping[str, Any]) -> dict[str, Any]:
    """The data config with what `views` replaces; sections within sections keep their other keys.

    Args:
      data_cfg: the `data` section of the config, as plain dicts.
      views: {section: {key: value}}, e.g. `dict(text=dict(keywords=dict(seed=3)), video=None)`;
        None leaves a section out, if it is there. `corrupt` and `max_corrupt` may be given too.

    Raises:
      UserError: a section that the data config does not have, or leaves out itself.
    """
    cfg = dict(data_cfg)
    for section, changes in views.items():
        if section in _POLICY:
            cfg[section] = changes
            continue
        if section not in cfg:
            if changes is None and section in INPUTS:
                continue
            raise unknown("section of config.data in views", section, cfg)
        if changes is not None and cfg[section] is None:
            raise UserError(f"views.{section} is given but config.data.{section} is None.")
        cfg[section] = _replaced(cfg[section], changes)
    return cfg


def leave_out(data_cfg: Mapping[str, Any], *kept: str) -> dict[str, None]:
    """The `views` that leave out all modalities of the data but `kept`."""
    return {m: None for m in INPUTS if data_cfg.get(m) is not None and m not in kept}


def to_json(data_cfg: Mapping[str, Any], views: Mapping[str, Any]) -> str:
    """The sections that `views` change, complete, as JSON that is equal for equal changes."""
    changed = {k: v for k, v in merge(data_cfg, views).items() if v != data_cfg.get(k)}
    return json.dumps(changed, sort_keys=True)


def from_json(text: str) -> dict[str, Any]:
    """The sections that `to_json` wrote. JSON has no tuples; the data config has no lists."""
    return _tuples(json.loads(text))


def _replaced(value: Any, changes: Any) -> Any:
    if not (isinstance(value, Mapping) and isinstance(changes, Mapping)):
        return changes
    return {**value, **{key: _replaced(value.get(key), new) for key, new in changes.items()}}


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
