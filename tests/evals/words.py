"""A tokenizer of whole words, and a task whose text tower sums a vector for each word."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

VOCABULARY = ["", "a", "cold", "feels", "hard", "it", "soft", "wet", "and", "dry", "black ice"]
WIDTH = 8


class Words:
    """Ids are places in VOCABULARY; commas and full stops are words with an id of their own."""

    def __init__(self):
        self.words = [*VOCABULARY, ",", "."]

    def encode(self, texts):
        rows = np.zeros((len(texts), WIDTH), np.int32)
        for row, text in zip(rows, texts, strict=True):
            text = text.replace("black ice", "black_ice").replace(",", " ,").replace(".", " .")
            words = [word.replace("_", " ") for word in text.split()]
            row[: len(words)] = [self.words.index(word) for word in words]
        return rows

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids if i)


class TouchTask:
    """Embeddings of touch are in the batch, in channels; captions are the sum of their words."""

    def __init__(self, dim=6, seed=0):
        self.table = np.random.default_rng(seed).normal(size=(len(Words().words), dim))
        self.table[[0, 11, 12]] = 0
        self.predict = {"features": self.features, "inputs": self.inputs}

    def embed(self, ids):
        return jnp.asarray(self.table, jnp.float32)[ids].sum(axis=-2)

    def features(self, params, extra, batch):
        found = {}
        if "text" in batch:
            found["text/touch"] = found["text/image"] = self.embed(batch["text"]) * params["scale"]
        for modality, other in (("touch", "image"), ("image", "touch")):
            if modality in batch:
                found[f"{modality}/text"] = found[f"{modality}/{other}"] = batch[modality]
        return found

    def inputs(self, params, extra, batch):
        found = {"text": batch["text"].astype("float32")} if "text" in batch else {}
        for modality in ("touch", "image"):
            if modality in batch:  # [B, V, D] → a picture whose colour is the example's
                colour = 40 * batch[modality][..., None, None, :3] + 128
                found[modality] = jnp.broadcast_to(colour, (*batch[modality].shape[:2], 12, 9, 3))
        return found
