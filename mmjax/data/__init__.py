"""Datasets on disk, and the input pipeline, which uses TensorFlow for tf.data."""

import os

# Hide the messages of TensorFlow at import about CPU features and oneDNN kernels, which an input
# pipeline does not use. Warnings and errors are still shown.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# Reuse the memory of tensors. Otherwise the system allocates new pages for every batch, which takes
# a fifth of the time of decoding it. The default limit of TensorFlow is 64 GiB.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
_megabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(_megabytes))
