"""Heads on your frozen encoder for one end task.

    python -m mmjax.main --task=probe --config=end_task:Pets --override_checkpoint=runs/my-encoder

The data are read from `datasets/`; docs/end_tasks.md lists the files. `mmjax benchmark` runs many
end tasks and encoders, and compares them.
"""

from mmjax import config
from mmjax.end_tasks import registry


def get_config(arg: str = "CIFAR-10"):
    """Returns the config.

    Args:
      arg: Name of the end task, or `package.module:Name` of your own.
    """
    registry.find(arg)
    cfg = config.base()
    cfg.task = "probe"
    cfg.log_every = 100
    cfg.probe = dict(end_task=arg)
    cfg.model = dict(head=dict(name=""))  # the default of the end task
    return cfg
