"""A word-level tokenizer, and a task whose text tower sums one vector per word."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

VOCABULARY = ["", "a", "cold", "feels", "hard", "it", "soft", "wet", "and", "dry", "black ice"]
WIDTH = 8


class FakeTokenizer:
    """Maps words to their index in VOCABULARY; commas and periods have ids of their own."""

    def __init__(self):
        self.vocabulary = [*VOCABULARY, ",", "."]

    def encode(self, texts):
        ids = np.zeros((len(texts), WIDTH), np.int32)
        for text_ids, text in zip(ids, texts, strict=True):
            text = text.replace("black ice", "black_ice").replace(",", " ,").replace(".", " .")
            words = [word.replace("_", " ") for word in text.split()]
            text_ids[: len(words)] = [self.vocabulary.index(word) for word in words]
        return ids

    def decode(self, ids):
        return " ".join(self.vocabulary[i] for i in ids if i)


class TouchTask:
    """Takes touch and image embeddings from the batch; sums one vector per word of a caption."""

    def __init__(self, dim=6, seed=0):
        self.table = np.random.default_rng(seed).normal(size=(len(FakeTokenizer().vocabulary), dim))
        self.table[[0, 11, 12]] = 0
        self.predict = {"features": self.features, "inputs": self.inputs}

    def embed(self, ids):
        return jnp.asarray(self.table, jnp.float32)[ids].sum(axis=-2)

    def features(self, params, extra, batch):
        outputs = {}
        if "text" in batch:
            outputs["text/touch"] = outputs["text/image"] = (
                self.embed(batch["text"]) * params["scale"]
            )
        for modality, other in (("touch", "image"), ("image", "touch")):
            if modality in batch:
                outputs[f"{modality}/text"] = outputs[f"{modality}/{other}"] = batch[modality]
        return outputs

    def inputs(self, params, extra, batch):
        outputs = {"text": batch["text"].astype("float32")} if "text" in batch else {}
        for modality in ("touch", "image"):
            if modality in batch:  # [B, V, D] → images in a color per example
                color = 40 * batch[modality][..., None, None, :3] + 128
                outputs[modality] = jnp.broadcast_to(color, (*batch[modality].shape[:2], 12, 9, 3))
        return outputs
