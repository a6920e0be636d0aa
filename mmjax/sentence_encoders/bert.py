"""Runs published BERT sentence encoders (MiniLM, bge-*-en, …) in JAX on all devices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from mmjax import sharding
from mmjax.checkpoints.checksums import fingerprint
from mmjax.errors import UserError
from mmjax.sentence_encoders import bert_files
from mmjax.sentence_encoders.base import Encoder
from mmjax.sentence_encoders.bert_model import BertModel
from mmjax.state import ModelDef

# Batches are padded to one of these numbers of tokens; each length is compiled once.
LENGTHS = (8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512)


class BertEncoder(Encoder):
    """A published BERT sentence encoder.

    Args:
      directory: The model; see `mmjax.sentence_encoders.bert_files`.
      dtype: Type of the computation.
      batch_size: Texts per batch, over all devices. None for 32 per CPU, which fits its cache, or
        256 per accelerator.
      max_length: Maximum number of tokens of a text, with [CLS] and [SEP]; None for the model's.

    Attributes:
      max_length: Maximum number of tokens of a text.
      fingerprint: Hash of the weights.

    Raises:
      UserError: The model cannot be read, or `max_length` is out of range.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        batch_size: int | None = None,
        max_length: int | None = None,
    ):
        cfg, params, self._tokenizer = bert_files.load(directory, dtype=dtype)
        if max_length is not None:
            if not 3 <= max_length <= cfg.max_positions:
                raise UserError(
                    f"--max-length must be from 3 ([CLS], one token, [SEP]) to {cfg.max_positions},"
                    f" the maximum of {directory}; got {max_length}."
                )
            self._tokenizer.enable_truncation(max_length)
        self.max_length: int = self._tokenizer.truncation["max_length"]
        self.width, self.normalized = cfg.encoder.width, cfg.normalize
        self.fingerprint, self._dtype = fingerprint(params), dtype
        self._mesh = sharding.make_mesh()
        devices = self._mesh.size
        if batch_size is None:
            batch_size = devices * (32 if jax.default_backend() == "cpu" else 256)
        self._batch_size = -(-batch_size // devices) * devices
        self._params = jax.device_put(params, sharding.replicated(self._mesh))
        model = ModelDef(lambda rngs: BertModel(cfg, rngs=rngs))
        # By default, accelerators round the factors of float32 products to TF32 or bfloat16.
        precision = "highest" if dtype == "float32" else None

        def run(params, ids, mask):
            with jax.default_matmul_precision(precision):
                return model.bind(params, {})(ids, mask)

        self._run = jax.jit(run)

    def describe(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "max_length": self.max_length,
            "dtype": self._dtype,
        }

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        encoded = self._tokenizer.encode_batch([text.strip() for text in texts])
        ids = [encoding.ids for encoding in encoded]
        embeddings = np.empty((len(texts), self.width), np.float32)
        with jax.set_mesh(self._mesh):
            results = [
                (indices, self._run(self._params, **sharding.make_global(batch, self._mesh)))
                for indices, batch in self._batches(ids)
            ]
            for indices, values in results:
                embeddings[indices] = np.asarray(values)[: len(indices)]
        return embeddings

    def _batches(
        self, ids: Sequence[Sequence[int]]
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yields batches of texts with similar lengths.

        Yields:
          `(indices, batch)`: the indices of the texts, and their token ids and mask.
        """
        lengths = np.array([len(text_ids) for text_ids in ids], np.int64)
        order = np.argsort(-lengths, kind="stable")  # the largest batch first, to fail early
        for first in range(0, len(ids), self._batch_size):
            indices = order[first : first + self._batch_size]
            longest = lengths[indices[0]]
            length = min(next(n for n in (*LENGTHS, longest) if n >= longest), self.max_length)
            tokens = np.zeros((self._batch_size, length), np.int32)
            mask = np.zeros((self._batch_size, length), bool)
            mask[:, 0] = True  # padding examples have one token, and are dropped
            for position, index in enumerate(indices):
                tokens[position, : lengths[index]] = ids[index]
                mask[position, : lengths[index]] = True
            yield indices, {"ids": tokens, "mask": mask}
