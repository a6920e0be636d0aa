"""Language-guided sampling in miniature, on the procedural world.

    python -m mmjax.main --task=guided
    python -m mmjax.main --task=guided --config=demo:simclr

A small ResNet learns from 3,000 captioned images of 48 classes of objects. The positive of an image
is the image with the most similar caption by tf-idf (LGSimCLR), or another crop of the same image
(SimCLR). The argument may also be any other method of docs/guided.md; for clip_sbert, first run
`mmjax sentences world:objects --encoder words --width 64 --out features/objects`.

The evaluation uses 16 classes that do not occur in training: 5-way 5-shot episodes (accuracy 0.94,
SimCLR 0.87), a linear probe (0.87, 0.86) and nearest neighbors (0.85, 0.80). Each run takes a
minute or two on two CPU cores.
"""

from mmjax import config
from mmjax.configs.guided._methods import METHODS, method


def get_config(arg: str = "lgsimclr"):
    """Returns the config.

    Args:
      arg: A method (default: lgsimclr), 'smoke' for two steps on a tiny world (for tests), or both
        separated by a comma.
    """
    words = config.variants(arg, *METHODS, "smoke")
    smoke = "smoke" in words
    name = config.only(words, METHODS, "lgsimclr", what="method")
    parts = method(
        name,
        hidden=128,
        out=64,
        bottleneck=64,
        space=64,
        bank_size=1024,
        prototypes=128,
        queue_length=512,
        queue_start=0 if smoke else 200,
        freeze_prototypes=1 if smoke else 20,
        blur_kernel=3,
    )
    cfg = config.base()
    cfg.task = "guided"
    cfg.batch_size = 8 if smoke else 128
    cfg.total_steps = 2 if smoke else 400
    cfg.log_every = 1 if smoke else 25
    cfg.checkpoint.every = 1 if smoke else 200
    world = "world:objects_tiny" if smoke else "world:objects"
    cfg.data = dict(
        train=world,
        split="train",
        image=dict(size=32, crops=parts["crops"]),
        pairs=dict(path="words") if parts["pairs"] else None,
        text=dict(candidates=1, max_tokens=16, sample="random") if parts["text"] else None,
    )
    if parts["text"] == "features":
        cfg.data.text.features = "features/objects"
    cfg.model = dict(
        image=dict(name="resnet50", blocks=(1, 1, 1), bottleneck=False, width_multiplier=0.25),
        text=dict(name="clip_text_tiny", num_layers=2, dropout_rate=0.0, scan_unroll=0)
        if parts["text"] == "tower"
        else None,
        text_features=64 if parts["text"] == "features" else 0,
        heads=parts["heads"],
        prototypes=parts["prototypes"],
    )
    cfg.augment = dict(image=parts["augment"])
    cfg.loss = parts["loss"]
    cfg.optimizer = dict(
        name="adamw",
        weight_decay=0.01,
        schedule=dict(name="cosine", base=2e-3, warmup_steps=1 if smoke else 40),
    )
    novel = dict(data=world, split="novel_test", batch_size=cfg.batch_size)
    novel["views"] = dict(text=None)
    trained = dict(novel, train_split="novel_train", feature="image")
    cfg.evals = dict(
        few_shot=dict(trained, type="few_shot", episodes=100 if smoke else 5000),
        probe=dict(trained, type="linear_probe"),
        knn=dict(trained, type="knn"),
    )
    return cfg
