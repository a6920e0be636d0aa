"""Converts the batches of DMVR factories: names, types, labels, and views of examples."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from mmjax.data.pipeline.config import DataConfig
from mmjax.data.storage import schema
from mmjax.errors import UserError

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

# Names that DMVR's and VATT's factories give to the fields.
_NAMES = {
    "video": ("image", "vision", "video"),
    "image": ("image", "vision", "video"),
    "touch": ("touch",),
    "audio": ("audio", "waveform"),
    "text": ("text_indices", "text"),
    "label": ("label", "label_index"),
}
_EXAMPLE_FIELDS = ("label", "label_index", "label_name", "text_indices", "text", "key")


@dataclasses.dataclass(kw_only=True)
class Converter:
    """Converts batches to the fields that a config asks for.

    Attributes:
      name: Name of the factory, for messages.
      cfg: The section `data`.
      train: Whether the batches are for training, which has no views.
      batch_size: Number of examples of a full batch.
      pad: Token id of padding.
      num_classes: Number of classes; 0 if not known yet.
    """

    name: str
    cfg: DataConfig
    train: bool
    batch_size: int
    pad: int = 0
    num_classes: int = 0
    _views: dict[str, int] = dataclasses.field(default_factory=dict)

    def __call__(self, batch: Batch) -> Batch:
        """Returns the fields of a batch.

        `video` is uint8 [B, T, H, W, 3], in evaluation [B, V, T, H, W, 3]; `image` and `touch`
        uint8 [B, H, W, 3]; `audio` float32 [B, S], in evaluation [B, V, S]; `text` int32 [B, L, W]
        with 0 for padding; `label` int32 [B], -1 for an unlabeled example, or with
        `data.label.multi_label` float32 [B, C]. Masks are 1 where an example has the modality.

        Raises:
          UserError: A field is missing, or has another shape or other values than configured.
        """
        raw = {name: self._field(name, batch) for name in self._required(batch)}
        count = self._count_examples(batch, raw)
        fields: Batch = {}
        for name, value in raw.items():
            fields |= getattr(self, f"_{name}")(value, count)
        for name in fields.keys() & {"video", "image", "touch", "audio"}:
            fields[f"{name}_mask"] = np.ones(count, np.float32)
        return fields

    def _required(self, batch: Batch) -> list[str]:
        names = [name for name in _NAMES if getattr(self.cfg, name)]
        if not self.train and "label" not in names and self._find("label", batch) is not None:
            names.append("label")  # evaluators may need it
        return names

    def _find(self, name: str, batch: Batch) -> np.ndarray | None:
        """Returns the first field with a name and a type of this modality."""
        for key in _NAMES[name]:
            value = batch.get(key)
            if value is None:
                continue
            value = np.asarray(value)
            is_number = value.dtype.kind in "fiub"
            if is_number and not (name == "text" and value.dtype.kind == "f"):
                return value
        return None

    def _field(self, name: str, batch: Batch) -> np.ndarray:
        value = self._find(name, batch)
        if value is None:
            listed = ", ".join(
                f"{key} ({np.asarray(value).dtype})" for key, value in sorted(batch.items())
            )
            raise UserError(
                f"{self.name} returns no {name}; its batches have {listed}. A factory names it "
                f"{' or '.join(_NAMES[name])}. Set data.{name}=None, or add it to the factory."
            )
        return value

    def _count_examples(self, batch: Batch, raw: Batch) -> int:
        """Returns the number of examples B; a batch may have several clips of each."""
        for key in _EXAMPLE_FIELDS:
            if key in batch:
                return len(batch[key])
        if self.train:
            return len(next(iter(raw.values())))
        # Only media: their rows are B or B · views, with the same views in every batch.
        name, value = next(iter(raw.items()))
        if name not in self._views:
            rows, asked = len(value), self._asked_views(name)
            full = rows % self.batch_size == 0
            self._views[name] = rows // self.batch_size if full else asked
        views = self._views[name]
        if len(value) % views:
            raise self._shape_error(name, value, f"[B * {views}, …]")
        return len(value) // views

    def _asked_views(self, name: str) -> int:
        options = getattr(self.cfg, name)
        if self.train or name not in ("video", "audio") or not options:
            return 1
        return options.views if name == "video" else options.num_clips

    # One function per field: (value, number of examples) -> fields.

    def _video(self, value: np.ndarray, count: int) -> Batch:
        options = self.cfg.video
        self._check_pixels("video", value, ndim=5, size=options.size)
        length = options.num_frames
        return {"video": self._with_views("video", self._uint8(value), count, length, "num_frames")}

    def _image(self, value: np.ndarray, count: int, *, name: str = "image") -> Batch:
        if value.ndim == 5 and value.shape[1] == 1:  # DMVR adds a time axis to images
            value = value[:, 0]
        self._check_pixels(name, value, ndim=4, size=getattr(self.cfg, name).size)
        if len(value) != count:
            raise self._shape_error(name, value, f"[{count}, …]")
        return {name: self._uint8(value)}

    def _touch(self, value: np.ndarray, count: int) -> Batch:
        return self._image(value, count, name="touch")

    def _audio(self, value: np.ndarray, count: int) -> Batch:
        if value.ndim == 3 and value.shape[-1] == 1:
            value = value[..., 0]
        if value.ndim != 2:
            raise self._shape_error("audio", value, "[B, samples]")
        value = value.astype(np.float32)
        if not np.isfinite(value).all() or schema.is_int32_waveform(value.reshape(-1)):
            reason = "NaN or infinite samples"
            if schema.is_int32_waveform(value.reshape(-1)):
                reason = schema.INT32_DEFECT
            raise UserError(
                f"{self.name} returns invalid audio: {reason} Read the shards with mmjax, which "
                "repairs them (docs/dmvr.md), or write them again."
            )
        length = self.cfg.audio.num_samples
        return {"audio": self._with_views("audio", value, count, length, "num_samples")}

    def _text(self, value: np.ndarray, count: int) -> Batch:
        options = self.cfg.text
        value = (value[:, None] if value.ndim == 2 else value).astype(np.int32)
        if value.ndim != 3 or len(value) != count or value.shape[2] != options.max_tokens:
            raise self._shape_error(
                "text", value, f"[{count}, captions, {options.max_tokens}] (data.text.max_tokens)"
            )
        missing = options.candidates - value.shape[1]
        if missing < 0:
            way_out = f"Set it to {value.shape[1]}"
            if options.candidates + missing >= 0:
                build = {"max_context_sentences": options.candidates + missing}
                way_out += (
                    f", or config.data.dmvr.build={build} if the factory adds the caption of the "
                    "clip to those of its context"
                )
            raise self._shape_error(
                "text",
                value,
                f"at most {options.candidates} captions (data.text.candidates). {way_out}",
            )
        padding = value == self.pad
        if self.pad:  # models take id 0 for padding
            value = np.where(padding, 0, np.where(value == 0, self.pad, value)).astype(np.int32)
        value = np.pad(value, ((0, 0), (0, missing), (0, 0)))
        return {"text": value, "text_mask": (value != 0).any(-1).astype(np.float32)}

    def _label(self, value: np.ndarray, count: int) -> Batch:
        multi_label = self.cfg.label.multi_label if self.cfg.label else False
        if len(value) != count or value.ndim > 2:
            raise self._shape_error("label", value, f"[{count}] or [{count}, classes]")
        if value.ndim == 2 and (value.dtype.kind in "fb"):
            return {"label": self._from_vectors(value, multi_label)}
        return {"label": self._from_indices(value.reshape(count, -1), multi_label)}

    def _from_vectors(self, value: np.ndarray, multi_label: bool) -> np.ndarray:
        """Returns labels from vectors [B, C] of counts per class."""
        classes = value.shape[1]
        if self.num_classes and classes != self.num_classes:
            raise self._shape_error(
                "label", value, f"{self.num_classes} classes (data.label.num_classes)"
            )
        self.num_classes = classes
        if multi_label:
            return np.minimum(value, 1).astype(np.float32)
        several = np.flatnonzero((value != 0).sum(1) > 1)
        if several.size:
            raise UserError(
                f"{self.name} returns several classes for example {several[0]} of a batch "
                f"({np.flatnonzero(value[several[0]])[:8].tolist()}). Set "
                "data.label=dict(multi_label=True)."
            )
        return np.where(value.any(1), value.argmax(1), -1).astype(np.int32)

    def _from_indices(self, value: np.ndarray, multi_label: bool) -> np.ndarray:
        """Returns labels from class indices [B, K], -1 for none."""
        if not np.array_equal(value, value.astype(np.int64)):
            raise self._shape_error("label", value, "class indices, or vectors of zeros and ones")
        value = value.astype(np.int64)
        if self.num_classes and value.size and value.max() >= self.num_classes:
            raise UserError(
                f"{self.name} returns class index {value.max()}; expected less than "
                f"data.label.num_classes={self.num_classes}."
            )
        if multi_label:
            if not self.num_classes:
                raise UserError(
                    f"{self.name} returns class indices instead of vectors. Set "
                    "data.label.num_classes."
                )
            rows, columns = np.nonzero(value >= 0)
            label = np.zeros((len(value), self.num_classes), np.float32)
            label[rows, value[rows, columns]] = 1
            return label
        if value.shape[1] != 1:
            raise self._shape_error("label", value, "one class index per example")
        return np.maximum(value[:, 0], -1).astype(np.int32)

    # Checks.

    def _check_pixels(self, name: str, value: np.ndarray, *, ndim: int, size: int) -> None:
        if value.ndim != ndim or value.shape[-1] != 3 or value.shape[-3:-1] != (size, size):
            frames = "frames, " if ndim == 5 else ""
            raise self._shape_error(
                name, value, f"[B, {frames}{size}, {size}, 3] (data.{name}.size)"
            )

    def _uint8(self, value: np.ndarray) -> np.ndarray:
        if value.dtype == np.uint8:
            return value
        low, high = value.min(initial=0), value.max(initial=0)
        bottom = -1 if self.cfg.dmvr and self.cfg.dmvr.zero_centered else 0
        if not (low >= bottom and high <= 1):
            raise UserError(
                f"{self.name} returns frames in [{low:g}, {high:g}]; expected uint8, or floats in "
                f"[{bottom}, 1]. Let its _build() take zero_centering_image=False and no mean or "
                "standard deviation, or set config.data.dmvr.zero_centered=True for frames in "
                "[-1, 1]."
            )
        return np.round((value - bottom) / (1 - bottom) * 255).astype(np.uint8)

    def _with_views(
        self, name: str, value: np.ndarray, count: int, length: int, key: str
    ) -> np.ndarray:
        """Returns [B, V, length, …] in evaluation and [B, length, …] in training.

        DMVR repeats an example along the batch, plain audio and VATT's crops along time.
        """
        asked = self._asked_views(name)
        most = max(map(self._asked_views, ("video", "audio")))  # one keyword for both
        rows, steps = value.shape[:2]
        if rows == count and steps in (length, length * asked, length * most):
            views = steps // length
        elif steps == length and count and rows % count == 0 and not self.train:
            views = rows // count
        else:
            raise self._shape_error(
                name, value, f"[{count}, {length}, …] (data.{name}.{key}), {asked} clips each"
            )
        if self._views.setdefault(f"{name} views", views) != views:
            raise self._shape_error(name, value, "the same number of clips in every batch")
        if views != asked and not self._views.get(f"{name} warned"):
            self._views[f"{name} warned"] = 1
            log.warning(
                "%s returns %d clips of %s per example, not %d: results differ from those of the "
                "requested protocol.",
                self.name,
                views,
                name,
                asked,
            )
        if self.train:
            return value
        return value.reshape(count, views, length, *value.shape[2:])

    def _shape_error(self, name: str, value: np.ndarray, expected: str) -> UserError:
        return UserError(
            f"{self.name} returns {name} {value.dtype} {list(value.shape)}; expected {expected}. "
            "Check that its _build() uses the keywords it is given (docs/dmvr.md)."
        )
