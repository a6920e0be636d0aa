"""The terms of `--task=guided`: what a method compares, with which heads.

Each is a function that returns its loss and metrics; its keywords are keys of its section of
`config.loss`. Another one is a function like these and a line of `TERMS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax import config
from mmjax.errors import UserError, choose
from mmjax.losses import contrastive, self_supervised
from mmjax.losses.similarity import normalize
from mmjax.models import guided

Number = tuple[jax.Array, jax.Array]


class Embedded:
    """What a term sees: the model, and what its heads make of the batch's features.

    Args:
      module: the model; calls update its statistics and memories.
      features: {'image': [B, V, D], 'text': [B, D]}.
      mask: {modality: [B]}, 1 where the example has it.
    """

    def __init__(
        self, module: guided.Guided, features: Mapping[str, jax.Array], mask: Mapping[str, Any]
    ):
        self.module = module
        self.mask = mask
        self._features = features
        self._made: dict[tuple[str, int], jax.Array] = {}

    def view(self, head: str, view: int) -> jax.Array:
        """A head's embedding of a view, [B, d]; made once, so that statistics see it once."""
        if (head, view) not in self._made:
            if head == guided.PREDICTOR:
                x = self.view(guided.PROJECTION, view)
            else:
                x = self._features["image"][:, view]
            self._made[head, view] = self.module.heads[head](x, train=True)
        return self._made[head, view]

    def text(self) -> jax.Array:
        """The embedding of the text, [B, d]."""
        if ("text", 0) not in self._made:
            self._made["text", 0] = self.module.heads["text"](self._features["text"], train=True)
        return self._made["text", 0]

    @property
    def both(self) -> jax.Array:
        """[B], 1 where there is an image and a text."""
        return self.mask["image"] * self.mask["text"]


def simclr(
    batch: Embedded,
    *,
    views: Sequence[int] = (0, 1),
    head: str = guided.PROJECTION,
    temperature: float = 0.1,
    chunk_size: int | None = None,
) -> tuple[jax.Array, dict[str, Number]]:
    """SimCLR's loss of two views (`self_supervised.nt_xent`)."""
    first, second = (batch.view(head, view) for view in views)
    mask = batch.mask["image"]
    loss = self_supervised.nt_xent(
        first, second, temperature=temperature, mask=mask, chunk_size=chunk_size
    )
    return loss, {"top1": contrastive.batch_top1(first, second, mask=mask)}


def simsiam(
    batch: Embedded, *, views: Sequence[int] = (0, 1)
) -> tuple[jax.Array, dict[str, Number]]:
    """SimSiam's loss: each view predicts the other's projection."""
    mask, (a, b) = batch.mask["image"], views
    halves = [
        self_supervised.negative_cosine(
            batch.view(guided.PREDICTOR, one), batch.view(guided.PROJECTION, other), mask=mask
        )
        for one, other in ((a, b), (b, a))
    ]
    return 0.5 * sum(halves), {}


def nnclr(
    batch: Embedded,
    *,
    views: Sequence[int] = (0, 1),
    temperature: float = 0.1,
    bank_size: int = 16384,
    chunk_size: int | None = None,
) -> tuple[jax.Array, dict[str, Number]]:
    """NNCLR's loss: each view predicts the nearest neighbor, in a bank, of the other's projection.

    The bank then takes the second view's projections.
    """
    del bank_size  # the model was built with it
    mask, bank = batch.mask["image"], batch.module.banks["nnclr"]
    projected = [batch.view(guided.PROJECTION, view) for view in views]
    predicted = [batch.view(guided.PREDICTOR, view) for view in views]
    neighbors = [bank.nearest(z) for z in projected]
    bank.add(projected[1], mask)
    halves = [
        self_supervised.one_way_nce(
            predicted[one],
            neighbors[1 - one],
            temperature=temperature,
            mask=mask,
            chunk_size=chunk_size,
        )
        for one in (0, 1)
    ]
    hits = contrastive.batch_top1(predicted[0], neighbors[1], mask=mask)
    return 0.5 * sum(halves), {"top1": hits}


def swav(
    batch: Embedded,
    *,
    views: Sequence[int] = (0, 1),
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    softmax_axis: str = "prototypes",
    freeze_prototypes: int = 2503,
    queue_length: int = 7680,
    queue_start: int = 37500,
) -> tuple[jax.Array, dict[str, Number]]:
    """SwAV's loss: each view predicts the prototypes that the other is assigned to.

    Assignments are of the batch and, once they are full, of queues of earlier projections, which
    begin to fill after `queue_start` steps. Prototypes are not trained for the first
    `freeze_prototypes` steps.
    """
    del queue_length, queue_start  # the model was built with them
    module, mask = batch.module, batch.mask["image"]
    queues = module.queues
    projected = [batch.view(guided.PROJECTION, view) for view in views]
    learned = queues.calls[...] >= freeze_prototypes
    scores = [module.prototypes(z, learned=learned) for z in projected]
    codes = []
    for number, own in enumerate(scores):
        earlier = module.prototypes(queues.rows[...][number])
        used = jnp.broadcast_to(queues.full()[number], len(earlier))
        rows = jax.lax.stop_gradient(jnp.concatenate([earlier, own]))
        both = jnp.concatenate([used.astype(mask.dtype), mask])
        assigned = self_supervised.sinkhorn(rows, epsilon=epsilon, iterations=iterations, mask=both)
        codes.append(assigned[len(earlier) :])
    queues.push(jnp.stack([normalize(z) for z in projected]), mask)
    halves = [
        self_supervised.swapped_prediction(
            scores[one], codes[1 - one], temperature=temperature, axis=softmax_axis, mask=mask
        )
        for one in (0, 1)
    ]
    same = (scores[0].argmax(axis=1) == codes[1].argmax(axis=1)) * mask
    return 0.5 * sum(halves), {"top1": (same.sum(), mask.sum())}


def clip(
    batch: Embedded,
    *,
    view: int = 0,
    head: str = "clip",
    max_logit_scale: float = 0.0,
    chunk_size: int | None = None,
) -> tuple[jax.Array, dict[str, Number]]:
    """CLIP's loss between a view and the text; the learned scale is at most `max_logit_scale` (0:
    no limit, as in LGSSL; CLIP's is 100)."""
    return _against_text(batch, batch.text(), view, head, max_logit_scale, chunk_size)


def clip_neighbors(
    batch: Embedded,
    *,
    view: int = 0,
    head: str = "clip",
    max_logit_scale: float = 0.0,
    bank_size: int = 16384,
    chunk_size: int | None = None,
) -> tuple[jax.Array, dict[str, Number]]:
    """CLIP's loss between a view and the text's nearest neighbor in a bank (DeCLIP, Li et al.
    2022, arXiv 2110.05208). The bank then takes the texts."""
    del bank_size  # the model was built with it
    bank, text = batch.module.banks["clip_neighbors"], batch.text()
    nearest = bank.nearest(text)
    bank.add(text, batch.mask["text"])
    return _against_text(batch, nearest, view, head, max_logit_scale, chunk_size)


def _against_text(
    batch: Embedded,
    text: jax.Array,
    view: int,
    head: str,
    max_logit_scale: float,
    chunk_size: int | None,
) -> tuple[jax.Array, dict[str, Number]]:
    image = batch.view(head, view)
    scale = contrastive.clamped_scale(batch.module.logit_scale[...], max_logit_scale)
    loss = contrastive.info_nce(
        image, text, logit_scale=scale, mask=batch.both, chunk_size=chunk_size
    )
    hits = contrastive.batch_top1(image, text, mask=batch.both)
    return loss, {"top1": hits, "logit_scale": (scale, jnp.float32(1))}


class Term(NamedTuple):
    """A summand of the objective.

    Attributes:
      loss: a function of `Embedded` and keywords.
      heads: that it takes besides the one of its keyword `head`.
      bank: the head whose outputs its memory bank keeps, `bank_size` rows; None: it has no bank.
    """

    loss: Callable[..., tuple[jax.Array, dict[str, Number]]]
    heads: tuple[str, ...] = ()
    bank: str | None = None

    def heads_of(self, keywords: Mapping[str, Any]) -> list[str]:
        """All the heads that it takes with these keywords, images' before texts'."""
        return [keywords["head"], *self.heads] if "head" in keywords else list(self.heads)


_BOTH = (guided.PROJECTION, guided.PREDICTOR)
TERMS = {
    "simclr": Term(simclr),
    "simsiam": Term(simsiam, _BOTH),
    "nnclr": Term(nnclr, _BOTH, bank=guided.PROJECTION),
    "swav": Term(swav, (guided.PROJECTION,)),
    "clip": Term(clip, ("text",)),
    "clip_neighbors": Term(clip_neighbors, ("text",), bank="text"),
}


_ABOVE_0 = (lambda value: value > 0, "above 0")
_FROM_1 = (lambda value: value >= 1, "at least 1")
_FROM_0 = (lambda value: value >= 0, "at least 0")
# What the values of the terms' keywords must be.
_RANGES = {
    "temperature": _ABOVE_0,
    "epsilon": _ABOVE_0,
    "bank_size": _FROM_1,
    "queue_length": _FROM_1,
    "iterations": _FROM_1,
    "queue_start": _FROM_0,
    "freeze_prototypes": _FROM_0,
    "max_logit_scale": _FROM_0,
    "view": _FROM_0,
    "views": (
        lambda value: (
            len(value) == 2
            and all(type(view) is int and view >= 0 for view in value)
            and value[0] != value[1]
        ),
        "such as (0, 1): it must name two views",
    ),
}


def parse(loss: Mapping[str, Any]) -> dict[str, tuple[float, dict[str, Any]]]:
    """{term: (weight, all its keywords)} of the section `loss`."""
    terms = {}
    for name, section in loss.items():
        function = choose("term, config.loss.", name, TERMS).loss
        if section is None:
            continue
        if not isinstance(section, Mapping):
            raise UserError(f"config.loss.{name} must be a section (dict), not {section!r}.")
        section = dict(section)
        weight = section.pop("weight", 1.0)
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise UserError(f"config.loss.{name}.weight={weight!r} must be a number from 0.")
        given = config.keywords(function, section, f"loss.{name}", provided=["batch"])
        for key in given.keys() & _RANGES.keys():
            try:
                fits = _RANGES[key][0](given[key])
            except TypeError:
                fits = False
            if not fits:
                raise UserError(f"config.loss.{name}.{key}={given[key]} must be {_RANGES[key][1]}.")
        if given.get("head") == "text":
            raise UserError(f"config.loss.{name}.head='text' is of texts: name one of images.")
        if weight:
            terms[name] = (float(weight), {**function.__kwdefaults__, **given})
    return terms


def memories(terms: Mapping[str, tuple[float, Mapping[str, Any]]]) -> dict[str, Any]:
    """The banks and queues that the terms need, as options of the model."""
    banks = {
        name: (keywords["bank_size"], TERMS[name].bank)
        for name, (_, keywords) in terms.items()
        if TERMS[name].bank
    }
    queues = None
    if "swav" in terms:
        options = terms["swav"][1]
        queues = dict(views=2, size=options["queue_length"], start=options["queue_start"])
    return dict(banks=banks, queues=queues)
