"""Datasets, on disk and on their way to the device; alone in importing TensorFlow (for tf.data)."""

import os

# TensorFlow's greetings when it is imported: about CPU features, and about oneDNN kernels, which an
# input pipeline does not use. Its warnings and errors stay.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
