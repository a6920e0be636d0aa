"""Stand-ins with the interfaces of DMVR's and VATT's factories; none imports `dmvr`.

Each record is a number k: its frames and samples encode k, its class is k % 4.
"""

import abc
import collections
import functools
import types

import tensorflow as tf

NUM_RECORDS, NUM_CLASSES = 10, 4
BUILT = []  # the keywords of every `_build`

Described = collections.namedtuple("Described", "fn_name fn feature_name stateful")


class Builder:
    """The part of DMVR's builders that is used: a list of named functions."""

    def __init__(self):
        self._names = []

    def add_fn(self, fn_name):
        self._names.append(Described(fn_name, None, None, False))

    def get_summary(self):
        return list(self._names)


class Base(abc.ABC):
    """Like `BaseVideoDatasetFactory`: `configure` takes anything, once."""

    def __init__(self, shards=None):
        self._is_configured = False
        self.sampler_builder, self.preprocessor_builder = Builder(), Builder()
        self.tuned = {}
        if shards is not None:
            self._shards = shards

    def configure(self, *args, **kwargs):
        if self._is_configured:
            raise ValueError("`configure` has already been called.")
        self._is_configured = True
        BUILT.append(kwargs)
        self._build(*args, **kwargs)
        return self

    @abc.abstractmethod
    def _build(self, *args, **kwargs): ...

    def tune(self, shuffle_buffer=None, seed=None):
        self.tuned |= {"shuffle_buffer": shuffle_buffer}
        return self

    def set_up(self, *, train, frames=32, clips=1, size=8, samples=6, **others):
        """Takes the settings of a subclass. Others: one_hot, centered, stacked_audio, …"""
        self.train, self.frames, self.size, self.samples = train, frames, size, samples
        self.clips = 1 if train else clips
        self.others = types.SimpleNamespace(
            **(
                dict(one_hot=True, centered=False, audio_clips=None, vatt=False, text=(2, 3))
                | others
            )
        )
        if train:
            self.sampler_builder.add_fn("image_random_sample")
            self.preprocessor_builder.add_fn("image_random_crop")
        else:
            self.sampler_builder.add_fn("image_middle_sample")

    def batch_of(self, k):
        """Returns a batch for record numbers [B]."""
        o, count = self.others, tf.shape(k)[0]
        value = tf.cast(k, tf.float32)[:, None]
        noise = tf.random.uniform([count, 1]) * 0.5 if self.train else tf.zeros([count, 1])
        pixels = tf.repeat((value + noise) / 255, self.clips, 0)[..., None, None, None]
        if o.centered:
            pixels = pixels * 2 - 1
        shape = [count * self.clips, self.frames, self.size, self.size, 3]
        audio_clips = self.clips if o.audio_clips is None else o.audio_clips
        audio = tf.tile(value / 10, [1, audio_clips * self.samples])
        label = (
            tf.one_hot(k % NUM_CLASSES, NUM_CLASSES) if o.one_hot else (k % NUM_CLASSES)[:, None]
        )
        captions, words = o.text
        text = tf.cast(tf.tile(k[:, None, None] + 1, [1, captions, words]), tf.int32)
        if o.vatt:
            audio = tf.reshape(audio, [-1, self.samples])
        return {
            "vision" if o.vatt else "image": tf.broadcast_to(pixels, shape),
            "audio": audio,
            "text" if o.vatt else "text_indices": text,
            "label": label,
        }

    def make_dataset(
        self,
        shuffle=True,
        num_epochs=None,
        batch_size=16,
        padded_batch=False,
        padded_batch_shapes=None,
        drop_remainder=True,
        keep_key=False,
        cache=False,
        override_preprocess_fn=None,
        **experimental_kwargs,
    ):
        if not self._is_configured:
            raise ValueError("Factory must be configured.")
        dataset = tf.data.Dataset.range(NUM_RECORDS)
        if hasattr(self, "_shards"):  # record numbers k with k % number of shards
            numbers = tf.constant(
                [int(shard.rsplit("-", 1)[-1]) for shard in self._shards], tf.int64
            )
            dataset = tf.data.Dataset.from_tensor_slices(numbers).flat_map(
                lambda number: tf.data.Dataset.range(number, NUM_RECORDS, 2)
            )
        dataset = dataset.repeat(num_epochs)
        if shuffle:
            dataset = dataset.shuffle(8)
        dataset = dataset.batch(batch_size, drop_remainder=drop_remainder)
        return dataset.map(self.batch_of, tf.data.AUTOTUNE, deterministic=not shuffle)


class Plain(Base):
    """DMVR's own factories: constructor `(subset)`, explicit parameters of `_build`."""

    def __init__(self, subset="train"):
        if subset not in ("train", "test"):
            raise ValueError(f"Unknown subset {subset}.")
        super().__init__()
        self.subset = subset

    def _build(
        self,
        is_training=True,
        num_frames=32,
        stride=1,
        num_test_clips=1,
        min_resize=10,
        crop_size=9,
        zero_centering_image=False,
        num_samples=30,
        max_num_tokens=16,
        max_num_captions=1,
        one_hot_label=True,
    ):
        self.set_up(
            train=is_training,
            frames=num_frames,
            clips=num_test_clips,
            size=crop_size,
            samples=num_samples,
            one_hot=one_hot_label,
            centered=zero_centering_image,
            text=(max_num_captions, max_num_tokens),
        )


class Kwargs(Plain):
    """`_build(**kwargs)` that adds an option and passes the others on."""

    def _build(self, random_flip=True, **kwargs):
        self.flip = random_flip
        super()._build(**kwargs)


class Swallows(Base):
    """`_build(**kwargs)` of its own, which takes anything."""

    def __init__(self, subset="train"):
        super().__init__()

    def _build(self, **kwargs):
        self.set_up(
            train=kwargs["is_training"],
            frames=kwargs["num_frames"],
            size=kwargs["crop_size"],
            samples=kwargs["num_samples"],
        )


class Explicit(Base):
    """`configure` overridden with explicit names."""

    def __init__(self, subset="train"):
        super().__init__()

    def configure(self, is_training, num_frames, crop_size=8, num_samples=6):
        return super().configure(
            train=is_training, frames=num_frames, size=crop_size, samples=num_samples
        )

    def _build(self, **kwargs):
        self.set_up(**kwargs)


class FromSubset(Base):
    """No `is_training`: it is derived from the subset."""

    def __init__(self, subset="train"):
        super().__init__()
        self.subset = subset

    def _build(self, num_frames=32, crop_size=8, num_samples=6):
        train = self.subset == "train"
        self.set_up(train=train, frames=num_frames, size=crop_size, samples=num_samples)


class AlwaysTraining(FromSubset):
    """Neither `is_training` nor a subset that matters."""

    def _build(self, num_frames=32, crop_size=8, num_samples=6):
        self.set_up(train=True, frames=num_frames, size=crop_size, samples=num_samples)


class Unlisted(AlwaysTraining):
    """The same without builders that list their functions."""

    def _build(self, **kwargs):
        super()._build(**kwargs)
        del self.sampler_builder, self.preprocessor_builder


class Unnamed(Plain):
    """Takes `is_training` and augments in evaluation too, with functions without a known name."""

    def _build(self, is_training=True, num_frames=32, crop_size=8, num_samples=6):
        self.set_up(train=True, frames=num_frames, size=crop_size, samples=num_samples)
        self.sampler_builder, self.preprocessor_builder = Builder(), Builder()
        self.preprocessor_builder.add_fn("fn_0")


class WithContext(Plain):
    """Returns the caption of the clip and those of its context, as VATT trains on HowTo100M."""

    def _build(
        self,
        is_training=True,
        num_frames=32,
        crop_size=8,
        num_samples=6,
        max_num_words=16,
        max_context_sentences=1,
    ):
        self.set_up(
            train=is_training,
            frames=num_frames,
            size=crop_size,
            samples=num_samples,
            text=(max_context_sentences + 1, max_num_words),
        )


class IgnoresSizes(Plain):
    """Accepts the keywords and returns its own sizes and one clip."""

    def _build(self, is_training=True, num_frames=32, num_test_clips=1, crop_size=8, num_samples=6):
        self.set_up(train=is_training, frames=32, size=8, samples=6)


class IgnoresClips(Plain):
    """Accepts `num_test_clips` without forwarding it, as DMVR's sketch of Kinetics-700."""

    def _build(self, is_training=True, num_frames=32, num_test_clips=1, crop_size=8, num_samples=6):
        self.set_up(train=is_training, frames=num_frames, size=crop_size, samples=num_samples)


class OneClipOfAudio(Plain):
    """N clips of video, one of audio."""

    def _build(self, is_training=True, num_frames=32, num_test_clips=1, crop_size=8, num_samples=6):
        self.set_up(
            train=is_training,
            frames=num_frames,
            clips=num_test_clips,
            size=crop_size,
            samples=num_samples,
            audio_clips=1,
        )


class Centered(Plain):
    """Frames in [-1, 1], whatever is asked."""

    def _build(self, is_training=True, num_frames=32, crop_size=8, num_samples=6):
        self.set_up(
            train=is_training, frames=num_frames, size=crop_size, samples=num_samples, centered=True
        )


class Broken(Plain):
    """`_build` raises."""

    def _build(self, **kwargs):
        raise RuntimeError("no such layer")


class InFolder(Plain):
    """The constructor of DMVR's HMDB-51 factory: a directory first, `split` is a fold."""

    def __init__(self, base_dir, subset="train", split=1):
        if split not in (1, 2, 3):
            raise ValueError(f"Unknown fold {split!r}.")
        super().__init__(subset)
        self.base_dir, self.fold = base_dir, split


partial_in_folder = functools.partial(InFolder, base_dir="/data")
shared = Plain("train")
configured = Plain("train").configure(is_training=True, num_frames=2, crop_size=8, num_samples=6)


def make_in_folder(subset):
    return InFolder("/data", subset)


def get_class(name="plain"):
    """Like VATT's `get_ds_factory`: returns a class."""
    return {"plain": Plain}[name]


def without_subset():
    return Plain("train")


class Sharded(Plain):
    """Two shards, of the even and the odd records."""

    def __init__(self, subset="train", directory="gs://bucket", count=2):
        super().__init__(subset)
        self._shards = [f"{directory}/{subset}-{index}" for index in range(count)]


class Tokenizer:
    pad_token, vocab_size = 0, 64

    def __init__(self):
        self.calls = 0

    def initialize(self):
        self.calls += 1


class PadsWithThree(Tokenizer):
    pad_token = 3


class Vatt(Base):
    """VATT's shape of a factory."""

    tokenizer_class = Tokenizer

    def __init__(self, subset="train", split=1):
        super().__init__()

    def _build(
        self,
        is_training=True,
        num_frames=32,
        stride=1,
        num_test_clips=1,
        min_resize=256,
        crop_size=224,
        multi_crop=False,
        crop_resize_style="Inception",
        min_aspect_ratio=0.5,
        max_aspect_ratio=2,
        min_area_ratio=0.08,
        max_area_ratio=1.0,
        zero_centering_image=False,
        color_augmentation=True,
        max_num_words=16,
        max_context_sentences=1,
        tokenizer="howto100m_en",
        num_samples=153600,
        audio_stride=1,
        one_hot_label=True,
        **kwargs,
    ):
        self.set_up(
            train=is_training,
            frames=num_frames,
            clips=num_test_clips * (3 if multi_crop else 1),
            size=crop_size,
            samples=num_samples,
            audio_clips=1 if is_training else num_test_clips,
            one_hot=one_hot_label,
            vatt=True,
            text=(max_context_sentences, max_num_words),
        )
        self.tokenizer = self.tokenizer_class()

    def make_dataset(self, *args, **kwargs):
        if not self.tokenizer.calls:
            raise RuntimeError("Model was not initialized. Call `initialize` method first.")
        return super().make_dataset(*args, **kwargs)


class VattPadsWithThree(Vatt):
    tokenizer_class = PadsWithThree


class Loader:
    """VATT's loaders: neither `configure` nor `make_dataset`."""

    def __init__(self, dataset_id, params):
        self.dmvr_factory = Vatt()
        self.batch_size = params.train.input.batch_size

    def __call__(self, input_context=None):
        return self.dmvr_factory.make_dataset(batch_size=self.batch_size)


_input = types.SimpleNamespace(batch_size=2)
loader = Loader("toy", types.SimpleNamespace(train=types.SimpleNamespace(input=_input)))
