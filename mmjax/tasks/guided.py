"""`--task=guided`: pictures learned from their captions' neighbours, and the methods it is compared
with.

Source: El Banani et al. 2023, Learning Visual Representations via Language-Guided Sampling, arXiv
2302.12248 (LGSSL). A method is a sum of terms, each with the heads it takes (`config.loss`,
`config.model.heads`): SimCLR, SimSiam, NNCLR, SwAV, CLIP, DeCLIP's nearest neighbours, and SLIP,
which adds two of them. Whether the views of an example are crops of one picture or of a picture and
its neighbour is decided by the data (`config.data.pairs`): LGSimCLR is SimCLR on pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from mmjax import config
from mmjax.errors import UserError, choose
from mmjax.losses import contrastive, self_supervised
from mmjax.losses.similarity import normalize
from mmjax.models import guided
from mmjax.state import ModelDef
from mmjax.tasks import DataFacts
from mmjax.tasks.inputs import Inputs
from mmjax.tasks.pairs import fit_vocabulary, present

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
        """[B], 1 where there is a picture and a text."""
        return self.mask["image"] * self.mask["text"]


# ------------------------------------------------------------------------------------------- terms
# Each returns its loss and metrics; keywords are keys of its section of `config.loss`.


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
    """NNCLR's loss: each view predicts the nearest neighbour, in a bank, of the other's projection.

    The bank then takes the second view's projections.
    """
    del bank_size  # the model was built with it
    mask, bank = batch.mask["image"], batch.module.banks["nnclr"]
    projected = [batch.view(guided.PROJECTION, view) for view in views]
    predicted = [batch.view(guided.PREDICTOR, view) for view in views]
    neighbours = [bank.nearest(z) for z in projected]
    bank.add(projected[1], mask)
    halves = [
        self_supervised.one_way_nce(
            predicted[one],
            neighbours[1 - one],
            temperature=temperature,
            mask=mask,
            chunk_size=chunk_size,
        )
        for one in (0, 1)
    ]
    hits = contrastive.batch_top1(predicted[0], neighbours[1], mask=mask)
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
    queues.push(jnp.stack([normalize(z) for z in projected]))
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


def clip_neighbours(
    batch: Embedded,
    *,
    view: int = 0,
    head: str = "clip",
    max_logit_scale: float = 0.0,
    bank_size: int = 16384,
    chunk_size: int | None = None,
) -> tuple[jax.Array, dict[str, Number]]:
    """CLIP's loss between a view and the text's nearest neighbour in a bank (DeCLIP, Li et al.
    2022, arXiv 2110.05208). The bank then takes the texts."""
    del bank_size  # the model was built with it
    bank, text = batch.module.banks["clip_neighbours"], batch.text()
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
    picture = batch.view(head, view)
    scale = contrastive.clamped_scale(batch.module.logit_scale[...], max_logit_scale)
    loss = contrastive.info_nce(
        picture, text, logit_scale=scale, mask=batch.both, chunk_size=chunk_size
    )
    hits = contrastive.batch_top1(picture, text, mask=batch.both)
    return loss, {"top1": hits, "logit_scale": (scale, jnp.float32(1))}


TERMS: dict[str, Callable[..., tuple[jax.Array, dict[str, Number]]]] = {
    "simclr": simclr,
    "simsiam": simsiam,
    "nnclr": nnclr,
    "swav": swav,
    "clip": clip,
    "clip_neighbours": clip_neighbours,
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


class Guided:
    """Self-supervised and language-guided learning of pictures.

    Config sections: `model` (keywords of `mmjax.models.guided.make_model`), `augment` (of
    `mmjax.tasks.inputs.Inputs`; `image` may be several sections, one for each view), `loss`: a
    section for each term of the method, `{term: dict(weight=1.0, …keywords of that function)}`,
    None for none. Without a term nothing can be trained, but evaluated.

    Texts may come as the features of a frozen encoder (`config.data.text.features`): then there is
    no tower for them, and `config.model.text_features` is the features' width.

    Raises:
      UserError: a term without its heads, views or texts.
    """

    def __init__(self, cfg: Any, facts: DataFacts):
        model = config.plain(cfg.model)
        if facts.vocab_size is not None and model.get("text") is not None:
            model = fit_vocabulary(model, facts.vocab_size)
        self.dtype = model.get("dtype", "float32")
        self._terms = _parse(config.plain(cfg.loss))
        image, text = facts.spec.get("image"), facts.spec.get("text")
        if image is None:
            raise UserError(
                "--task=guided learns pictures: set config.data.image, e.g. "
                "dict(size=224, crops=((0.2, 1.0), (0.2, 1.0)))."
            )
        self._num_views = image.shape[1] if image.ndim == 5 else 1
        self._text_is_given = text is not None and jnp.issubdtype(text.dtype, jnp.floating)
        self.model = ModelDef(guided.make_model(**model, **_memories(self._terms)))
        if self._text_is_given and model.get("text_features", 0) != text.shape[-1]:
            raise UserError(
                f"config.data.text.features have {text.shape[-1]} numbers each: set "
                f"config.model.text_features={text.shape[-1]}, not "
                f"{model.get('text_features', 0)}."
            )
        self._check_terms(text)
        self._inputs = Inputs.from_config(
            cfg.augment, facts, towers=(*self.model.module.modalities, "text"), views=True
        )
        self.predict = {"features": self._features}

    def _check_terms(self, text: jax.ShapeDtypeStruct | None) -> None:
        module = self.model.module
        if text is not None and "text" not in module.heads:
            raise UserError(
                "config.data loads texts, for which config.model.heads has no head 'text': set "
                "config.data.text=None."
            )
        used: set[str] = set()
        for name, (_, keywords) in self._terms.items():
            where = f"config.loss.{name}"
            heads = _heads_of(name, keywords)
            used.update(heads)
            widths = {head: module.width_of(head, where) for head in heads}
            if len(set(widths.values())) > 1:
                raise UserError(
                    f"{where} compares embeddings of different widths: "
                    f"{', '.join(f'{head} {width}' for head, width in widths.items())} "
                    "(config.model.heads)."
                )
            views = [keywords["view"]] if "view" in keywords else list(keywords["views"])
            for view in views:
                if view >= self._num_views:
                    raise UserError(
                        f"{where} compares view {view}, but an example has {self._num_views} "
                        "(counted from 0): set config.data.image.crops, an area for each view, "
                        "such as ((0.2, 1.0), (0.2, 1.0))."
                    )
            if name == "swav" and not hasattr(module, "prototypes"):
                raise UserError(f"{where} needs config.model.prototypes, a number (LGSSL: 3000).")
            if "view" in keywords:
                if text is None:
                    raise UserError(f"{where} compares pictures with texts: set config.data.text.")
                if text.shape[1] != 1:
                    raise UserError(
                        f"{where} compares one caption of an example: set "
                        f"config.data.text.candidates=1, not {text.shape[1]}."
                    )
        idle = [f"config.model.heads.{head}" for head in module.heads if head not in used]
        if hasattr(module, "prototypes") and "swav" not in self._terms:
            idle.append("config.model.prototypes")
        if self._terms and idle:
            logging.warning(
                "No term of config.loss learns %s: only weight decay acts there.", ", ".join(idle)
            )

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        return self.model.init(key)

    def encode(self, params, extra, batch, key):
        """{'image': [B, V, D], 'text': [B, D]}, the towers' pooled outputs.

        Views go through the backbone one after the other: BatchNorm sees each alone, as in LGSSL.
        """
        if not self._terms:
            raise UserError(
                "config.loss has no term: there is nothing to train. Give one of "
                f"{', '.join(TERMS)}, e.g. config.loss=dict(simclr=dict())."
            )
        inputs_key, model_key = jax.random.split(key)
        inputs = self._inputs(batch, inputs_key, train=True)
        module = self.model.bind(params, extra)
        pictures = inputs["image"]
        if pictures.ndim == 4:
            pictures = pictures[:, None]
        views = [
            module.encode({"image": pictures[:, view]}, key=jax.random.fold_in(model_key, view))
            for view in range(self._num_views)
        ]
        features = {"image": jnp.stack([view["image"] for view in views], axis=1)}
        if "text" in inputs:
            text = inputs["text"][:, 0]
            if not self._text_is_given:
                text_key = jax.random.fold_in(model_key, self._num_views)
                text = module.encode({"text": text}, key=text_key)["text"]
            features["text"] = text
        return features, self.model.extra_of(module)

    def objective(self, params, extra, features, batch, key):
        """The weighted sum of the terms, as in LGSSL."""
        del key
        module = self.model.bind(params, extra)
        mask = {name: present(batch, name) for name in features}
        seen = Embedded(module, features, mask)
        total, metrics = jnp.float32(0), {}
        for name, (weight, keywords) in self._terms.items():
            value, more = TERMS[name](seen, **keywords)
            total += weight * value
            metrics[f"loss_{name}"] = (value, jnp.float32(1))
            metrics |= {f"{metric}_{name}": number for metric, number in more.items()}
        for view in range(self._num_views):
            metrics[f"spread_{view}"] = (_spread(features["image"][:, view]), jnp.float32(1))
        return total, (self.model.extra_of(module), metrics)

    def flops(self, spec: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Operations of a training step: forward, and twice that backward."""
        shapes = self._inputs.shapes(spec)
        batch_size = next(iter(shapes.values()))[0]
        shapes = {modality: shape[1:] for modality, shape in shapes.items()}
        return batch_size * self.model.module.flops(shapes, train=True)

    def _features(self, params, extra, batch) -> dict[str, jax.Array]:
        """The backbone's and heads' outputs: {'image': [B, V, D], 'image/text': [B, V, d], …}."""
        module = self.model.bind(params, extra)
        out = {}
        for modality in module.modalities:
            if modality in batch:
                tower = getattr(module, modality)
                out[modality] = self._inputs.each_view(lambda x, t=tower: t(x)[0], batch, modality)
        heads = {"image": self._picture_head(), "text": "text"}
        for modality, other in (("image", "text"), ("text", "image")):
            head = heads[modality]
            if modality in out and head in module.heads and "text" in module.heads:
                flat = out[modality].reshape(-1, out[modality].shape[-1])
                embedded = normalize(module.heads[head](flat, train=False))
                out[f"{modality}/{other}"] = embedded.reshape(*out[modality].shape[:2], -1)
        return out

    def _picture_head(self) -> str:
        """The head whose embeddings of pictures are compared with texts."""
        for name in ("clip", "clip_neighbours"):
            if name in self._terms:
                return self._terms[name][1]["head"]
        return "clip"


def _parse(loss: Mapping[str, Any]) -> dict[str, tuple[float, dict[str, Any]]]:
    """{term: (weight, all its keywords)} of the section `loss`."""
    terms = {}
    for name, section in loss.items():
        function = choose("term, config.loss.", name, TERMS)
        if section is None:
            continue
        if not isinstance(section, Mapping):
            raise UserError(f"config.loss.{name} must be a section (dict), not {section!r}.")
        section = dict(section)
        weight = section.pop("weight", 1.0)
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise UserError(f"config.loss.{name}.weight={weight!r} must be a number from 0.")
        given = config.keywords(function, section, f"loss.{name}", given=["batch"])
        for key in given.keys() & _RANGES.keys():
            try:
                fits = _RANGES[key][0](given[key])
            except TypeError:
                fits = False
            if not fits:
                raise UserError(f"config.loss.{name}.{key}={given[key]} must be {_RANGES[key][1]}.")
        if given.get("head") == "text":
            raise UserError(f"config.loss.{name}.head='text' is of texts: name one of pictures.")
        if weight:
            terms[name] = (float(weight), {**function.__kwdefaults__, **given})
    return terms


def _heads_of(name: str, keywords: Mapping[str, Any]) -> list[str]:
    """The heads that a term takes."""
    if name in ("simsiam", "nnclr"):
        return [guided.PROJECTION, guided.PREDICTOR]
    if name == "swav":
        return [guided.PROJECTION]
    return [keywords["head"]] + (["text"] if "view" in keywords else [])


def _memories(terms: Mapping[str, tuple[float, Mapping[str, Any]]]) -> dict[str, Any]:
    """The banks and queues that the terms need, as options of the model."""
    heads = {"nnclr": guided.PROJECTION, "clip_neighbours": "text"}
    banks = {
        name: (terms[name][1]["bank_size"], head) for name, head in heads.items() if name in terms
    }
    queues = None
    if "swav" in terms:
        options = terms["swav"][1]
        queues = dict(views=2, size=options["queue_length"], start=options["queue_start"])
    return dict(banks=banks, queues=queues)


def _spread(features: jax.Array) -> jax.Array:
    """How far unit features spread over the batch: 0 where all are the same, 1 at random ones."""
    x = normalize(features)
    return jnp.std(x, axis=0).mean() * jnp.sqrt(jnp.float32(x.shape[-1]))
