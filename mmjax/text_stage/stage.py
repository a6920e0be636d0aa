"""Writes and embeds the diagnostic texts of each batch of `--task=segment`.

For a batch: the model predicts masks; pairs of an image and a class are selected; the update policy
decides which of them get a new text; the writer writes these in another thread. When the batch is
due, the texts are embedded, and the cache keeps them with the masks that they describe.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from mmjax import files, sharding
from mmjax.config import Config
from mmjax.data_spec import DataSpec
from mmjax.diagnostic_text import writer as writers
from mmjax.diagnostic_text.mask_cache import MaskCache
from mmjax.diagnostic_text.negatives import NegativeTexts
from mmjax.diagnostic_text.pairs import Pair, select_pairs, stable_seed
from mmjax.diagnostic_text.prompt_images import difference_image, overlay
from mmjax.diagnostic_text.update_policy import Decision, UpdatePolicy
from mmjax.diagnostic_text.writer import Failure, Text
from mmjax.errors import UserError
from mmjax.formats import safetensors
from mmjax.tasks import segment_text as fields
from mmjax.tasks.segment import IGNORED, Segment
from mmjax.text_stage import options as options_lib
from mmjax.text_stage.encoder import TextEncoder

_STATE, _MASKS = "stage.json", "masks.safetensors"


@dataclasses.dataclass
class Ticket:
    """The texts of a batch that are being written.

    Attributes:
      step: The step that the batch is for.
      masks: Predicted classes, uint8 [B, S, S].
      pairs: All pairs of the batch.
      decision: Which of them get a new text, or use their cached one.
      reused: Texts of `decision.reuse`.
      writing: Results of the pairs of `decision.update`, in their order.
    """

    step: int
    masks: np.ndarray
    pairs: list[Pair]
    decision: Decision
    reused: list[str]
    writing: concurrent.futures.Future


class TextStage:
    """The stage; see `mmjax.enrichment.Enricher`.

    Args:
      cfg: The config.
      task: The task.
      data_spec: The spec of the data.
      mesh: The devices.

    Raises:
      UserError: An invalid option, encoder or writer, or several processes.
    """

    def __init__(self, cfg: Config, task: Segment, data_spec: DataSpec, mesh: jax.sharding.Mesh):
        if jax.process_count() > 1:
            raise UserError(
                f"Diagnostic texts are written by one process; there are {jax.process_count()}. "
                "Train with one process, or with config.loss.text.name='none'."
            )
        for key in ("accumulate_steps", "updates_per_step"):
            if (value := getattr(cfg, key)) != 1:
                raise UserError(
                    f"config.{key}={value} divides batches, but diagnostic texts belong to a whole "
                    "one. Set it to 1."
                )
        self._options = options = options_lib.parse(cfg.text)
        self._task, self._loss, self._mesh, self._seed = task, task.loss.text, mesh, cfg.seed
        self._class_names = [name.upper() for name in data_spec.mask_classes]
        self._capacity, self._num_negatives = _counts(cfg, options)
        self.staleness = options.staleness
        self._encoder = TextEncoder(options.encoder, mesh, batch_size=options.batch_size)
        self._check_width()
        section = dict(options.writer)
        name = section.pop("name", "describer")
        self._writer = writers.build(name, section, "text.writer")
        self._writer.prepare()
        self._policy = UpdatePolicy(**options.cache.policy())
        self._cache = self._initial_cache()
        self._negatives = NegativeTexts(
            probability=options.negatives.probability, path=options.negatives.path
        )
        self._predict = jax.jit(
            lambda params, extra, batch: task.masks(params, extra, batch, options.size),
            out_shardings=sharding.replicated(mesh),
        )
        # One thread: requests of a batch are concurrent within the writer, and texts of earlier
        # batches are needed first.
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "texts")
        self._sums: collections.Counter[str] = collections.Counter()
        self._steps = 0
        self._warned = False

    @staticmethod
    def field_shapes(cfg: Config, task: Segment) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of the fields `text/…`; maps as those of FLAIR's ViT-B/16."""
        pairs, negatives = _counts(cfg, options_lib.parse(cfg.text))
        loss, shapes = task.loss.text, {}
        if loss.contrastive:
            width = task.model.module.adapter.width
            shapes[fields.EMBEDDING] = (pairs, width)
            if loss.needs_negatives:
                shapes[fields.NEGATIVES] = (pairs, negatives, width)
            if loss.fuse_prediction:
                shapes[fields.OVERLAY] = (pairs, width)
        else:
            shapes[fields.MAPS] = (pairs, 14, 14)
        shapes[fields.VALID] = (pairs,)
        result = {key: jax.ShapeDtypeStruct(shape, np.float32) for key, shape in shapes.items()}
        return result | {fields.IMAGE: jax.ShapeDtypeStruct((pairs,), np.int32)}

    def _check_width(self) -> None:
        width = self._encoder.width
        adapter = getattr(self._task.model.module, "adapter", None)
        if self._loss.contrastive and adapter.width != width:
            raise UserError(
                f"config.text.encoder embeds texts in {width} dimensions, but "
                f"config.model.adaptation.width is {adapter.width}. Set it to {width}."
            )

    def _initial_cache(self) -> MaskCache:
        path, size = self._options.cache.path, self._options.size
        if not path:
            return MaskCache(size)
        cache = MaskCache.load(path)
        if cache.size != size:
            raise UserError(
                f"config.text.cache.path={path} has masks with a side of {cache.size} pixels, but "
                f"config.text.size={size}. Run `mmjax prefill` again, or change config.text.size."
            )
        logging.info("The cache of %s has the masks of %d pairs.", path, len(cache))
        return cache

    def start(self, state: dict, step: int, batch: Mapping[str, np.ndarray]) -> Ticket:
        """Selects pairs of a batch and starts writing their texts."""
        on_device = sharding.make_global({"image": batch["image"]}, self._mesh)
        masks = np.asarray(self._predict(state["params"], state["extra"], on_device))
        pairs = self._pairs(step, batch, masks)
        if self._options.cache.every_pair:
            count = np.arange(len(pairs))
            decision = Decision(count, count[:0], np.zeros(len(pairs), np.float32), 1.0)
        else:
            decision = self._policy.decide(self._cache, pairs)
        reused = [self._cache.text(pairs[index].key) for index in decision.reuse]
        return self._ticket(step, masks, pairs, decision, reused)

    def _pairs(self, step: int, batch: Mapping[str, np.ndarray], masks: np.ndarray) -> list[Pair]:
        labeled = (batch["segmentation"] != IGNORED).any((1, 2))
        used = np.flatnonzero(labeled & (batch["image_mask"] > 0))
        pairs = select_pairs(
            [str(batch["example_id"][index]) for index in used],
            batch["image"][used],
            batch["segmentation"][used],
            masks[used],
            self._class_names,
            size=self._options.size,
            void=IGNORED,
            predicted_limit=self._options.predicted_limit,
            seed=(self._seed, step),
        )
        return [dataclasses.replace(p, image_index=int(used[p.image_index])) for p in pairs]

    def _ticket(
        self,
        step: int,
        masks: np.ndarray,
        pairs: list[Pair],
        decision: Decision,
        reused: list[str],
    ) -> Ticket:
        """Returns a ticket with the most changed pairs that there is room for."""
        update = decision.update
        if len(update) > self._capacity:
            self._sums["left_out"] += len(update) - self._capacity
            order = np.argsort(decision.similarity[update], kind="stable")
            update = np.sort(update[order[: self._capacity]])
        room = self._capacity - len(update)
        decision = dataclasses.replace(decision, update=update, reuse=decision.reuse[:room])
        writing = self._pool.submit(self._write, [pairs[index] for index in update])
        return Ticket(step, masks, pairs, decision, reused[:room], writing)

    def _write(self, pairs: Sequence[Pair]) -> list[Text | Failure]:
        return self._writer.write(pairs) if pairs else []

    def finish(self, ticket: Ticket) -> dict[str, np.ndarray]:
        """Waits for the texts of a batch, and returns the fields `text/…`."""
        started = time.monotonic()
        results = ticket.writing.result()
        self._sums["wait_seconds"] += time.monotonic() - started
        written: list[tuple[Pair, str]] = []
        for index, result in zip(ticket.decision.update, results, strict=True):
            pair = ticket.pairs[index]
            if isinstance(result, Text):
                written.append((pair, self._encoder.shorten(result.text)))
            else:
                self._sums["failed"] += 1
        for pair, text in written:
            self._cache.set(pair.key, pair.prediction, text)
        reuse = [ticket.pairs[index] for index in ticket.decision.reuse]
        used = written + list(zip(reuse, ticket.reused, strict=True))
        self._count(ticket, used)
        return self._fields(ticket, used)

    def _count(self, ticket: Ticket, used: Sequence[tuple[Pair, str]]) -> None:
        self._steps += 1
        self._sums["pairs"] += len(used)
        self._sums["share"] += len(used) / max(len(ticket.pairs), 1)
        self._sums["per_image"] += len(used) / len(ticket.masks)
        similarity = ticket.decision.similarity[ticket.decision.update]
        self._sums["similarity"] += float(similarity.mean()) if len(similarity) else 0.0
        if not self._warned and (unknown := self._encoder.unknown_words([t for _, t in used])):
            self._warned = True
            logging.warning(
                "The vocabulary of config.text.encoder lacks words of the texts: %s. They all "
                "become the same token.",
                ", ".join(unknown[:20]),
            )

    def _fields(self, ticket: Ticket, used: Sequence[tuple[Pair, str]]) -> dict[str, np.ndarray]:
        """Returns the fields of the batch, padded to the capacity."""
        count, loss = self._capacity, self._loss
        image, valid = np.zeros(count, np.int32), np.zeros(count, np.float32)
        for position, (pair, _) in enumerate(used):
            image[position], valid[position] = pair.image_index, 1.0
        result = {fields.IMAGE: image, fields.VALID: valid}
        texts = [text for _, text in used] + [" "] * (count - len(used))
        with jax.set_mesh(self._mesh):
            if loss.needs_negatives:
                rows = [self._negatives_of(ticket, pair, text) for pair, text in used]
                rows += [[" "] * self._num_negatives] * (count - len(used))
                flat = texts + [text for row in rows for text in row]
                embedded = self._encoder.texts(flat)
                negatives = embedded[count:].reshape(count, self._num_negatives, -1)
                result[fields.NEGATIVES] = np.asarray(negatives, np.float32)
                embedded = embedded[:count]
            else:
                embedded = self._encoder.texts(texts)
            if loss.name == "rescale":
                images = self._padded([difference_image(p, self._options.alpha) for p, _ in used])
                result[fields.MAPS] = np.asarray(self._encoder.maps(images, embedded), np.float32)
            if loss.fuse_prediction:
                alpha = self._options.alpha
                images = self._padded([overlay(p.scene, p.prediction, alpha) for p, _ in used])
                result[fields.OVERLAY] = np.asarray(self._encoder.images(images), np.float32)
        if loss.contrastive:
            result[fields.EMBEDDING] = np.asarray(embedded, np.float32)
        return result

    def _padded(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Returns images [capacity, S, S, 3], black where there is no pair."""
        side = self._options.size
        result = np.zeros((self._capacity, side, side, 3), np.uint8)
        for index, image in enumerate(images):
            result[index] = image
        return result

    def _negatives_of(self, ticket: Ticket, pair: Pair, text: str) -> list[str]:
        names: list[str] | None = self._class_names
        if self._options.negatives.image_classes:
            own = {p.class_name for p in ticket.pairs if p.image_index == pair.image_index}
            present = np.unique(ticket.masks[pair.image_index]).tolist()
            own |= {self._class_names[index] for index in present if index}
            names = [name for name in self._class_names if name in own]
        seed = stable_seed(self._seed, ticket.step, pair.key)
        return self._negatives.generate(text, self._num_negatives, seed=seed, class_names=names)

    def save(self, directory: pathlib.Path, tickets: list[Ticket]) -> None:
        """Writes the cache, the trend of the policy, and the tickets with their texts."""
        self._cache.save(directory / "cache")
        values: list[dict[str, Any]] = []
        for ticket in tickets:
            decision = ticket.decision
            values.append(
                {
                    "step": ticket.step,
                    "update": decision.update.tolist(),
                    "reuse": decision.reuse.tolist(),
                    "similarity": decision.similarity.tolist(),
                    "threshold": decision.threshold,
                    "reused": ticket.reused,
                    "written": _written(ticket),
                }
            )
        files.write_json(directory / _STATE, {"policy": self._policy.state(), "tickets": values})
        if tickets:
            arrays = {str(index): ticket.masks for index, ticket in enumerate(tickets)}
            safetensors.write(directory / _MASKS, arrays)

    def restore(
        self, directory: pathlib.Path, batches: list[Mapping[str, np.ndarray]]
    ) -> list[Ticket]:
        """Restores what `save` has written. Texts that were not written yet are written again."""
        self._cache = MaskCache.load(directory / "cache")
        content = files.read_object(directory / _STATE, "Delete its directory to start without it.")
        self._policy.restore(content["policy"])
        masks = safetensors.read(directory / _MASKS) if content["tickets"] else {}
        tickets = []
        for index, (values, batch) in enumerate(zip(content["tickets"], batches, strict=True)):
            pairs = self._pairs(values["step"], batch, masks[str(index)])
            decision = Decision(
                update=np.asarray(values["update"], int),
                reuse=np.asarray(values["reuse"], int),
                similarity=np.asarray(values["similarity"], np.float32),
                threshold=values["threshold"],
            )
            selected = [pairs[n] for n in decision.update]
            if values["written"] is None:
                writing = self._pool.submit(self._write, selected)
            else:
                writing = concurrent.futures.Future()
                writing.set_result(_results(selected, values["written"]))
            ticket = Ticket(
                values["step"], masks[str(index)], pairs, decision, values["reused"], writing
            )
            tickets.append(ticket)
        return tickets

    def metrics(self) -> dict[str, float]:
        """Returns means per step since the last call.

        `text/wait_seconds`: time that the device waited for texts; `text/pairs` and
        `text/per_image`: pairs with a text; `text/share`: of all pairs; `text/similarity`: Jaccard
        index of masks that got a new text with those before; `text/failed`, `text/left_out`; and
        those of the writer.
        """
        steps = max(self._steps, 1)
        names = ("pairs", "per_image", "share", "similarity", "wait_seconds", "failed", "left_out")
        result = {f"text/{name}": self._sums[name] / steps for name in names}
        self._sums.clear()
        self._steps = 0
        return result | {f"text/{k}": v for k, v in self._writer.metrics().items()}

    def close(self) -> None:
        """Stops writing."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._writer.close()


def _counts(cfg: Config, options: options_lib.TextOptions) -> tuple[int, int]:
    """Returns how many pairs a batch has room for, and how many negatives each of them has."""
    pairs = cfg.batch_size * options.pairs_per_image
    return pairs, options.negatives.count or cfg.batch_size - 1


def _written(ticket: Ticket) -> list[dict[str, str]] | None:
    """Returns the results of a ticket for JSON; None if writing failed."""
    try:
        results = ticket.writing.result()
    except UserError:
        return None
    return [dataclasses.asdict(result) for result in results]


def _results(pairs: Sequence[Pair], values: Sequence[Mapping[str, str]]) -> list[Text | Failure]:
    kinds = [Text if "text" in value else Failure for value in values]
    results = [kind(**value) for kind, value in zip(kinds, values, strict=True)]
    if [pair.key for pair in pairs] != [result.key for result in results]:
        raise UserError(
            "The saved texts are for other pairs: the data have changed since the checkpoint. Use "
            "the same data, or another --model_dir."
        )
    return results
