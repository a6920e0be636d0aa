"""Training and evaluation data from a DMVR factory.

A factory samples, decodes and shuffles by itself and returns a stream of batches. Step n can be
reached only by reading and dropping the batches before it.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator

import jax
import numpy as np

from mmjax.data.pipeline.config import DataConfig
from mmjax.data.pipeline.dmvr.batches import Batch, Converter
from mmjax.data.pipeline.dmvr.factory import Factory
from mmjax.data.pipeline.order import HostBatch
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.errors import UserError

log = logging.getLogger(__name__)


class _Stream:
    """The part that training and evaluation share. There is no `pipeline`: the factory is one.

    Attributes:
      info: Description from the options of the config; a factory does not provide one.
      tokenizer: None: the factory tokenizes.
      vocab_size: Size of the factory's vocabulary; None if it is not known.
      sample_rate: Sample rate of the audio from the options, in Hz; None without audio.
      corrupt: 0: corrupt records are the factory's responsibility.
      batch_size: Number of examples of a global batch.
    """

    tokenizer = None
    corrupt = 0

    def __init__(self, cfg: DataConfig, *, spec: str, split: str, train: bool, host: HostBatch):
        self.batch_size, self._host, self._cfg = host.batch_size, host, cfg
        if cfg.video and cfg.image:
            raise UserError(
                f"{spec}: data.video and data.image are both set, but a factory returns one of "
                "them. Set one to None."
            )
        self._factory = Factory(spec, cfg, split=split, train=train)
        if self._factory.pad < 0:
            raise UserError(
                f"{spec}: its tokenizer pads with id {self._factory.pad}, which is not a token. "
                "Use a vocabulary that defines padding (SentencePiece: --pad_id=0)."
            )
        if self._factory.pad:
            log.warning(
                "%s pads with token id %d; ids 0 and %d are exchanged, because models take id 0 "
                "for padding.",
                spec,
                self._factory.pad,
                self._factory.pad,
            )
        self.vocab_size = self._factory.vocab_size
        self.sample_rate = cfg.audio.rate(0) if cfg.audio else None
        self._convert = Converter(
            name=spec,
            cfg=cfg,
            train=train,
            batch_size=self.batch_size,
            pad=self._factory.pad,
            num_classes=cfg.label.num_classes if cfg.label else 0,
        )

    @property
    def info(self) -> DatasetInfo:
        return DatasetInfo(
            name=self._factory.name,
            modalities=tuple(sorted(self._cfg.sections)),
            num_classes=self.num_classes or 0,
            multi_label=bool(self._cfg.label and self._cfg.label.multi_label),
        )

    @property
    def num_classes(self) -> int | None:
        """Number of classes, from the options or the labels; None without labels."""
        if self._cfg.label and not self._convert.num_classes:
            _ = self.spec  # a batch of one-hot labels shows it
            if not self._convert.num_classes:
                raise UserError(
                    f"{self._factory.name} returns class indices, so the number of classes is not "
                    "known. Set config.data.label.num_classes."
                )
        return self._convert.num_classes or None

    def iterate(self) -> Iterator[Batch]:
        raise NotImplementedError

    @functools.cached_property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the batches of one host; reads one batch."""
        batch = next(iter(self.iterate()), None)
        if batch is None:
            raise UserError(
                f"{self._factory.name} returns no batch of {self.batch_size} examples: its shards "
                "have fewer. Decrease config.batch_size, or check the files of the factory."
            )
        return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


class StreamTrainData(_Stream):
    """Endless training batches of a factory; see `mmjax.data.pipeline.loader.TrainData`.

    Attributes:
      num_examples: None: the length of a stream is unknown.
    """

    num_examples = None

    def __init__(self, cfg: DataConfig, *, spec: str, seed: int, host: HostBatch):
        super().__init__(cfg, spec=spec, split=cfg.split, train=True, host=host)
        self._seed = seed
        if not (cfg.dmvr and cfg.dmvr.deterministic):
            log.warning(
                "%s: DMVR shuffles and augments without seeds, so two runs with the same seed "
                "differ, and a resumed run does not see the batches of an uninterrupted one. Set "
                "config.data.dmvr.deterministic=True to reproduce them (slower).",
                spec,
            )

    def iterate(self, first_step: int = 0) -> Iterator[Batch]:
        """Yields this host's part from `first_step` on; `example_id` is the stream position.

        If hosts cannot agree on the order, each reads its own shards.
        """
        host, factory = self._host, self._factory
        deterministic = bool(self._cfg.dmvr and self._cfg.dmvr.deterministic)
        split_shards = not deterministic and 1 < host.process_count <= factory.num_shards
        part, size, own = (0, 1), self.batch_size, host.slice
        if split_shards:
            part, size, own = (host.process_index, host.process_count), host.size, slice(None)
        elif host.process_count > 1 and not deterministic:
            log.warning(
                "%s cannot be divided among %d hosts (it has %d shards): each reads whole batches "
                "and keeps its part, and examples of a batch may repeat. Use more shards, or "
                "config.data.dmvr.deterministic=True.",
                factory.name,
                host.process_count,
                factory.num_shards,
            )
        self._convert.batch_size = size
        batches = factory.batches(batch_size=size, seed=self._seed, skip=first_step, part=part)
        for step, batch in enumerate(batches, first_step):
            fields = self._convert(batch)
            fields = {k: v[own] for k, v in fields.items()}
            ids = np.arange(self.batch_size, dtype=np.int32)[host.slice]
            yield fields | {"example_id": ids + step * self.batch_size}

    def batch_ids(self, step: int) -> dict[str, np.ndarray]:
        """Returns the stream positions of a global batch: `position`, int64 [batch_size]."""
        return {"position": np.arange(self.batch_size) + step * self.batch_size}


class StreamEvalData(_Stream):
    """One pass over a factory's examples; see `mmjax.data.pipeline.loader.EvalData`."""

    def __init__(
        self, cfg: DataConfig, *, spec: str, split: str, max_examples: int, host: HostBatch
    ):
        super().__init__(cfg, spec=spec, split=split, train=False, host=host)
        self._max_examples = max_examples or None
        self._check_repeats()

    def _check_repeats(self) -> None:
        """Raises UserError if two passes differ: the factory would augment in evaluation."""
        first, second = (
            next(self._factory.batches(batch_size=self.batch_size, seed=seed), {})
            for seed in range(2)
        )
        changed = [
            name
            for name, value in first.items()
            if value.dtype.kind in "fiub" and value.tobytes() != second[name].tobytes()
        ]
        if changed:
            raise UserError(
                f"{self._factory.name} returns other values of {', '.join(changed)} in a second "
                "pass, so evaluation would read random crops (or another order). Its _build() must "
                "take is_training and follow it, or derive it from the constructor's argument "
                "`subset`."
            )

    @property
    def num_batches(self) -> int:
        """Number of batches; reads the whole stream."""
        return math.ceil(self.num_examples / self.batch_size)

    @functools.cached_property
    def num_examples(self) -> int:
        """Number of examples; reads the whole stream."""
        return sum(len(next(iter(batch.values()))) for batch in self._examples())

    def iterate(self) -> Iterator[Batch]:
        """Yields this host's part of each batch, padded; `mask` is 1 for an example."""
        first = 0
        for batch in self._examples():
            count = len(next(iter(batch.values())))
            batch["example_id"] = np.arange(first, first + count, dtype=np.int32)
            batch["mask"] = np.ones(count, np.float32)
            first += count
            missing = self.batch_size - count
            padded = {
                k: np.concatenate([v, np.zeros((missing, *v.shape[1:]), v.dtype)])
                for k, v in batch.items()
            }
            yield {k: v[self._host.slice] for k, v in padded.items()}

    def _examples(self) -> Iterator[Batch]:
        left = self._max_examples
        for batch in self._factory.batches(batch_size=self.batch_size):
            fields = self._convert(batch)
            if left is not None:
                fields = {k: v[:left] for k, v in fields.items()}
                left -= len(next(iter(fields.values())))
            yield fields
            if left == 0:
                return
