"""The five phases of the input pipeline, each a list of named functions.

parse, sample, decode and preprocess work on one example; postprocess works on a batch. Every
function takes a dict of tensors and returns one, and has a name by which it can be replaced or
removed. Keys that start with '_' are private to the pipeline and do not reach the batch.

The phases are stateless. Every random choice is made by `tf.random.stateless_*` with a seed from
`seed_of`, so an example is a function of the data seed and its position in the data order.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import tensorflow as tf

from mmjax.errors import UserError, check_choice

Features = dict[str, tf.Tensor]
Function = Callable[[Features], Features]
# (source [], values [n]) -> values [n]
Resolver = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

PHASES = ("parse", "sample", "decode", "preprocess", "postprocess")


def hide_accelerators() -> None:
    """Keeps TensorFlow away from GPUs and TPUs, whose memory it would take from JAX."""
    for device_type in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], device_type)
        except RuntimeError:  # TensorFlow is already initialized in this process.
            pass


hide_accelerators()


def seed_of(features: Features, name: str) -> tf.Tensor:
    """Returns the seed of a random choice for this example.

    Args:
      features: The example; `_seed`, int64 [2], holds the data seed and the example's position.
      name: Name of the random choice. Different names give independent seeds.

    Returns:
      int64 [2].
    """
    return features["_seed"] + tf.constant([zlib.crc32(name.encode()), 0], tf.int64)


def _identity(source: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    del source
    return values


class Pipeline:
    """Five phases of named functions.

    The parse phase starts with the function 'record'. It reads the features requested with
    `context` and `sequence` from the serialized record `_serialized` into `_context/KEY` and
    `_sequence/KEY`.

    Attributes:
      resolve: Function (source [], values [n]) -> values [n] that the sample phase calls with the
        encoded frames it has chosen; see `mmjax.data.pipeline.readers.resolver`.
    """

    def __init__(self) -> None:
        self._phases: dict[str, dict[str, Function]] = {phase: {} for phase in PHASES}
        self._context: dict[str, tf.io.RaggedFeature] = {}
        self._sequence: dict[str, tf.io.RaggedFeature] = {}
        self.resolve: Resolver = _identity
        self.add("parse", "record", self._parse_record)

    def context(self, key: str, dtype: tf.DType) -> None:
        """Requests a feature of the record's context: 1-D, empty if the record lacks it."""
        self._context[key] = tf.io.RaggedFeature(dtype)

    def sequence(self, key: str, dtype: tf.DType) -> None:
        """Requests a feature list: ragged [features, values], empty if the record lacks it."""
        self._sequence[key] = tf.io.RaggedFeature(dtype)

    def add(self, phase: str, name: str, function: Function, *, before: str | None = None) -> None:
        """Adds a function to a phase.

        Args:
          phase: One of `PHASES`.
          name: Name of the function, unique in its phase.
          function: Function from features to features.
          before: Name of the function to insert it before; None appends it.

        Raises:
          UserError: The phase or `before` does not exist, or the phase already has the name.
        """
        functions = self._functions(phase)
        if name in functions:
            raise UserError(
                f"The phase {phase!r} already has a function {name!r}. Use replace() to change it."
            )
        if before is not None:
            check_choice(f"function of the phase {phase!r}", before, functions)
        items = list(functions.items())
        index = list(functions).index(before) if before is not None else len(items)
        self._phases[phase] = dict([*items[:index], (name, function), *items[index:]])

    def replace(self, phase: str, name: str, function: Function) -> None:
        """Replaces a function, in the same position.

        Raises:
          UserError: The phase or the function does not exist.
        """
        check_choice(f"function of the phase {phase!r}", name, self._functions(phase))
        self._phases[phase][name] = function

    def remove(self, phase: str, name: str) -> None:
        """Removes a function.

        Raises:
          UserError: The phase or the function does not exist.
        """
        check_choice(f"function of the phase {phase!r}", name, self._functions(phase))
        del self._phases[phase][name]

    def names(self) -> dict[str, tuple[str, ...]]:
        """Returns the names of the functions of each phase, in order."""
        return {phase: tuple(functions) for phase, functions in self._phases.items()}

    def functions(self, *phases: str) -> list[Function]:
        """Returns the functions of these phases, in order."""
        return [function for phase in phases for function in self._phases[phase].values()]

    def example(self, features: Features) -> Features:
        """Returns one example: applies the first four phases.

        Args:
          features: `_serialized`, `_seed`, and further private features of the caller.
        """
        return self._apply(features, PHASES[:-1])

    def batch(self, features: Features) -> Features:
        """Returns a batch of examples after the last phase."""
        return self._apply(features, PHASES[-1:])

    def _apply(self, features: Features, phases: tuple[str, ...]) -> Features:
        for function in self.functions(*phases):
            features = function(features)
        return {key: value for key, value in features.items() if not key.startswith("_")}

    def _functions(self, phase: str) -> dict[str, Function]:
        check_choice("phase", phase, PHASES)
        return self._phases[phase]

    def _parse_record(self, features: Features) -> Features:
        # Ragged features copy values as they are. Sparse ones would add an index per audio sample.
        context, sequence = tf.io.parse_single_sequence_example(
            features["_serialized"], self._context or None, self._sequence or None
        )
        return (
            features
            | {f"_context/{key}": value for key, value in context.items()}
            | {f"_sequence/{key}": value for key, value in sequence.items()}
        )
