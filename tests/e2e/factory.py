"""A DMVR factory as users write them: eight labeled gray clips."""

import tensorflow as tf


class Clips:
    def __init__(self, subset="train"):
        self._frames = self._size = 0

    def configure(self, *args, **kwargs):
        self._build(*args, **kwargs)
        return self

    def _build(self, is_training=True, num_frames=1, crop_size=8, random_flip=True):
        self._frames, self._size = num_frames, crop_size

    def make_dataset(self, shuffle, num_epochs, batch_size, drop_remainder):
        shape = [self._frames, self._size, self._size, 3]

        def example(number):
            return {"image": tf.fill(shape, tf.cast(number, tf.float32) / 8), "label": number % 4}

        dataset = tf.data.Dataset.range(8).map(example).repeat(num_epochs)
        return dataset.batch(batch_size, drop_remainder=drop_remainder)
