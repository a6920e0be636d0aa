"""Datasets, on disk and on their way to the device; alone in importing TensorFlow (for tf.data)."""

import os

# TensorFlow's greetings when it is imported: about CPU features, and about oneDNN kernels, which an
# input pipeline does not use. Its warnings and errors stay.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# Tensors in memory that is kept. Otherwise each batch comes in fresh pages from the system, and
# these cost a fifth of the time of decoding it. TensorFlow's own limit is 64 GiB.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
_megabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(_megabytes))
