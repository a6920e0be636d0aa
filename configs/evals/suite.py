"""LGSSL's evaluation of image features: linear probe and 5-way 5-shot episodes on 15 datasets.

    python -m mmjax.main --task=guided --mode=eval --evals=suite --override_checkpoint=RUN
    python -m mmjax.main --task=guided --mode=eval --evals=suite:cifar10,dtd \\
        --override_checkpoint=RUN

RUN is a run directory of any task with images (pass its --task), or the output of `mmjax convert`
for a published backbone. The datasets are searched in datasets/evaluation
(--config.evals.suite.root=DIR) in the layouts of docs/image_sets.md; those that do not exist are
skipped. The result table is written to RUN as suite.txt, suite.csv and suite.tex.
"""

import ml_collections

# The published preprocessing, equal in every pixel value: the short side is resized to 224 with
# bicubic interpolation, then the center square is cropped.
_PUBLISHED = dict(size=224, resize="bicubic", square="crop_resized", antialias=True)


def get_config(arg: str = "all") -> ml_collections.ConfigDict:
    """Returns the evaluator set.

    Args:
      arg: Comma-separated names of datasets, or 'all' for the 15 datasets of LGSSL.
    """
    return ml_collections.ConfigDict(
        dict(
            suite=dict(
                type="suite",
                datasets="all" if arg == "all" else tuple(arg.split(",")),
                root="datasets/evaluation",
                missing="skip",
                feature="image",
                views=dict(image=_PUBLISHED, text=None),
                probe=dict(penalty="norm"),
                few_shot=dict(episodes=5000),
                cache=True,
            )
        )
    )
