"""Heads on an encoder for a procedural end task.

    python -m mmjax.main --task=guided --config.model.image.blocks='(1,1,1,1)'
    python -m mmjax.main --task=probe --override_checkpoint=runs/guided-demo
    python -m mmjax.main --task=probe --config=demo:THORDepth --override_checkpoint=runs/guided-demo
    python -m mmjax.main --task=probe --config=demo:supervised

Without --override_checkpoint, the encoder is a small ResNet with random weights. `supervised` also
trains this encoder, on 2,000 labeled images (test accuracy 0.95, two minutes on two CPU cores).
`mmjax benchmark` runs all end tasks; docs/probe.md compares these encoders.
"""

from mmjax import config
from mmjax.end_tasks import registry


def get_config(arg: str = "Pets"):
    """Returns the config.

    Args:
      arg: Name of the end task, or 'supervised'; 'smoke' for two epochs (for tests); or both
        separated by a comma.
    """
    words = config.variants(arg, *registry.END_TASKS, "supervised", "smoke")
    smoke, supervised = "smoke" in words, "supervised" in words
    name = config.only(words, [*registry.END_TASKS, "supervised"], "Pets", what="end task")
    task = registry.find("Imagenet" if supervised else name)
    cfg = config.base()
    cfg.task = "probe"
    cfg.log_every = 10
    cfg.init_from = "random:resnet_demo"
    cfg.probe = dict(end_task=task.name, root="world", epochs=2 if smoke else 30)
    if task.pixelwise:
        cfg.probe.epochs = 1 if smoke else 10
    if supervised:
        cfg.probe.root = "world" if smoke else "world,train=2000"
        cfg.probe.epochs = 2 if smoke else 16
        cfg.probe.fine_tune = True
        cfg.probe.encode_once = False
        cfg.probe.configs = (dict(name="adam-0.001", optimizer="adam", lr=0.001),)
    cfg.model = dict(head=dict(name=""))  # the default of the end task
    return cfg
