"""Recipes: finding one by name, and handing its sections to what they configure.

A recipe is an `ml_collections` file with `get_config(arg)`. Sections become keyword arguments, so
an unknown key fails at start, by name, with the nearest valid one.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import math
import pathlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from mmjax.errors import UserError, unknown

CONFIGS = pathlib.Path(__file__).parent / "configs"
EVALS = "evals"  # its folder of sets of evaluators, which are no recipes

# Every top-level key of a recipe and its default; recipes start from `base()`.
_DEFAULTS: dict[str, Any] = dict(
    task="",  # the task this recipe is for; set by the recipe
    seed=0,
    total_steps=1000,
    total_examples=0,  # >0: in place of total_steps, so many examples in batches of batch_size
    batch_size=8,  # global: over all devices and hosts
    accumulate_steps=1,  # microbatches per update; exact for contrastive losses
    ema_decay=0.0,  # 0 keeps no moving average
    clip_shards=0,  # >0: clip the gradient of each of so many parts of a batch (VATT fine-tuning)
    nan_policy="stop",  # or 'skip': leave such a step out, counted, up to `nan_limit`
    nan_limit=10,
    init_from="",  # whose parameters start this run: a run directory, published files, or several
    init_allow=(),  # patterns of parameter paths that `init_from` need not have
    init_map=(),  # (pattern, replacement) pairs that rename the source's paths
    resume_from="",  # a run directory whose whole state starts this run
    log_every=20,
    mesh=dict(data=-1, fsdp=1, tensor=1),
    sharding="dp",
    sharding_rules=(),  # (pattern, axes) pairs that go before the preset's
    checkpoint=dict(every=1000, keep=3, keep_every=0, best="", best_of="max"),
    compilation_cache=True,  # under $MMJAX_CACHE, else ~/.cache/mmjax
    tensorboard=True,
)
_SECTIONS = ("data", "model", "loss", "augment", "optimizer", "evals", "wandb")

# What `--model_arch` may name: VATT's architectures, and the recipe of each for a task.
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
    """A config with every key every task shares, at its default, and empty sections to fill."""
    cfg = ml_collections.ConfigDict(_DEFAULTS)
    cfg.init_from = ml_collections.FieldReference("", field_type=object)  # text or a tuple of texts
    for section in _SECTIONS:
        cfg[section] = ml_collections.ConfigDict()
    return cfg


def check(cfg: ml_collections.ConfigDict) -> None:
    """Checks names, types and ranges of top-level keys, before anything is built."""
    for key, value in cfg.items():
        if key == "init_from" and isinstance(value, tuple | list):
            for source in value:
                _check_type("config.init_from", source, "")
        elif key in _DEFAULTS:
            _check_type(f"config.{key}", value, _DEFAULTS[key])
        elif key in _SECTIONS:
            _check_type(f"config.{key}", value, {})
        else:
            raise unknown("config key", key, [*_DEFAULTS, *_SECTIONS])
    for key in ("total_steps", "batch_size", "accumulate_steps", "log_every"):
        if cfg[key] < 1:
            raise UserError(f"config.{key} must be at least 1, not {cfg[key]}.")
    if cfg.batch_size % cfg.accumulate_steps:
        raise UserError(
            f"config.batch_size={cfg.batch_size} is not divisible by "
            f"config.accumulate_steps={cfg.accumulate_steps}."
        )
    for key in ("clip_shards", "nan_limit", "total_examples"):
        if cfg.get(key, 0) < 0:
            raise UserError(f"config.{key} must be at least 0, not {cfg[key]}.")
    if not 0 <= cfg.ema_decay < 1:
        raise UserError(f"config.ema_decay must be at least 0 and below 1, not {cfg.ema_decay}.")
    if cfg.clip_shards and cfg.batch_size % cfg.clip_shards:
        raise UserError(
            f"config.batch_size={cfg.batch_size} is not divisible by "
            f"config.clip_shards={cfg.clip_shards}."
        )
    if cfg.nan_policy not in ("stop", "skip"):
        raise unknown("config.nan_policy", cfg.nan_policy, ("stop", "skip"))


def _check_type(name: str, value: Any, default: Any) -> None:
    """Raises unless the value is of its default's type; integers are floats too, lists tuples."""
    kinds = {float: (float, int), tuple: (tuple, list), dict: (Mapping, ml_collections.ConfigDict)}
    expected = type(default)
    fits = isinstance(value, kinds.get(expected, expected))
    if not fits or (isinstance(value, bool) and expected is not bool):
        raise UserError(
            f"{name} must be {expected.__name__}, not {value!r} ({type(value).__name__})."
        )
    if expected is dict:
        for key in value:
            if key in default:
                _check_type(f"{name}.{key}", value[key], default[key])


def keywords(
    function: Callable[..., Any], section: Mapping, where: str, *, given: Sequence[str] = ()
) -> dict[str, Any]:
    """A section as keyword arguments of `function`; what it cannot take raises, named `where.key`.

    Args:
      given: arguments that the caller gives itself, and that a section may not.

    Raises:
      UserError: an unknown key, or a value that is not the number, flag or text of the annotation.
    """
    section = plain(section)
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind in kinds and p.name not in (*given, "self")]
    for key in section:
        if key not in known:
            raise unknown("config key", f"{where}.{key}", [f"{where}.{name}" for name in known])
    hints = typing.get_type_hints(function)
    for key, value in section.items():
        hint = hints.get(key)
        union = isinstance(hint, types.UnionType)
        options = typing.get_args(hint) if union else (hint,)
        expected = next((kind for kind in options if kind in (bool, int, float, str)), None)
        if expected and not (value is None and type(None) in options):
            _check_type(f"config.{where}.{key}", value, expected())
    return dict(section)


def plain(value: Any) -> Any:
    """Configs as plain dicts and tuples."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value


def find_recipe(task: str, name: str) -> pathlib.Path:
    """The file of a recipe: a path to a .py file, or the name of one that mmjax brings.

    Raises:
      UserError: no such file or recipe; the message lists what there is for the task.
    """
    if name.endswith(".py"):
        path = pathlib.Path(name)
        if path.is_file():
            return path.resolve()
        if (CONFIGS / name).is_file():
            return CONFIGS / name
        raise UserError(f"--config={name}: no such file.")
    folders = [p.name for p in CONFIGS.iterdir() if p.is_dir()]
    tasks = [name for name in folders if name != EVALS and not name.startswith("_")]
    if task not in tasks:
        raise unknown("--task", task, tasks)
    names = [p.stem for p in (CONFIGS / task).glob("*.py") if not p.stem.startswith("_")]
    folder, _, stem = name.rpartition("/")
    path = CONFIGS / (folder or task) / f"{stem}.py"
    if not path.is_file():
        raise unknown(f"recipe for --task={task}", name, names)
    return path


def choose_recipe(task: str, recipe: str | None, architecture: str | None) -> str:
    """The recipe, with its argument, that `--config` and `--model_arch` name together.

    Args:
      task: whose recipe.
      recipe: `--config`, or None for the architecture's own, without one: 'demo'.
      architecture: `--model_arch`, in any case of letters, or None. It is the recipe's argument.

    Raises:
      UserError: an architecture that is none, or is for another task, or a recipe that has an
        argument already.
    """
    if architecture is None:
        return recipe or "demo"
    name, valid = architecture.lower(), ARCHITECTURES.get(task, {})
    if name not in valid:
        others = [other for other, names in ARCHITECTURES.items() if name in names]
        if others:
            raise UserError(
                f"--model_arch={name} is for --task={others[0]}, not {task}, which takes: "
                f"{', '.join(valid) or 'no --model_arch'}."
            )
        raise unknown(f"--model_arch for --task={task}:", name, valid)
    recipe = recipe or valid[name]
    if recipe.partition(":")[0] == name:  # it is of this architecture whatever its argument
        return recipe
    if ":" in recipe:
        raise UserError(
            f"--config={recipe} and --model_arch={name} both say which variant of the recipe is "
            "meant: give one of them."
        )
    return f"{recipe}:{name}"


def variants(arg: str, *allowed: str) -> set[str]:
    """The words of a recipe's argument, which stand between commas.

    Raises:
      UserError: a word that is not allowed.
    """
    words = {word for word in arg.split(",") if word}
    for word in sorted(words):
        if word not in allowed:
            raise unknown("argument of the recipe:", word, allowed)
    return words


def only(words: set[str], names: Sequence[str], default: str, *, what: str) -> str:
    """The one of `names` among the words of a recipe's argument; `default` if there is none.

    Raises:
      UserError: there are several.
    """
    found = sorted(words & set(names)) or [default]
    if len(found) > 1:
        raise UserError(f"The recipe's argument names more than one {what}: {', '.join(found)}.")
    return found[0]


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """`(flags, overrides)`: the `--config.key=value` arguments apart from the others."""
    overrides = [a for a in argv if a.startswith(("--config.", "-config."))]
    return [a for a in argv if a not in overrides], overrides


def load(task: str, name: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """A recipe with overrides, checked.

    Args:
      task: whose recipe.
      name: recipe or .py file, with `:ARG` for its `get_config` if it takes one.
      overrides: `--config.key=value` arguments; values are Python literals, anything else is a
        string. Keys need not stand in the recipe: what they configure checks them.

    Raises:
      UserError: no such recipe, a recipe for another task, or an override that cannot be.
    """
    name, _, arg = name.partition(":")
    cfg = _run(find_recipe(task, name), arg)
    apply(cfg, overrides)
    if cfg.task != task:
        raise UserError(f"--config={name} is a recipe for --task={cfg.task}, not {task}.")
    return cfg


def load_evals(name: str) -> ml_collections.ConfigDict:
    """A section `evals` that stands in a file of its own, for models of any task.

    Args:
      name: a file of `mmjax/configs/evals` without its ending, or another .py file, with `:ARG` for
        its `get_config` if it takes one.

    Raises:
      UserError: no such file.
    """
    name, _, arg = name.partition(":")
    path = pathlib.Path(name) if name.endswith(".py") else CONFIGS / EVALS / f"{name}.py"
    if not path.is_file():
        names = [p.stem for p in (CONFIGS / EVALS).glob("*.py") if not p.stem.startswith("_")]
        raise unknown("--evals", name, names)
    return _run(path, arg)


def _run(path: pathlib.Path, arg: str) -> ml_collections.ConfigDict:
    """What the `get_config` of a file gives."""
    spec = importlib.util.spec_from_file_location(f"mmjax_recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config.")
    return module.get_config(arg) if arg else module.get_config()


def apply(cfg: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
    """Sets what `--config.key=value` arguments say and what follows from it; checks the whole.

    A length given by examples becomes `total_steps`, with the last batch whole.
    """
    for override in overrides:
        _apply(cfg, override)
    check(cfg)
    if cfg.get("total_examples"):
        cfg.total_steps = math.ceil(cfg.total_examples / cfg.batch_size)


def _apply(cfg: ml_collections.ConfigDict, override: str) -> None:
    """Sets one `--config.a.b=value`."""
    key, equals, text = override.lstrip("-").removeprefix("config.").partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"{override}: write --config.key=value, with '='.")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    *parents, last = key.split(".")
    if not parents and last not in _DEFAULTS and last not in _SECTIONS:
        raise unknown("config key", last, [*_DEFAULTS, *_SECTIONS])
    node = cfg
    for number, parent in enumerate(parents):
        child = node.get(parent)
        if child is None or isinstance(child, str):
            # A section that is not there yet, or a name ('vit_tiny') that gets options of its own.
            child = ml_collections.ConfigDict({"name": child} if child else {})
            with node.ignore_type():
                node[parent] = child
        elif not isinstance(child, ml_collections.ConfigDict):
            at = ".".join(parents[: number + 1])
            raise UserError(f"{override}: config.{at} is {child!r}, which has no keys.")
        node = child
    old = node.get(last)
    if isinstance(old, str) and isinstance(value, int | float) and not isinstance(value, bool):
        value = text
    if isinstance(old, tuple | list) and not isinstance(value, tuple | list):
        value = (value,)
    if isinstance(old, bool | int | float):
        _check_type(f"config.{key}", value, old)
    with node.ignore_type():  # what a value may be is for those to say whom it configures
        node[last] = value


def to_json(cfg: Mapping) -> str:
    return json.dumps(plain(cfg), indent=2, sort_keys=True)


def from_json(text: str) -> ml_collections.ConfigDict:
    def tuples(value):
        if isinstance(value, list):
            return tuple(tuples(item) for item in value)
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return value

    return ml_collections.ConfigDict(tuples(json.loads(text)))
