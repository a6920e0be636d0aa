"""Changes of the data config for evaluation: the option `views` of evaluators."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmjax.errors import UserError, unknown
from mmjax.modalities import INPUTS

_POLICY_KEYS = ("corrupt", "max_corrupt")  # values of config.data that `views` may replace


def merge(
    data_cfg: Mapping[str, Any], views: Mapping[str, Any], *, key: str = "views"
) -> dict[str, Any]:
    """Returns the data config with the changes of `views`; nested sections keep their other keys.

    Args:
      data_cfg: The `data` section of the config as plain dicts.
      views: {section: {key: value}}, for example
        `dict(text=dict(keywords=dict(seed=3)), video=None)`. None disables a modality; it need not
        be enabled. `corrupt` and `max_corrupt` may be set, too.
      key: Full config key of `views`, for error messages.

    Raises:
      UserError: A section that the data config does not have, or that it disables.
    """
    cfg = dict(data_cfg)
    for section, changes in views.items():
        if section in _POLICY_KEYS:
            cfg[section] = changes
            continue
        if section not in cfg:
            if changes is None and section in INPUTS:
                continue
            raise unknown(f"section of config.data in {key}:", section, cfg)
        if changes is not None and cfg[section] is None:
            raise UserError(
                f"{key}.{section} changes config.data.{section}, which is None. Enable it in "
                f"config.data, or remove {section!r} from {key}."
            )
        cfg[section] = _merge_values(cfg[section], changes)
    return cfg


def leave_out(data_cfg: Mapping[str, Any], *kept: str) -> dict[str, None]:
    """Returns the `views` that disable all modalities of the data except `kept`."""
    return {m: None for m in INPUTS if data_cfg.get(m) is not None and m not in kept}


def to_json(data_cfg: Mapping[str, Any], views: Mapping[str, Any], *, key: str = "views") -> str:
    """Returns the complete sections that `views` changes as JSON, equal for equal changes."""
    merged = merge(data_cfg, views, key=key)
    changed = {k: v for k, v in merged.items() if v != data_cfg.get(k)}
    return json.dumps(changed, sort_keys=True)


def from_json(text: str) -> dict[str, Any]:
    """Returns the sections from `to_json`. Lists become tuples: the data config has no lists."""
    return _as_tuples(json.loads(text))


def _merge_values(value: Any, changes: Any) -> Any:
    if not (isinstance(value, Mapping) and isinstance(changes, Mapping)):
        return changes
    return {**value, **{key: _merge_values(value.get(key), new) for key, new in changes.items()}}


def _as_tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_as_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _as_tuples(item) for key, item in value.items()}
    return value
