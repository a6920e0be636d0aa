"""Optimizers and learning-rate schedules from a config: optax, and Keras rules where they differ.

A config section names an optimizer and its options (the keywords of a function in `OPTIMIZERS`), a
schedule (the keywords of a function in `SCHEDULES`), and options of every optimizer: clipping,
weight decay exclusions and learning-rate factors by parameter path.

    dict(
        name="adamw", weight_decay=0.05, weight_decay_exclude=("bias$", "norm"),
        schedule=dict(name="cosine", base=1e-3, warmup_steps=500),
        lr_multipliers=(("^video/", 0.1),),
        clip_norm=0.75, clip_groups=(("^classifier/", 0.0),),
    )

An update clips gradients, applies the rule of the optimizer with the learning rate of this step,
and multiplies by the learning-rate factors. Leaves that are None (frozen parameters) have no slots.

Groups of parameters can have an optimizer each; see `mmjax.optim.groups`.
"""

from mmjax.optim.build import make_optimizer
from mmjax.optim.clipping import make_clipping, separates_lookups
from mmjax.optim.optimizers import OPTIMIZERS
from mmjax.optim.schedules import SCHEDULES, CyclingSchedule, Schedule, make_schedule

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "CyclingSchedule",
    "Schedule",
    "make_clipping",
    "make_optimizer",
    "make_schedule",
    "separates_lookups",
]
