"""Configures a DMVR factory as the config says, checks it, and makes its dataset."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline.config import DataConfig
from mmjax.data.pipeline.dmvr.construct import make_factory
from mmjax.data.pipeline.dmvr.options import Dmvr, Requirement, refuse, requirements
from mmjax.errors import UserError

log = logging.getLogger(__name__)

# Endings of the names that DMVR and VATT give to the random functions of training.
_RANDOM = ("_random_sample", "_random_crop", "_random_flip", "_random_crop_resize", "_color_jitter")


class Factory:
    """A configured factory for one split.

    Args:
      spec: The specification; see `construct.make_factory`.
      cfg: The section `data`.
      split: Split to read.
      train: Whether to read for training.

    Attributes:
      name: The specification.
      object: The factory.
      pad: Token id of padding.
      vocab_size: Size of the vocabulary of the factory's tokenizer; None if it is not known.

    Raises:
      UserError: The factory cannot be made or configured, does not follow an option that the config
        needs, or returns training augmentation for evaluation.
    """

    def __init__(self, spec: str, cfg: DataConfig, *, split: str, train: bool):
        self.name, self._train = spec, train
        self._options = cfg.dmvr or Dmvr()
        trained_on = cfg.split if spec in cfg.specs else ""
        self.object = make_factory(spec, split, trained_on=trained_on)
        shards = getattr(self.object, "_shards", ())
        self._shards = list(shards) if isinstance(shards, list | tuple) else []
        self._configured_before = bool(getattr(self.object, "_is_configured", False))
        self._takes = _Keywords(self.object)
        if self._configured_before:
            self._takes = _Keywords(None)
        self._configure(requirements(cfg, train=train), cfg)
        self._check_training()
        self._initialize_tokenizers()

    def _configure(self, expected: list[Requirement], cfg: DataConfig) -> None:
        """Calls `configure` with everything that the factory takes."""
        keys = {requirement.key for requirement in expected}
        unknown = [key for key in self._options.ignore if key not in keys]
        if unknown and self._train:
            raise UserError(
                f"config.data.dmvr.ignore={self._options.ignore!r}: {', '.join(unknown)} is not "
                f"among the options that {self.name} may lack. Valid: {', '.join(sorted(keys))}."
            )
        build = self._options.build
        keywords, missing = {}, []
        for requirement in expected:
            chosen = self._takes.choose(requirement)
            if chosen is None:
                if not any(name in build for names in requirement.names for name in names):
                    missing.append(requirement)
            else:
                keywords |= chosen
                unsure = requirement.needed and not all(map(self._takes.explicit, chosen))
                if unsure:
                    log.warning(
                        "%s takes %s only through **kwargs, so it may ignore %s=%r.",
                        self.name,
                        ", ".join(chosen),
                        requirement.key,
                        requirement.value,
                    )
        refuse(self.name, missing, self._takes.describe(), cfg)
        keywords |= build
        self._check_keywords(keywords)
        self._says_training = "is_training" in keywords and self._takes.explicit("is_training")
        if self._configured_before:
            return
        given = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
        with self._reported(f"configure({given})"):
            self.object.configure(**keywords)
        log.info("%s is configured with %s.", self.name, given or "no arguments")

    def _check_keywords(self, keywords: dict[str, Any]) -> None:
        """Raises UserError for keywords that the factory lacks, or that it requires."""
        unknown = [key for key in self._options.build if not self._takes.accepts(key)]
        if unknown:
            raise UserError(
                f"config.data.dmvr.build: {self.name} takes no {', '.join(unknown)}; it takes "
                f"{self._takes.describe()}."
            )
        missing = [key for key in self._takes.required if key not in keywords]
        if missing:
            raise UserError(
                f"{self.name} requires {', '.join(missing)} in its _build(). Set it in the config, "
                f"for example config.data.dmvr.build={{{missing[0]!r}: …}}."
            )

    def _check_training(self) -> None:
        """Raises UserError if the factory lists random functions for evaluation.

        Functions may have other names, so `StreamEvalData` also compares two passes.
        """
        names = _random_functions(self.object)
        if self._train:
            if names == [] and not self._says_training:
                log.warning(
                    "%s takes no is_training and has no random functions: training reads the same "
                    "frames and crops in every epoch.",
                    self.name,
                )
            return
        if names:
            raise UserError(
                f"{self.name} is configured for training: evaluation would read random crops "
                f"({', '.join(names)}). Its _build() must take is_training, or derive it from the "
                "constructor's argument `subset`."
            )

    def _initialize_tokenizers(self) -> None:
        """Calls `initialize` of every tokenizer of the factory, before its dataset is traced."""
        self.pad, self.vocab_size = 0, None
        for name, value in vars(self.object).items() if hasattr(self.object, "__dict__") else ():
            if not callable(getattr(value, "initialize", None)) or not (
                name == "tokenizer" or hasattr(value, "string_tensor_to_indices")
            ):
                continue
            with self._reported(f"{name}.initialize()"):
                value.initialize()
                self.pad = int(getattr(value, "pad_token", None) or 0)
                size = getattr(value, "vocab_size", None)
                self.vocab_size = int(size) if size else None

    def batches(
        self,
        *,
        batch_size: int,
        seed: int | None = None,
        skip: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the factory's batches: endless in training, all examples once in evaluation.

        Args:
          batch_size: Number of examples per batch.
          seed: Seed of TensorFlow's random operations; None leaves it unchanged.
          skip: Number of batches to drop.
          part: `(index, count)`: read only the shards index, index + count, …

        Raises:
          UserError: Making the dataset or reading it fails.
        """
        index, count = part
        if count > 1:
            self.object._shards = self._shards[index::count]
        if self._options.tune:
            if not hasattr(self.object, "tune"):
                raise UserError(
                    f"config.data.dmvr.tune is set, but {self.name} has no method tune()."
                )
            with self._reported("tune()"):
                self.object.tune(**self._options.tune)
        if self._options.deterministic:
            tf.config.experimental.enable_op_determinism()
        if seed is not None:
            tf.random.set_seed(seed)
        keywords: dict[str, Any] = dict(
            shuffle=self._train,
            num_epochs=-1 if self._train else 1,
            batch_size=batch_size,
            drop_remainder=self._train,
        )
        if "keep_key" in inspect.signature(self.object.make_dataset).parameters:
            keywords["keep_key"] = True  # counts the examples of a batch
        with self._reported("make_dataset()"):
            dataset = self.object.make_dataset(**keywords)
        if skip:
            log.warning(
                "%s is a stream without random access: reading and dropping %d batches to resume.",
                self.name,
                skip,
            )
        iterator = dataset.skip(skip).as_numpy_iterator()
        while True:
            with self._reported("reading a batch"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    @property
    def num_shards(self) -> int:
        """Number of shards that hosts can divide; 0 if the factory does not tell."""
        return len(self._shards)

    @contextlib.contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        """Turns an exception of the factory's code into a UserError with its name."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            log.debug("%s: %s failed.", self.name, what, exc_info=True)
            first = str(error).strip().split("\n", 1)[0][:500]
            raise UserError(
                f"{self.name}: {what} failed with {type(error).__name__}: {first}. Check the "
                "factory, its files and the keys of their records; `--verbosity=1` logs where."
            ) from error


class _Keywords:
    """The keywords that a factory's `configure` takes.

    DMVR's `configure` takes `(*args, **kwargs)` and passes them to `_build`. A `_build` with
    `**kwargs` may pass them to that of a base class, so the names of all of them count.

    Attributes:
      required: Names without a default.
    """

    def __init__(self, factory: Any):
        self._names: dict[str, bool] = {}  # {name: whether it has a default}
        self._any = False
        if factory is not None:
            self._any = self._add(factory.configure)
            if self._any and hasattr(factory, "_build"):
                self._any = self._add_chain(factory)
        self.required = [name for name, has_default in self._names.items() if not has_default]

    def _add_chain(self, factory: Any) -> bool:
        """Adds the parameters of `_build` in the order of inheritance; returns `any`."""
        if "_build" in getattr(factory, "__dict__", {}):  # set on the object
            return self._add(factory._build)
        for base in type(factory).__mro__:
            build = vars(base).get("_build")
            if build is None or getattr(build, "__isabstractmethod__", False):
                continue
            if not self._add(build.__get__(factory, type(factory))):
                return False
        return True

    def _add(self, function: Callable[..., Any]) -> bool:
        """Adds the parameters of a function; returns whether it takes others too."""
        other = False
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                other = True
            elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                has_default = parameter.default is not parameter.empty
                self._names.setdefault(parameter.name, has_default)
        return other

    def explicit(self, name: str) -> bool:
        """Returns whether a parameter has this name."""
        return name in self._names

    def accepts(self, name: str) -> bool:
        """Returns whether the keyword can be passed."""
        return self._any or name in self._names

    def choose(self, requirement: Requirement) -> dict[str, Any] | None:
        """Returns the keywords to pass for an option; None if the factory takes none of them."""
        for names in requirement.names:
            if all(map(self.explicit, names)):
                return dict(names)
        return dict(requirement.names[0]) if self._any and requirement.names else None

    def describe(self) -> str:
        """Returns the keywords for messages."""
        names = [*self._names, *(["**kwargs"] if self._any else [])]
        return ", ".join(names) or "no keywords (it is configured already)"


def _random_functions(factory: Any) -> list[str] | None:
    """Returns the names of training's random functions in the builders of a factory.

    None if the factory does not list its functions.
    """
    names, known = [], False
    for builder in ("sampler_builder", "preprocessor_builder"):
        summary = getattr(getattr(factory, builder, None), "get_summary", None)
        if callable(summary):
            known = True
            names += [str(getattr(entry, "fn_name", "")) for entry in summary()]
    return [name for name in names if name.endswith(_RANDOM)] if known else None
