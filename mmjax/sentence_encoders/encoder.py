"""Captions → embeddings with a published sentence encoder, on all devices.

`SentenceModel` runs BERT's kind (MiniLM, bge-*-en …) in JAX, without PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from mmjax import sharding
from mmjax.checkpoints import manager as checkpoint
from mmjax.errors import UserError
from mmjax.sentence_encoders import weights
from mmjax.sentence_encoders.bert import SentenceEncoder
from mmjax.state import ModelDef

# Texts of similar lengths are computed together, padded to one of these: each is compiled once.
LENGTHS = (8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512)


class SentenceModel:
    """A sentence encoder with published weights.

    Args:
      folder: config.json, model.safetensors, tokenizer.json …, see `mmjax.sentence_encoders.weights`.
      dtype: of computation: float32 or bfloat16.
      batch_size: texts computed at a time, over all devices; None: 32 on each CPU (more leave its
        cache), 256 on each accelerator.
      max_length: pieces of a text at most, [CLS] and [SEP] among them; None: as the folder says.

    Attributes:
      width: of the embeddings.
      normalized: embeddings have the length 1.
      max_length: see above.
      fingerprint: of the weights.

    Raises:
      UserError: see `mmjax.sentence_encoders.weights.load`; or a length that the model does not have.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        dtype: str = "float32",
        batch_size: int | None = None,
        max_length: int | None = None,
    ):
        cfg, params, self._tokenizer = weights.load(directory, dtype=dtype)
        if max_length is not None:
            if not 3 <= max_length <= cfg.max_positions:
                raise UserError(
                    f"max_length={max_length}: {directory} takes 3 to {cfg.max_positions} pieces."
                )
            self._tokenizer.enable_truncation(max_length)
        self.max_length: int = self._tokenizer.truncation["max_length"]
        self.width, self.normalized = cfg.encoder.width, cfg.normalize
        self.fingerprint = checkpoint.fingerprint(params)
        self._mesh = sharding.make_mesh()
        devices = self._mesh.size
        if batch_size is None:
            batch_size = devices * (32 if jax.default_backend() == "cpu" else 256)
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1.")
        self._batch_size = -(-batch_size // devices) * devices
        self._params = jax.device_put(params, sharding.replicated(self._mesh))
        model = ModelDef(lambda rngs: SentenceEncoder(cfg, rngs=rngs))
        # Accelerators round the factors of float32 products to TF32 or bfloat16 if they may.
        precision = "highest" if dtype == "float32" else None

        def run(params, ids, mask):
            with jax.default_matmul_precision(precision):
                return model.bind(params, {})(ids, mask)

        self._run = jax.jit(run)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [len(texts), width]."""
        encoded = self._tokenizer.encode_batch([text.strip() for text in texts])
        ids = [encoding.ids for encoding in encoded]
        found = np.empty((len(texts), self.width), np.float32)
        with jax.set_mesh(self._mesh):
            results = [
                (rows, self._run(self._params, **sharding.make_global(batch, self._mesh)))
                for rows, batch in self._batches(ids)
            ]
            for rows, values in results:
                found[rows] = np.asarray(values)[: len(rows)]
        return found

    def _batches(
        self, ids: Sequence[Sequence[int]]
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """(which texts, their pieces and mask), texts of similar lengths together."""
        lengths = np.array([len(row) for row in ids], np.int64)
        order = np.argsort(-lengths, kind="stable")  # what needs most memory comes first
        for first in range(0, len(ids), self._batch_size):
            rows = order[first : first + self._batch_size]
            longest = lengths[rows[0]]
            length = min(next(n for n in (*LENGTHS, longest) if n >= longest), self.max_length)
            pieces = np.zeros((self._batch_size, length), np.int32)
            mask = np.zeros((self._batch_size, length), bool)
            mask[:, 0] = True  # rows that fill the batch up: one token, whose embedding is not used
            for place, row in enumerate(rows):
                pieces[place, : lengths[row]] = ids[row]
                mask[place, : lengths[row]] = True
            yield rows, {"ids": pieces, "mask": mask}
