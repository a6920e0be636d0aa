"""The built-in end tasks by name, and how an end task of your own is found.

They are the 20 end tasks of pyVTAB, the others that its code registers, and two more: `CIFAR-10`,
and `KITTIFlow`, which predicts the flow itself instead of the brightness of its color code.
"""

from __future__ import annotations

from mmjax import registry
from mmjax.end_tasks.declaration import EndTask
from mmjax.end_tasks.image_level import IMAGE_LEVEL
from mmjax.end_tasks.pixelwise import PIXELWISE
from mmjax.errors import UserError

END_TASKS: dict[str, EndTask] = {task.name: task for task in (*IMAGE_LEVEL, *PIXELWISE)}
# Names that later revisions of pyVTAB use.
ALIASES = {"CLEVRNumObjects": "CLEVERNumObjects", "CLEVRDist": "CLEVERDist"}
# The 20 end tasks of the paper.
PAPER: tuple[str, ...] = (
    *("Imagenet", "Pets", "CalTech-101", "CIFAR-100", "SUN397", "Eurosat", "dtd"),
    *("KineticsActionPrediction", "CLEVERNumObjects", "THORNumSteps", "THORActionPrediction"),
    *("nuScenesActionPrediction", "CityscapesSemanticSegmentation", "Pets-Detection", "EgoHands"),
    *("THORDepth", "TaskonomyDepth", "NYUDepth", "NYUWalkable", "KITTI"),
)


def find(name: str) -> EndTask:
    """Returns an end task.

    Args:
      name: A key of `END_TASKS` or `ALIASES`, or `package.module:Name` of your own `EndTask`.

    Raises:
      UserError: The name is none of these.
    """
    task = registry.resolve("end task", ALIASES.get(name, name), END_TASKS)
    if not isinstance(task, EndTask):
        raise UserError(
            f"end task {name}: expected an instance of mmjax.end_tasks.declaration.EndTask; got "
            f"{type(task).__name__}."
        )
    return task
