"""Recipes, overrides, and the one validator of config sections.

A recipe is an `ml_collections` file with `get_config(arg)`. `load` finds it and applies overrides.
`resolve` checks it and returns a `Config`; its sections are plain dicts. All code below the command
line takes a `Config`. `keywords` turns a section into the keyword arguments of what it
configures, so an unknown key or a wrong type fails at startup with the full key and the nearest
valid one.
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import importlib.util
import inspect
import json
import math
import pathlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import ml_collections

from mmjax import configs
from mmjax.errors import UserError, check_choice, unknown

RECIPES = pathlib.Path(configs.__path__[0])
EVALS = "evals"  # the directory of evaluator sets, which are not recipes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A resolved recipe: checked top-level values, and sections as plain dicts.

    Attributes:
      task: The `--task` that the recipe is for.
      seed: Seed of initialization, data order, augmentation and dropout.
      total_steps: Number of steps. A step is one update, or `updates_per_step` of them.
      total_examples: If positive, replaces `total_steps`: this many examples in batches of
        `batch_size`, the last batch complete.
      batch_size: Examples per step, over all devices and hosts.
      accumulate_steps: Microbatches per update; exact for contrastive losses.
      updates_per_step: Updates that one call of the compiled step makes, each with an equal part of
        the batch. Schedules of the optimizer count updates; all other keys in steps, such as
        `total_steps`, `log_every` and those of evaluators, count calls. For models so small that
        the call takes longer than the update.
      ema_decay: Decay of the moving average of the parameters; 0 keeps none.
      clip_shards: If positive, clips the gradient of each of this many parts of a batch (VATT
        fine-tuning).
      nan_policy: At a step that is not finite, 'stop', or 'skip' the update.
      nan_limit: Number of skipped steps after which training stops.
      init_from: Where initial parameters come from: a run directory, published files, or several.
      init_allow: Patterns of parameter paths that `init_from` may lack.
      init_map: (pattern, replacement) pairs that rename paths of the source.
      resume_from: A run directory. This run starts with its complete state.
      log_every: Steps between log lines.
      mesh: Sizes of the mesh axes; see `sharding.make_mesh`.
      sharding: Sharding preset.
      sharding_rules: (pattern, axes) pairs that precede those of the preset.
      checkpoint: Options of `checkpoints.manager.Checkpoints`, and `best`, `best_of`.
      compilation_cache: Whether to cache compiled programs in $MMJAX_CACHE or ~/.cache/mmjax.
      tensorboard: Whether to write TensorBoard files.
      data, model, loss, text, augment, optimizer, evals, probe, wandb: Sections for what they
        configure.
    """

    task: str = ""
    seed: int = 0
    total_steps: int = 1000
    total_examples: int = 0
    batch_size: int = 8
    accumulate_steps: int = 1
    updates_per_step: int = 1
    ema_decay: float = 0.0
    clip_shards: int = 0
    nan_policy: Literal["stop", "skip"] = "stop"
    nan_limit: int = 10
    init_from: str | tuple[str, ...] = ""
    init_allow: tuple[str, ...] = ()
    init_map: tuple[tuple[str, str], ...] = ()
    resume_from: str = ""
    log_every: int = 20
    mesh: dict[str, Any] = dataclasses.field(
        default_factory=lambda: dict(data=-1, fsdp=1, tensor=1)
    )
    sharding: str = "dp"
    sharding_rules: tuple[Any, ...] = ()
    checkpoint: dict[str, Any] = dataclasses.field(
        default_factory=lambda: dict(every=1000, keep=3, keep_every=0, best="", best_of="max")
    )
    compilation_cache: bool = True
    tensorboard: bool = True
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss: dict[str, Any] = dataclasses.field(default_factory=dict)
    text: dict[str, Any] = dataclasses.field(default_factory=dict)
    augment: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    evals: dict[str, Any] = dataclasses.field(default_factory=dict)
    probe: dict[str, Any] = dataclasses.field(default_factory=dict)
    wandb: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        minimum = dict.fromkeys(("total_steps", "batch_size", "log_every"), 1)
        minimum |= dict.fromkeys(("accumulate_steps", "updates_per_step"), 1)
        minimum |= dict.fromkeys(("clip_shards", "nan_limit", "total_examples"), 0)
        for key, least in minimum.items():
            if (value := getattr(self, key)) < least:
                raise UserError(f"config.{key} must be at least {least}; got {value}.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(
                f"config.ema_decay must be at least 0 and less than 1; got {self.ema_decay}."
            )
        for key in ("accumulate_steps", "updates_per_step", "clip_shards"):
            if (parts := getattr(self, key)) and self.batch_size % parts:
                raise UserError(
                    f"config.batch_size={self.batch_size} must be divisible by "
                    f"config.{key}={parts}."
                )

    @property
    def total_updates(self) -> int:
        """Number of updates of the run, which the schedules of the optimizer count."""
        return self.total_steps * self.updates_per_step

    @property
    def update_batch_size(self) -> int:
        """Number of examples per update."""
        return self.batch_size // self.updates_per_step


_KEYS = tuple(field.name for field in dataclasses.fields(Config))

# Architecture names that `--model_arch` accepts, and the recipe of each by task.
ARCHITECTURES: dict[str, dict[str, str]] = {
    "pretrain": {"tx_fac": "tx_fac", "ut_fac": "ut_fac", "mmv_fac": "mmv_fac"},
    "finetune": {
        **{f"vit_{size}": "video" for size in ("base", "medium", "large", "xlarge")},
        **{f"ut_{size}": "video" for size in ("base", "medium", "large")},
        **dict.fromkeys(("i3d", "tsm_50", "tsm_50x2"), "video"),
        **{f"wat_{size}": "audio" for size in ("base", "medium", "large")},
        **{f"spt_{size}": "audio" for size in ("base", "medium", "large")},
        **dict.fromkeys(("resnet2d_50", "resnet2d_101"), "audio"),
    },
}


def base() -> ml_collections.ConfigDict:
    """Returns a config with every top-level key at its default and empty sections to fill."""
    cfg = ml_collections.ConfigDict(dataclasses.asdict(Config()))
    cfg.init_from = ml_collections.FieldReference("", field_type=object)  # a string or a tuple
    return cfg


def resolve(cfg: Config | Mapping[str, Any]) -> Config:
    """Returns the checked config with plain sections; a resolved one is returned as it is.

    Raises:
      UserError: An unknown top-level key, or a value of the wrong type or out of range.
    """
    if isinstance(cfg, Config):
        return cfg
    values = keywords(Config, cfg, "")
    defaults = Config()
    for section in ("mesh", "checkpoint"):
        default, own = getattr(defaults, section), values.get(section, {})
        values[section] = default | {
            key: convert(type(default[key]), value, f"{section}.{key}") if key in default else value
            for key, value in own.items()
        }
    result = Config(**values)
    if result.total_examples:
        steps = math.ceil(result.total_examples / result.batch_size)
        result = dataclasses.replace(result, total_steps=steps)
    return result


# --------------------------------------------------------------------------------------------------
# The validator of config sections.


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters that `target` takes by keyword, by name.

    Includes those of base classes to which a constructor passes its `**kwargs` on.
    """
    result: dict[str, inspect.Parameter] = {}
    for function in _constructors(target):
        signature = inspect.signature(function).parameters.values()
        for parameter in signature:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                result.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature):
            break
    result.pop("self", None)
    return result


def _constructors(target: Callable[..., Any]) -> list[Callable[..., Any]]:
    if not isinstance(target, type):
        return [target]
    return [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)]


def keywords(
    target: Callable[..., Any],
    section: Mapping[str, Any],
    where: str,
    *,
    provided: Iterable[str] = (),
    filled: Iterable[str] = (),
    also: Iterable[str] = (),
    owner: str = "",
) -> dict[str, Any]:
    """Returns a config section as keyword arguments of a function, class or dataclass.

    Values are checked against the annotations. Lists become tuples, integers become floats where a
    float is expected, and sections of dataclasses become instances.

    Args:
      target: What the section configures.
      section: The values by key.
      where: Key of the section, for example 'data.text'; '' for the top level.
      provided: Parameters that the caller passes itself, and that a section may not set.
      filled: Required parameters that the caller adds if the section does not set them.
      also: Further keys that are valid in this section but are not parameters of `target`. They
        are not returned.
      owner: Name of what the section configures, for example 'adamw', for error messages.

    Raises:
      UserError: An unknown or missing key, or a value of the wrong type.
    """
    known = {k: p for k, p in parameters(target).items() if k not in set(provided)}
    check_keys(section, [*known, *also], where, owner=owner)
    hints = _hints(target)
    prefix = f"{where}." if where else ""
    missing = [
        f"config.{prefix}{key}"
        for key, parameter in known.items()
        if parameter.default is parameter.empty and key not in {*section, *filled}
    ]
    if missing:
        of = f" of {owner!r}" if owner else ""
        raise UserError(f"Missing config keys{of}: {', '.join(missing)}. Set them in the recipe.")
    return {
        key: convert(hints.get(key, Any), value, f"{prefix}{key}")
        for key, value in plain(section).items()
        if key in known
    }


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of what `parameters` returns."""
    if dataclasses.is_dataclass(target):
        return typing.get_type_hints(target)
    hints: dict[str, Any] = {}
    for function in reversed(_constructors(target)):
        if function is not object.__init__:
            hints |= typing.get_type_hints(function)
    return hints


def check_keys(
    section: Iterable[str], valid: Iterable[str], where: str, *, owner: str = ""
) -> None:
    """Raises UserError at the first key of a section that is not valid."""
    prefix = f"{where}." if where else ""
    valid = [f"{prefix}{key}" for key in valid]
    for key in section:
        what = f"config key of {owner!r}:" if owner else "config key"
        check_choice(what, f"{prefix}{key}", valid)


def convert(hint: Any, value: Any, where: str) -> Any:
    """Returns a value as a type annotation asks for it.

    Args:
      hint: The annotation. Types that are not listed in `keywords` accept any value.
      value: The value, without `ml_collections` types.
      where: Its full key without 'config.', for error messages.

    Raises:
      UserError: The value has another type, or is not one of a `Literal`'s values.
    """
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    for option in options:
        fits, converted = _convert(option, value, where)
        if fits:
            return converted
    literal = next((o for o in options if typing.get_origin(o) is Literal), None)
    if literal is not None and isinstance(value, str):
        raise unknown(f"value of config.{where}:", value, typing.get_args(literal))
    raise UserError(
        f"config.{where} must be {' or '.join(map(_type_name, options))}; got {value!r} "
        f"({type(value).__name__})."
    )


def _convert(option: Any, value: Any, where: str) -> tuple[bool, Any]:
    """Returns `(whether the value fits this option, the converted value)`."""
    origin, args = typing.get_origin(option), typing.get_args(option)
    if option is type(None):
        return value is None, None
    if origin is Literal:
        return value in args, value
    if dataclasses.is_dataclass(option):
        if isinstance(value, Mapping):
            return True, option(**keywords(option, value, where))
        return isinstance(value, option), value
    if origin in (tuple, collections.abc.Sequence, list):
        if not isinstance(value, tuple | list):
            return False, None
        if origin is tuple and args[-1:] != (Ellipsis,):
            if len(args) != len(value):
                return False, None
            pairs = zip(args, value, strict=True)
        else:
            pairs = ((args[0] if args else Any, item) for item in value)
        return True, tuple(convert(a, item, f"{where}[{n}]") for n, (a, item) in enumerate(pairs))
    if (origin or option) in (dict, collections.abc.Mapping):
        return isinstance(value, Mapping), value
    if option is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number, float(value) if number else None
    if option in (int, str, bool):
        return type(value) is option, value
    return True, value


def _type_name(option: Any) -> str:
    if option is type(None):
        return "None"
    if dataclasses.is_dataclass(option):
        return "a section (dict)"
    if typing.get_origin(option) is Literal:
        return " or ".join(map(repr, typing.get_args(option)))
    if typing.get_origin(option) in (tuple, list, collections.abc.Sequence):
        items = [arg for arg in typing.get_args(option) if arg is not Ellipsis]
        return f"a tuple of {' and '.join(map(_type_name, items)) or 'values'}"
    option = typing.get_origin(option) or option
    return option.__name__ if isinstance(option, type) else str(option)


def plain(value: Any) -> Any:
    """Returns configs as plain dicts, and lists as tuples."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value


# --------------------------------------------------------------------------------------------------
# Recipes and overrides.


def find_recipe(task: str, name: str) -> pathlib.Path:
    """Returns the file of a recipe.

    Args:
      task: The task that the recipe is for.
      name: Path of a .py file, or the name of a recipe in `configs/<task>/`.

    Raises:
      UserError: The file or recipe does not exist; the message lists the recipes of the task.
    """
    if name.endswith(".py"):
        path = pathlib.Path(name)
        if path.is_file():
            return path.resolve()
        if (RECIPES / name).is_file():
            return RECIPES / name
        raise UserError(f"--config={name}: no such file.")
    directories = [path.name for path in RECIPES.iterdir() if path.is_dir()]
    tasks = [name for name in directories if name != EVALS and not name.startswith("_")]
    if task not in tasks:
        if ":" in task:
            raise UserError(
                f"--task={task} has no recipes here. Pass the file of its recipe: "
                "--config=PATH/TO/recipe.py."
            )
        raise unknown("--task", task, tasks)
    directory, _, stem = name.rpartition("/")
    path = RECIPES / (directory or task) / f"{stem}.py"
    if not path.is_file():
        raise unknown(f"recipe for --task={task}", name, _stems(RECIPES / task))
    return path


def _stems(directory: pathlib.Path) -> list[str]:
    return [path.stem for path in directory.glob("*.py") if not path.stem.startswith("_")]


def choose_recipe(task: str, recipe: str | None, architecture: str | None) -> str:
    """Returns the recipe, with its argument, that `--config` and `--model_arch` select together.

    Args:
      task: The task that the recipe is for.
      recipe: `--config`. None selects the recipe of the architecture, or 'demo' without one.
      architecture: `--model_arch` in any letter case, or None. It becomes the recipe's argument.

    Raises:
      UserError: The architecture is unknown or for another task, or the recipe already has an
        argument.
    """
    if architecture is None:
        return recipe or "demo"
    name, valid = architecture.lower(), ARCHITECTURES.get(task, {})
    if name not in valid:
        others = [other for other, names in ARCHITECTURES.items() if name in names]
        if others:
            raise UserError(
                f"--model_arch={name} is for --task={others[0]}. Valid for --task={task}: "
                f"{', '.join(valid) or 'none'}."
            )
        raise unknown(f"--model_arch for --task={task}:", name, valid)
    recipe = recipe or valid[name]
    if recipe.partition(":")[0] == name:  # the recipe is for this architecture
        return recipe
    if ":" in recipe:
        raise UserError(
            f"--config={recipe} and --model_arch={name} both select a variant of the recipe. Pass "
            "only one of them."
        )
    return f"{recipe}:{name}"


def variants(arg: str, *allowed: str) -> set[str]:
    """Returns the comma-separated words of a recipe's argument.

    Raises:
      UserError: A word is not one of `allowed`.
    """
    words = {word for word in arg.split(",") if word}
    for word in sorted(words):
        check_choice("recipe argument", word, allowed)
    return words


def only(words: set[str], names: Sequence[str], default: str, *, what: str) -> str:
    """Returns the one of `names` among the words of a recipe's argument, or `default`.

    Args:
      words: The words of the argument.
      names: Mutually exclusive words.
      default: Used if none of `names` is present.
      what: What the names select, for the error message.

    Raises:
      UserError: Several of the names are present.
    """
    chosen = sorted(words & set(names)) or [default]
    if len(chosen) > 1:
        raise UserError(
            f"The recipe's argument selects more than one {what}: {', '.join(chosen)}. Pass one."
        )
    return chosen[0]


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns `(flags, overrides)`: overrides are the `--config.key=value` arguments."""
    overrides = [a for a in argv if a.startswith(("--config.", "-config."))]
    return [a for a in argv if a not in overrides], overrides


def load(task: str, name: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Returns a recipe with overrides applied and checked.

    Args:
      task: The task that the recipe is for.
      name: Recipe or .py file, with `:ARG` for its `get_config` if it takes an argument.
      overrides: `--config.key=value` arguments. Values are Python literals; anything else is a
        string. Keys need not be in the recipe: what they configure checks them.

    Raises:
      UserError: The recipe does not exist or is for another task, or an override is invalid.
    """
    name, arg = _split_arg(name)
    cfg = _run(find_recipe(task, name), arg)
    apply(cfg, overrides)
    if cfg.task != task:
        raise UserError(
            f"--config={name} is a recipe for --task={cfg.task}, not for --task={task}."
        )
    return cfg


def load_evals(name: str) -> ml_collections.ConfigDict:
    """Returns an `evals` section from a file of its own, for models of any task.

    Args:
      name: A name in `configs/evals/`, or another .py file, with `:ARG` for its `get_config` if it
        takes an argument.

    Raises:
      UserError: The file does not exist.
    """
    name, arg = _split_arg(name)
    path = pathlib.Path(name) if name.endswith(".py") else RECIPES / EVALS / f"{name}.py"
    if not path.is_file():
        raise unknown("--evals", name, _stems(RECIPES / EVALS))
    return _run(path, arg)


def _split_arg(name: str) -> tuple[str, str]:
    name, _, arg = name.partition(":")
    return name, arg


def _run(path: pathlib.Path, arg: str) -> ml_collections.ConfigDict:
    """Returns the config from the `get_config` of a file."""
    spec = importlib.util.spec_from_file_location(f"mmjax_recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} must define a function get_config.")
    return module.get_config(arg) if arg else module.get_config()


def apply(cfg: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
    """Applies `--config.key=value` arguments in place and checks the config.

    `total_examples` determines `total_steps`.
    """
    for override in overrides:
        _apply(cfg, override)
    cfg.total_steps = resolve(cfg).total_steps


def _apply(cfg: ml_collections.ConfigDict, override: str) -> None:
    """Applies one `--config.a.b=value`."""
    key, equals, text = override.lstrip("-").removeprefix("config.").partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"{override}: overrides have the form --config.key=value.")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    *parents, last = key.split(".")
    check_choice("config key", (parents or [last])[0], _KEYS)
    node = cfg
    for depth, parent in enumerate(parents):
        child = node.get(parent)
        if child is None or isinstance(child, str):
            # A section that does not exist yet, or a name ('vit_tiny') that gets options.
            child = ml_collections.ConfigDict({"name": child} if child else {})
            with node.ignore_type():
                node[parent] = child
        elif not isinstance(child, ml_collections.ConfigDict):
            at = ".".join(parents[: depth + 1])
            raise UserError(f"{override}: config.{at} is {child!r}, which has no keys.")
        node = child
    old = node.get(last)
    if isinstance(old, str) and isinstance(value, int | float) and not isinstance(value, bool):
        value = text
    if isinstance(old, tuple | list) and not isinstance(value, tuple | list):
        value = (value,)
    if isinstance(old, bool | int | float):
        convert(float if isinstance(old, float) else type(old), value, key)
    with node.ignore_type():  # what the section configures checks the type
        node[last] = value


def to_json(cfg: Config | Mapping[str, Any]) -> str:
    """Returns a config as JSON."""
    values = dataclasses.asdict(cfg) if isinstance(cfg, Config) else plain(cfg)
    return json.dumps(values, indent=2, sort_keys=True)


def from_json(text: str) -> ml_collections.ConfigDict:
    """Returns a config from JSON; lists become tuples."""
    return ml_collections.ConfigDict(plain(json.loads(text)))
