"""Parses `dmvr:package.module:Factory(…)` and makes the factory of a split."""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import inspect
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from mmjax import registry
from mmjax.errors import UserError

_PREFIX = "dmvr:"
_EXAMPLE = "dmvr:package.module:Factory(base_dir='/data', subset='train')"
_INSTALL = {
    "dmvr": "pip install git+https://github.com/google-deepmind/dmvr.git",
    "clip": "pip install git+https://github.com/openai/CLIP.git (dmvr.tokenizers imports it)",
    "tensorflow_text": "pip install tensorflow-text, in the version of TensorFlow",
}
# {factory without a parameter for the split: {constructor arguments: the only split it may serve}}
_ONLY_SPLIT: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()


def is_stream(spec: str) -> bool:
    """Returns whether a source specification names a factory."""
    return spec.startswith(_PREFIX)


def make_factory(spec: str, split: str, *, trained_on: str = "") -> Any:
    """Returns a new factory object for a split.

    The split is passed by keyword: as `subset`, or as `split` if the default of that parameter is
    text. In DMVR and VATT, `split` is the number of a fold.

    Args:
      spec: `dmvr:package.module:Factory`, where Factory is a class, a function that returns a
        factory or a class, a `functools.partial`, or an object. Literal keyword arguments may
        follow in parentheses.
      split: Split to read.
      trained_on: The split that training reads from the same specification, if it does.

    Raises:
      UserError: The object cannot be imported or made, is not a factory, or cannot be told which
        split to read.
    """
    reference, keywords = _parse(spec)
    found = _import(spec, reference)
    if _is_object(found):
        if keywords:
            raise UserError(
                f"{spec}: {reference} is an object, not a class or function, so it takes no "
                f"arguments. Remove {', '.join(keywords)}."
            )
        _check_methods(found, spec)
        _check_only_split(found, spec, (trained_on, split), "")
        return _own_copy(found, spec)
    factory, told = _call(found, keywords, spec, split)
    if not _is_object(factory):  # a function that returns the class, as VATT's get_ds_factory
        factory, told = _call(factory, {}, spec, split)
    if not told:
        _check_only_split(found, spec, (trained_on, split), repr(sorted(keywords.items())))
    _check_methods(factory, spec)
    _check_shards(factory, spec)
    return factory


def _parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Returns `('package.module:Factory', keyword arguments)`. No code is executed."""
    text = spec.removeprefix(_PREFIX).strip()
    reference, parenthesis, arguments = text.partition("(")
    if not registry.is_reference(reference):
        raise UserError(
            f"{spec}: a DMVR factory is specified as dmvr:package.module:Factory, with keyword "
            f"arguments if needed, for example {_EXAMPLE}."
        )
    if not parenthesis:
        return reference, {}
    try:
        call = ast.parse(f"f({arguments}", mode="eval").body
        valid = isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if not valid or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError("expected one pair of parentheses with name=value pairs")
        return reference, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise UserError(
            f"{spec}: the arguments ({arguments} are not keyword arguments with literal values "
            f"({error}). Write them as in {_EXAMPLE}."
        ) from error


def _import(spec: str, reference: str) -> Any:
    try:
        importlib.import_module(reference.partition(":")[0])
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _INSTALL:
            raise UserError(
                f"{spec} needs the package {missing}, which is not installed ({error}). Install "
                f"it: {_INSTALL[missing]}."
            ) from error
    except ImportError:
        pass  # reported by `resolve`
    try:
        return registry.resolve("factory", reference, {})
    except UserError as error:
        raise UserError(f"{spec}: {error}") from error


def _is_object(value: Any) -> bool:
    """Returns whether a value is an object rather than a class or function that makes one."""
    return not (
        inspect.isclass(value)
        or inspect.isroutine(value)
        or isinstance(value, functools.partial | functools.partialmethod)
    )


def _own_copy(factory: Any, spec: str) -> Any:
    """Returns a copy to configure; a factory can be configured only once."""
    if getattr(factory, "_is_configured", False):
        return factory
    try:
        return copy.deepcopy(factory)
    except Exception as error:
        raise UserError(
            f"{spec} is an object that cannot be copied ({type(error).__name__}: {error}). "
            "Training and each evaluation configure a factory of their own. Specify its class, or "
            "a function that returns a new one."
        ) from error


def _call(
    make: Callable[..., Any], keywords: Mapping[str, Any], spec: str, split: str
) -> tuple[Any, bool]:
    """Returns `make(…)` with the arguments of the specification, and whether it took the split."""
    _check_methods(make, spec)
    bound = make.keywords if isinstance(make, functools.partial) else {}
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # built in another language
        parameters = {}
    _check_arguments(parameters, keywords, spec)
    name = _split_parameter(parameters)
    fixed = ({**bound, **keywords}).get(name) if name else None
    if fixed is not None and fixed != split:
        raise UserError(
            f"{spec} fixes {name}={fixed!r}, but the split {split!r} is to be read: it would "
            f"return other examples than reported. Remove {name}, or read the split {fixed!r} "
            "(config.data.split; `split` or `train_split` of an evaluator)."
        )
    if name:
        keywords = {**keywords, name: split}
    missing = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in keywords
    ]
    if missing:
        example = ", ".join(f"{key}=…" for key in missing)
        raise UserError(
            f"{spec} needs the constructor arguments {', '.join(missing)}. Add them to the "
            f"specification: {spec.partition('(')[0]}({example})."
        )
    try:
        return make(**keywords), name is not None
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
        raise UserError(
            f"{spec} cannot be made with ({given}): {type(error).__name__}: {error}"
        ) from error


def _check_arguments(parameters: Mapping[str, Any], given: Mapping[str, Any], spec: str) -> None:
    """Raises UserError for arguments of the specification that the constructor does not take."""
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = [key for key in given if key not in parameters]
    if unknown:
        raise UserError(
            f"{spec}: the constructor takes no {', '.join(unknown)}; it takes "
            f"{', '.join(parameters) or 'no arguments'}. Arguments of its _build() belong in "
            "config.data.dmvr.build."
        )


def _split_parameter(parameters: Mapping[str, inspect.Parameter]) -> str | None:
    """Returns the name of the parameter for the split, or None."""
    if "subset" in parameters:
        return "subset"
    split = parameters.get("split")
    textual = split is not None and (
        isinstance(split.default, str) or split.annotation in (str, "str")
    )
    return "split" if textual else None


def _check_only_split(make: Any, spec: str, splits: tuple[str, str], arguments: str) -> None:
    """Raises UserError if a factory that cannot be told the split is to serve a second one.

    It would return the same examples for both, so an evaluation would score training examples.
    """
    served = {}
    try:
        served = _ONLY_SPLIT.setdefault(make, {})
    except TypeError:  # not hashable, or no weak references
        pass
    for split in filter(None, splits):
        first = served.setdefault(arguments, split)
    if first != split:
        raise UserError(
            f"{spec} has no constructor argument `subset`, so it returns the same examples for the "
            f"splits {first!r} and {split!r}. Add that argument to the factory, or use another "
            "factory for one of them (`data` of the evaluator)."
        )


def _check_methods(factory: Any, spec: str) -> None:
    """Raises UserError for an object or class that lacks a method of DMVR's factories."""
    if not _is_object(factory) and not inspect.isclass(factory):
        return  # a function: its result is checked
    missing = [name for name in ("configure", "make_dataset") if not hasattr(factory, name)]
    if not missing:
        return
    name = factory.__name__ if inspect.isclass(factory) else type(factory).__name__
    loader = hasattr(factory, "dmvr_factory") or (
        inspect.isclass(factory)
        and {"dataset_id", "params"} <= inspect.signature(factory).parameters.keys()
    )
    advice = "See docs/dmvr.md for the methods that mmjax calls."
    if loader:
        advice = (
            "It is a loader of VATT, which wraps a factory: specify the class of its attribute "
            "dmvr_factory instead."
        )
    raise UserError(
        f"{spec} is not a DMVR factory: {name} has no method "
        f"{' and '.join(f'{name}()' for name in missing)}. {advice}"
    )


def _check_shards(factory: Any, spec: str) -> None:
    """Raises UserError if the factory has no shards, or if a local one does not exist."""
    shards = getattr(factory, "_shards", None)
    if not isinstance(shards, list | tuple):
        return
    if not shards:
        raise UserError(
            f"{spec} found no shards: its list of files is empty. Check the directory and the "
            "subset that its constructor uses."
        )
    paths = [os.fspath(shard) for shard in shards if isinstance(shard, str | os.PathLike)]
    missing = [path for path in paths if "://" not in path and not os.path.exists(path)]
    if missing:
        raise UserError(
            f"{spec}: {len(missing)} of {len(shards)} shards do not exist, the first is "
            f"{missing[0]}. Check the directory and the subset that its constructor uses."
        )
