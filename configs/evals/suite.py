"""LGSSL's evaluation of images' features: a linear probe and 5-way 5-shot episodes on 15 sets.

    python -m mmjax.main --task=guided --mode=eval --evals=suite --override_checkpoint=RUN
    python -m mmjax.main --task=guided --mode=eval --evals=suite:cifar10,dtd \
        --override_checkpoint=RUN

RUN is a run directory of any task with images (--task names it), or what `mmjax convert` makes of
a published backbone. The sets are looked for below data/evaluation
(--config.evals.suite.root=FOLDER) in the layouts of docs/image_sets.md; one that is not there is
left out of the table, which RUN gets as suite.txt, suite.csv and suite.tex.
"""

import ml_collections

# Short side to 224, bicubic, and the middle square, to the gray level.
_PUBLISHED = dict(size=224, resize="bicubic", square="crop_resized", antialias=True)


def get_config(arg: str = "all"):
    """`arg`: sets by name, with commas between; all 15 by default."""
    return ml_collections.ConfigDict(
        dict(
            suite=dict(
                type="suite",
                datasets="all" if arg == "all" else tuple(arg.split(",")),
                root="data/evaluation",
                missing="skip",
                feature="image",
                views=dict(image=_PUBLISHED, text=None),
                probe=dict(penalty="norm"),
                few_shot=dict(episodes=5000),
                cache=True,
            )
        )
    )
