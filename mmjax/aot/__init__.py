"""Programs compiled for TPUs and GPUs that this machine does not have: `mmjax plan --compile`.

The compilers are the real ones, libtpu and XLA's CUDA plugin, so memory, collectives and fusions
are those of the device. Times are lower bounds from data sheets, not measurements.
"""
