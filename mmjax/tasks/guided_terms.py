"""Loss terms of `--task=guided`: SimCLR, SimSiam, NNCLR, SwAV, CLIP, and CLIP with neighbors.

A term is a dataclass with a method `loss`. Its fields are the keys of its section
`config.loss.<term>`. `type='package.module:Name'` in a section selects a term from outside this
package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mmjax import config, registry
from mmjax.errors import UserError
from mmjax.losses import contrastive, self_supervised
from mmjax.losses.similarity import normalize
from mmjax.models import guided

Metric = tuple[jax.Array, jax.Array]  # (sum, count)
LossAndMetrics = tuple[jax.Array, dict[str, Metric]]


class Embeddings:
    """Embeddings of a batch by head and view, each computed once.

    Args:
      module: The model. Calls update its statistics and memories.
      features: {'image': [B, V, D], 'text': [B, D]}, pooled outputs of the towers.
      mask: {modality: [B]}, 1 where the example has the modality.
    """

    def __init__(
        self, module: guided.Guided, features: Mapping[str, jax.Array], mask: Mapping[str, Any]
    ):
        self.module = module
        self.mask = mask
        self._features = features
        self._cache: dict[tuple[str, int], jax.Array] = {}

    def view(self, head: str, view: int) -> jax.Array:
        """Returns the embedding [B, d] of a view by a head."""
        if (head, view) not in self._cache:
            if head == guided.PREDICTOR:
                x = self.view(guided.PROJECTION, view)
            else:
                x = self._features["image"][:, view]
            self._cache[head, view] = self.module.heads[head](x, train=True)
        return self._cache[head, view]

    def text(self) -> jax.Array:
        """Returns the embedding [B, d] of the text."""
        if ("text", 0) not in self._cache:
            self._cache["text", 0] = self.module.heads["text"](self._features["text"], train=True)
        return self._cache["text", 0]

    @property
    def has_both(self) -> jax.Array:
        """[B], 1 where the example has an image and a text."""
        return self.mask["image"] * self.mask["text"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """A term of the objective.

    Attributes:
      name: Its key in `config.loss`.
      weight: Its factor in the sum.
    """

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        self.check_range("weight", 0)
        if self.weight == float("inf"):
            raise UserError(f"config.loss.{self.name}.weight must be finite; got {self.weight}.")

    @property
    def heads(self) -> list[str]:
        """Heads that the term uses, those of images first."""
        raise NotImplementedError

    @property
    def image_views(self) -> tuple[int, ...]:
        """Indices of the views that the term uses."""
        raise NotImplementedError

    @property
    def bank(self) -> tuple[int, str] | None:
        """`(size, head)` of the memory bank of the term; None if it has none."""
        return None

    def loss(self, batch: Embeddings) -> LossAndMetrics:
        """Returns the unweighted loss, and metrics by name."""
        raise NotImplementedError

    def check_range(self, key: str, low: float, *, exclusive: bool = False) -> None:
        """Raises UserError unless an option is at least (or above) a limit; NaN never is."""
        value = getattr(self, key)
        if not (value > low if exclusive else value >= low):
            limit = f"greater than {low}" if exclusive else f"at least {low}"
            raise UserError(f"config.loss.{self.name}.{key} must be {limit}; got {value}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoViewTerm(Term):
    """A term between two views of an example.

    Attributes:
      views: Indices of the two views.
    """

    views: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.views) != 2 or self.views[0] == self.views[1] or min(self.views) < 0:
            raise UserError(
                f"config.loss.{self.name}.views must be two different view indices, for example "
                f"(0, 1); got {self.views}."
            )

    @property
    def heads(self) -> list[str]:
        return [guided.PROJECTION, guided.PREDICTOR]

    @property
    def image_views(self) -> tuple[int, ...]:
        return self.views


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimCLR(TwoViewTerm):
    """SimCLR's loss of two views (`self_supervised.nt_xent`).

    Attributes:
      head: Head whose embeddings are compared.
      temperature: Temperature of the softmax.
      chunk_size: Number of rows of the similarity matrix computed at once; None is all.
    """

    head: str = guided.PROJECTION
    temperature: float = 0.1
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("temperature", 0, exclusive=True)

    @property
    def heads(self) -> list[str]:
        return [self.head]

    def loss(self, batch: Embeddings) -> LossAndMetrics:
        first, second = (batch.view(self.head, view) for view in self.views)
        mask = batch.mask["image"]
        loss = self_supervised.nt_xent(
            first, second, temperature=self.temperature, mask=mask, chunk_size=self.chunk_size
        )
        return loss, {"top1": contrastive.batch_top1(first, second, mask=mask)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimSiam(TwoViewTerm):
    """SimSiam's loss: each view predicts the projection of the other."""

    def loss(self, batch: Embeddings) -> LossAndMetrics:
        mask, (a, b) = batch.mask["image"], self.views
        losses = [
            self_supervised.negative_cosine(
                batch.view(guided.PREDICTOR, x), batch.view(guided.PROJECTION, y), mask=mask
            )
            for x, y in ((a, b), (b, a))
        ]
        return 0.5 * sum(losses), {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NNCLR(TwoViewTerm):
    """NNCLR's loss: each view predicts the nearest neighbor of the other's projection in a bank.

    The projections of the second view are then added to the bank.

    Attributes:
      temperature: Temperature of the softmax.
      bank_size: Number of embeddings in the memory bank.
      chunk_size: Number of rows of the similarity matrix computed at once; None is all.
    """

    temperature: float = 0.1
    bank_size: int = 16384
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("temperature", 0, exclusive=True)
        self.check_range("bank_size", 1)

    @property
    def bank(self) -> tuple[int, str]:
        return self.bank_size, guided.PROJECTION

    def loss(self, batch: Embeddings) -> LossAndMetrics:
        mask, bank = batch.mask["image"], batch.module.banks[self.name]
        projected = [batch.view(guided.PROJECTION, view) for view in self.views]
        predicted = [batch.view(guided.PREDICTOR, view) for view in self.views]
        neighbors = [bank.nearest(z) for z in projected]
        bank.add(projected[1], mask)
        losses = [
            self_supervised.one_way_nce(
                predicted[i],
                neighbors[1 - i],
                temperature=self.temperature,
                mask=mask,
                chunk_size=self.chunk_size,
            )
            for i in (0, 1)
        ]
        hits = contrastive.batch_top1(predicted[0], neighbors[1], mask=mask)
        return 0.5 * sum(losses), {"top1": hits}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwAV(TwoViewTerm):
    """SwAV's loss: each view predicts the prototypes that the other is assigned to.

    Assignments use the batch and, once they are full, queues of earlier projections.

    Attributes:
      temperature: Temperature of the softmax over prototypes.
      epsilon: Entropy regularization of the assignment.
      iterations: Iterations of Sinkhorn's algorithm.
      softmax_axis: Axis of the softmax, 'prototypes', or 'batch' as in LGSSL's published code.
      freeze_prototypes: Number of first steps that do not train the prototypes.
      queue_length: Number of projections in each queue.
      queue_start: Number of steps before the queues are filled.
    """

    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 3
    softmax_axis: Literal["prototypes", "batch"] = "prototypes"
    freeze_prototypes: int = 2503
    queue_length: int = 7680
    queue_start: int = 37500

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("temperature", "epsilon"):
            self.check_range(key, 0, exclusive=True)
        for key, low in (("queue_length", 1), ("iterations", 1), ("queue_start", 0)):
            self.check_range(key, low)
        self.check_range("freeze_prototypes", 0)

    @property
    def heads(self) -> list[str]:
        return [guided.PROJECTION]

    def loss(self, batch: Embeddings) -> LossAndMetrics:
        module, mask = batch.module, batch.mask["image"]
        queues = module.queues
        projected = [batch.view(guided.PROJECTION, view) for view in self.views]
        trained = queues.calls[...] >= self.freeze_prototypes
        scores = [module.prototypes(z, learned=trained) for z in projected]
        codes = [self._codes(module, i, own, mask) for i, own in enumerate(scores)]
        queues.push(jnp.stack([normalize(z) for z in projected]), mask)
        losses = [
            self_supervised.swapped_prediction(
                scores[i],
                codes[1 - i],
                temperature=self.temperature,
                axis=self.softmax_axis,
                mask=mask,
            )
            for i in (0, 1)
        ]
        hits = (scores[0].argmax(axis=1) == codes[1].argmax(axis=1)) * mask
        return 0.5 * sum(losses), {"top1": (hits.sum(), mask.sum())}

    def _codes(
        self, module: guided.Guided, view: int, scores: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """Returns the assignments [B, prototypes] of a view, computed together with its queue."""
        queues = module.queues
        queued = module.prototypes(queues.rows[...][view])
        used = jnp.broadcast_to(queues.full()[view], len(queued))
        both_scores = jax.lax.stop_gradient(jnp.concatenate([queued, scores]))
        both_mask = jnp.concatenate([used.astype(mask.dtype), mask])
        codes = self_supervised.sinkhorn(
            both_scores, epsilon=self.epsilon, iterations=self.iterations, mask=both_mask
        )
        return codes[len(queued) :]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIP(Term):
    """CLIP's loss between a view and the text.

    Attributes:
      view: Index of the view.
      head: Head of the image embeddings.
      max_logit_scale: Upper limit of the learned scale; 0 is no limit, as in LGSSL (CLIP: 100).
      chunk_size: Number of rows of the similarity matrix computed at once; None is all.
    """

    view: int = 0
    head: str = "clip"
    max_logit_scale: float = 0.0
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("view", 0)
        self.check_range("max_logit_scale", 0)
        if self.head == "text":
            raise UserError(f"config.loss.{self.name}.head must be a head of images; got 'text'.")

    @property
    def heads(self) -> list[str]:
        return [self.head, "text"]

    @property
    def image_views(self) -> tuple[int, ...]:
        return (self.view,)

    def loss(self, batch: Embeddings) -> LossAndMetrics:
        return self.compare(batch, batch.text())

    def compare(self, batch: Embeddings, text: jax.Array) -> LossAndMetrics:
        """Returns the loss between the view and text embeddings [B, d]."""
        image = batch.view(self.head, self.view)
        scale = contrastive.clamped_scale(batch.module.logit_scale[...], self.max_logit_scale)
        loss = contrastive.info_nce(
            image, text, logit_scale=scale, mask=batch.has_both, chunk_size=self.chunk_size
        )
        hits = contrastive.batch_top1(image, text, mask=batch.has_both)
        return loss, {"top1": hits, "logit_scale": (scale, jnp.float32(1))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPNeighbors(CLIP):
    """CLIP's loss between a view and the nearest neighbor of the text in a memory bank.

    The texts are then added to the bank (DeCLIP, Li et al. 2022, arXiv 2110.05208).

    Attributes:
      bank_size: Number of embeddings in the memory bank.
    """

    bank_size: int = 16384

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range("bank_size", 1)

    @property
    def bank(self) -> tuple[int, str]:
        return self.bank_size, "text"

    def loss(self, batch: Embeddings) -> LossAndMetrics:
        bank, text = batch.module.banks[self.name], batch.text()
        nearest = bank.nearest(text)
        bank.add(text, batch.mask["text"])
        return self.compare(batch, nearest)


TERMS: dict[str, type[Term]] = {
    "simclr": SimCLR,
    "simsiam": SimSiam,
    "nnclr": NNCLR,
    "swav": SwAV,
    "clip": CLIP,
    "clip_neighbors": CLIPNeighbors,
}


def make_terms(section: Mapping[str, Any]) -> dict[str, Term]:
    """Returns the terms of the section `config.loss` by name; those of weight 0 are omitted.

    Args:
      section: {name: options, or None to omit the term}. The name selects the term, unless the
        options have a `type`.

    Raises:
      UserError: An unknown term or option, or a value of the wrong type or out of range.
    """
    terms = {}
    for name, options in section.items():
        if options is None:
            if name not in TERMS:
                registry.resolve("term of config.loss", name, TERMS)
            continue
        options = dict(config.convert(dict[str, Any], options, f"loss.{name}"))
        kind = registry.resolve("term of config.loss", options.pop("type", name), TERMS)
        term = kind(
            name=name,
            **config.keywords(kind, options, f"loss.{name}", provided=["name"], also=["type"]),
        )
        if term.weight:
            terms[name] = term
    return terms


def memory_options(terms: Mapping[str, Term]) -> dict[str, Any]:
    """Returns the memory banks and queues that the terms need, as options of the model."""
    queues = None
    for term in terms.values():
        if isinstance(term, SwAV):
            queues = dict(views=2, size=term.queue_length, start=term.queue_start)
    return dict(banks={name: term.bank for name, term in terms.items() if term.bank}, queues=queues)
