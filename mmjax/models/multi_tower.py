"""The base class of all models: one tower per modality, with separate encoders or a shared one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from mmjax import config
from mmjax.errors import UserError, check_choice
from mmjax.models.blocks.inputs import InputError
from mmjax.models.blocks.noise import split_key
from mmjax.models.blocks.transformer import Encoder, EncoderConfig
from mmjax.models.towers.registry import Spec, as_dict, build_tower, find_tower, tower_options


class MultiTower(nnx.Module):
    """One tower per modality.

    Each tower is an attribute with the name of its modality, which is the first part of the paths
    of its parameters.

    Args:
      towers: {modality: spec of `build_tower`}.
      encoder: Options of one encoder for all towers, the attribute `encoder`. None gives each
        tower its own encoder.
      rngs: Random number generators for initialization.
      **shared: Options that apply to all towers (dtype, remat, dropout_rate, …).

    Raises:
      UserError: An unknown tower or option, or a shared option that some tower does not have.
    """

    # Further keys of the config section of the model, for error messages.
    OPTIONS: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        towers: Mapping[str, Spec],
        encoder: Mapping[str, Any] | None = None,
        rngs: nnx.Rngs,
        **shared: Any,
    ):
        self.modalities = tuple(towers)
        self._check_shared(towers, shared)
        encoder_config = None
        if encoder is not None:
            encoder_config = EncoderConfig(**config.keywords(EncoderConfig, encoder, "model"))
            self.encoder = Encoder(encoder_config, rngs=rngs)
        for modality, spec in towers.items():
            tower = build_tower(
                spec,
                rngs=rngs,
                where=self.tower_key(modality),
                modality=modality,
                encoder=encoder_config,
                shared=shared,
            )
            setattr(self, modality, tower)

    @staticmethod
    def tower_key(modality: str) -> str:
        """Returns the config key of a tower without 'config.'."""
        return f"model.{modality}"

    def _check_shared(self, towers: Mapping[str, Spec], shared: Collection[str]) -> None:
        """Raises UserError if an option for all towers is not an option of each of them."""
        names = {modality: as_dict(spec).get("name") for modality, spec in towers.items()}
        options = {
            modality: tower_options(find_tower(name, self.tower_key(modality), modality).cls)
            for modality, name in names.items()
        }
        known = {option for valid in options.values() for option in valid}
        config.check_keys(shared, sorted(known | set(self.OPTIONS)), "model")
        for key in shared:
            lacking = [modality for modality, valid in options.items() if key not in valid]
            if lacking:
                others = [f"config.{self.tower_key(m)}.{key}" for m in towers if m not in lacking]
                without = [f"config.{self.tower_key(m)} ({names[m]!r})" for m in lacking]
                raise UserError(
                    f"config.model.{key} applies to all towers, but {' and '.join(without)} has no "
                    f"option {key!r}. Set it for single towers instead: {', '.join(others)}."
                )

    def run(
        self,
        inputs: Mapping[str, jax.Array],
        key: jax.Array | None,
        *,
        frozen: Collection[str] = (),
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Encodes a batch.

        Args:
          inputs: {modality: array [N_m, …]}.
          key: Random key of dropout and DropToken in training; None in evaluation.
          frozen: Modalities whose towers always run in evaluation mode.

        Returns:
          Pooled features, {modality: float32 [N_m, D_m]}, and tokens, {modality: [N_m, …, D_m]}.

        Raises:
          UserError: A modality without a tower, or an input that does not fit its tower.
        """
        for modality in inputs:
            check_choice("modality", modality, self.modalities)
        names = (*self.modalities, "encoder")
        keys = dict(zip(names, split_key(key, len(names)), strict=True))
        keys |= dict.fromkeys(frozen)
        if not hasattr(self, "encoder"):
            outputs = [self._call("__call__", m, x, key=keys[m]) for m, x in inputs.items()]
        else:
            embedded = [self._call("embed", m, x, key=keys[m]) for m, x in inputs.items()]
            tokens, masks = zip(*embedded, strict=True)
            encoded = self.encoder.together(tokens, key_masks=masks, key=keys["encoder"])
            outputs = [getattr(self, m).finish(y) for m, y in zip(inputs, encoded, strict=True)]
        return tuple(dict(zip(inputs, part, strict=True)) for part in zip(*outputs, strict=True))

    def map_modalities(self) -> tuple[str, ...]:
        """Returns the modalities whose towers have `feature_maps`."""
        return tuple(m for m in self.modalities if hasattr(getattr(self, m), "feature_maps"))

    def feature_maps(self, modality: str, x: jax.Array) -> dict[str, jax.Array]:
        """Returns the feature maps {name: [N, h, w, C]} of images, in evaluation mode.

        Args:
          modality: One of `map_modalities`.
          x: The images, float [N, H, W, 3], of any size that the tower takes.

        Raises:
          UserError: Images that do not fit the tower.
        """
        return self._call("feature_maps", modality, x)

    def tower_flops(self, modality: str, shape: Sequence[int], *, train: bool) -> tuple[float, int]:
        """Returns the forward operations for one example, and its number of inputs.

        Args:
          modality: Modality of the tower.
          shape: Shape of an example's input. Axes in front of the tower's own, such as views [V, …]
            and captions [L, W], multiply.
          train: Whether to count training, in which tokens may be dropped.

        Raises:
          UserError: An input that does not fit the tower.
        """
        tower = getattr(self, modality)
        lead = len(shape) - tower.input_ndim
        if lead < 0:
            with self._named(modality):
                raise InputError(
                    f"The tower expects inputs with {tower.input_ndim} axes; got shape "
                    f"{tuple(shape)}."
                )
        count = math.prod(shape[:lead])
        return count * self._call("flops", modality, shape[lead:], train=train), count

    def _call(self, method: str, modality: str, *args: Any, **kwargs: Any) -> Any:
        with self._named(modality):
            return getattr(getattr(self, modality), method)(*args, **kwargs)

    @contextlib.contextmanager
    def _named(self, modality: str) -> Iterator[None]:
        """Adds the config keys of the tower and its data to an `InputError`."""
        try:
            yield
        except InputError as error:
            key = self.tower_key(modality)
            raise UserError(
                f"config.{key}: {error} Change the inputs (config.data.{modality}) or the options "
                f"of the tower (config.{key})."
            ) from None
