"""Heads on an encoder for a procedural end task.

    python -m mmjax.main --task=guided
    python -m mmjax.main --task=probe --override_checkpoint=runs/guided-demo
    python -m mmjax.main --task=probe --config=demo:THORDepth --override_checkpoint=runs/guided-demo

Without --override_checkpoint, the encoder is a small ResNet with random weights. `mmjax benchmark
--root world` runs all end tasks.
"""

from mmjax import config
from mmjax.end_tasks import registry


def get_config(arg: str = "Pets"):
    """Returns the config.

    Args:
      arg: Name of the end task; 'smoke' for two epochs (for tests); or both separated by a comma.
    """
    words = config.variants(arg, *registry.END_TASKS, "smoke")
    smoke = "smoke" in words
    task = registry.find(config.only(words, registry.END_TASKS, "Pets", what="end task"))
    cfg = config.base()
    cfg.task = "probe"
    cfg.log_every = 10
    cfg.init_from = "random:resnet_demo"
    cfg.probe = dict(end_task=task.name, root="world", epochs=2 if smoke else 30)
    if task.pixelwise:
        cfg.probe.epochs = 1 if smoke else 10
    cfg.model = dict(head=dict(name=""))  # the default of the end task
    return cfg
