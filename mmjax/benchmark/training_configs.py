"""The training configurations of a run in the YAML format of pyVTAB."""

from __future__ import annotations

from typing import Any

from mmjax.benchmark import checks, names
from mmjax.benchmark.yaml_file import Section
from mmjax.errors import UserError, check_choice

_KEYS = ("optimizer", "lr", "momentum", "scheduler")
_OPTIMIZERS = ("adam", "sgd")
_SCHEDULERS: dict[str, tuple[str, ...]] = {
    "StepLR": ("step_size", "gamma"),
    "OneCycle": (),
    "Poly": ("exponent",),
}


def parse(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """Returns the checked options of each configuration by its name.

    Args:
      value: The section `training_configs` of a run.
      where: The file, the line and the key, for error messages.

    Raises:
      UserError: An option is unknown, missing or invalid.
    """
    checks.mapping(value, where)
    if not value:
        raise UserError(
            f"{where} is empty. Add a configuration, or remove the key for the default."
        )
    return {names.check_name(name, value.where(name)): _config(value, name) for name in value}


def _config(section: Section, name: str) -> dict[str, Any]:
    values = section[name]
    checks.mapping(values, f"{section.where(name)}: configuration {name}")
    for key in values:
        check_choice(f"key of configuration {name} ({values.where(key)}):", key, _KEYS)
    if missing := [key for key in ("optimizer", "lr") if key not in values]:
        raise UserError(f"{section.where(name)}: configuration {name} has no {missing[0]}.")
    at = {key: f"{values.where(key)}: {name}.{key}" for key in values}
    checks.text(values["optimizer"], at["optimizer"])
    check_choice(f"optimizer ({at['optimizer']}):", values["optimizer"], _OPTIMIZERS)
    result = dict(optimizer=values["optimizer"], lr=checks.number(values["lr"], at["lr"], above=0))
    if values.get("momentum") is not None:
        if values["optimizer"] != "sgd":
            raise UserError(
                f"{at['momentum']} is an option of the optimizer sgd; {name} uses "
                f"{values['optimizer']}. Remove it."
            )
        result["momentum"] = checks.number(values["momentum"], at["momentum"], least=0, below=1)
    if values.get("scheduler") is not None:
        result["scheduler"] = _scheduler(values["scheduler"], at["scheduler"])
    return result


def _scheduler(values: Any, where: str) -> dict[str, Any]:
    checks.mapping(values, where)
    if "type" not in values:
        raise UserError(f"{where} has no type. Valid: {', '.join(_SCHEDULERS)}.")
    checks.text(values["type"], f"{where}.type")
    check_choice(f"type of {where}:", values["type"], _SCHEDULERS)
    options = _SCHEDULERS[values["type"]]
    for key in values:
        check_choice(f"option of {values['type']} ({values.where(key)}):", key, ("type", *options))
    result = {"type": values["type"]}
    for key in options:
        if key not in values:
            raise UserError(f"{where}: {values['type']} needs {' and '.join(options)}; no {key}.")
        at = f"{values.where(key)}: scheduler.{key}"
        if key == "step_size":
            result[key] = checks.integer(values[key], at, least=1)
        else:
            result[key] = checks.number(values[key], at, above=0)
    return result
