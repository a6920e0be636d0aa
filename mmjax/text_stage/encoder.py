"""Embeddings of diagnostic texts and of overlays by a frozen FLAIR."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import config, init_from, sharding
from mmjax.convert.load import load_sources
from mmjax.convert.source_config import config_of
from mmjax.diagnostic_text.validation import shorten
from mmjax.errors import UserError, about
from mmjax.models.distinct import encode_distinct
from mmjax.models.flair import Encoded, Flair
from mmjax.models.flair_maps import text_maps
from mmjax.preprocess.clip_images import clip_images
from mmjax.tasks.predict import make_predict_task


class TextEncoder:
    """A trained FLAIR.

    Args:
      source: A run of --task=flair, or a published file.
      mesh: The devices, each of which gets a copy.
      batch_size: Texts, or images, that are encoded at once.

    Attributes:
      width: Width of the embeddings.

    Raises:
      UserError: The source cannot be read, or is another model.
    """

    def __init__(self, source: str, mesh: jax.sharding.Mesh, *, batch_size: int):
        with about(f"config.text.encoder={source}"):
            cfg = config_of((source,))
            if cfg.task != "flair":
                raise UserError(
                    f"This is a model of --task={cfg.task}. Texts are embedded by FLAIR: pass a "
                    "run of --task=flair, or a published file of FLAIR."
                )
            leaves, where = load_sources((source,))
            built = make_predict_task(config.resolve(cfg), leaves)
            state = init_from.fill(built.task, leaves, where)
        self._model, self._tokenizer = built.task.model, built.tokenizer
        self._state = jax.device_put(state, sharding.replicated(mesh))
        self._batch_size = batch_size
        self._size = built.data.image.size
        self.width = self._model.module.width

    def _bound(self, state: tuple[dict, dict]) -> Flair:
        return self._model.bind(*state)

    @functools.cached_property
    def _encode_texts(self):
        return jax.jit(lambda state, ids: self._bound(state).encode_texts(ids).pooled)

    @functools.cached_property
    def _encode_images(self):
        def encode(state: tuple[dict, dict], images: jax.Array) -> Encoded:
            return self._bound(state).encode_images(clip_images(images, self._size))

        return jax.jit(encode)

    @functools.cached_property
    def _attend(self):
        def attend(state: tuple[dict, dict], images: jax.Array, texts: jax.Array) -> jax.Array:
            model = self._bound(state)
            encoded = model.encode_images(clip_images(images, self._size))
            tokens = jnp.zeros((*texts.shape[:1], 1, texts.shape[-1]), texts.dtype)
            return text_maps(model, encoded, Encoded(texts, tokens)).values

        return jax.jit(attend)

    def shorten(self, text: str) -> str:
        """Returns the leading sentences of a text that fit into the encoder's tokens."""
        limit = self._tokenizer.max_tokens
        return shorten(text, lambda part: len(self._tokenizer.ids([part])[0]) < limit)

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """Returns the words that the vocabulary lacks."""
        return self._tokenizer.unknown_words(texts)

    def texts(self, texts: Sequence[str]) -> jax.Array:
        """Returns the embeddings of texts, float32 [N, D], each distinct one encoded once."""
        ids = self._tokenizer.encode([text or " " for text in texts])
        encode = functools.partial(self._encode_texts, self._state)
        return encode_distinct(encode, ids, batch_size=self._batch_size)

    def images(self, images: np.ndarray) -> jax.Array:
        """Returns the embeddings of images uint8 [N, S, S, 3], float32 [N, D]."""
        return encode_distinct(
            lambda batch: self._encode_images(self._state, batch).pooled,
            images,
            batch_size=self._batch_size,
        )

    def maps(self, images: np.ndarray, texts: jax.Array) -> jax.Array:
        """Returns the attention of texts over images, float32 [N, h, w].

        Args:
          images: uint8 [N, S, S, 3].
          texts: Embeddings [N, D].
        """
        size, count = self._batch_size, len(images)
        parts = []
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            parts.append(self._attend(self._state, images[rows], texts[rows]))
        return jnp.concatenate(parts)[:count]
