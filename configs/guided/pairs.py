"""Your own captioned images: a small ResNet on one machine, with or without pairs by caption.

    mmjax import captions --media IMAGES --out images.jsonl
    mmjax build --csv images.jsonl --media-root IMAGES --out datasets/images --size 256
    mmjax sentences datasets/images --encoder all-MiniLM-L6-v2 --out features/images
    mmjax neighbors features/images --data datasets/images --out pairs/images
    python -m mmjax.main --task=guided --config=pairs

The first four commands prepare the data: a dataset of images and captions
(docs/datasets/captions.md), embeddings of the captions (docs/sentences.md) and their nearest
neighbors (docs/neighbors.md). The argument is the method, as for --config=lgssl. `pairs:simclr` is
the baseline without captions and needs only the first two commands. docs/guided.md has results.

To evaluate the features, you need labeled images, yours or a published dataset
(docs/image_sets.md), during or after training:

    python -m mmjax.main --task=guided --mode=eval --model_dir=runs/guided-pairs \\
        --evals=suite:cifar10
"""

from mmjax import config
from mmjax.configs.guided._methods import METHODS, method


def get_config(arg: str = "lgsimclr"):
    """Returns the config.

    Args:
      arg: A method; optionally ',resnet50' for that backbone on 224 pixels.
    """
    words = config.variants(arg, *METHODS, "resnet50")
    large = "resnet50" in words
    name = config.only(words, METHODS, "lgsimclr", what="method")
    size = 224 if large else 64
    sizes = dict(blur_kernel=15) if large else dict(hidden=512, bank_size=4096, blur_kernel=5)
    parts = method(name, **sizes)
    cfg = config.base()
    cfg.task = "guided"
    cfg.batch_size = 256
    cfg.total_steps = 20_000
    cfg.log_every = 50
    cfg.checkpoint = dict(every=1000, keep=2)
    cfg.data = dict(
        train="datasets/images",
        split="train",
        image=dict(size=size, crops=parts["crops"]),
        pairs=dict(path="pairs/images") if parts["pairs"] else None,
        text=dict(candidates=1, max_tokens=32, sample="random") if parts["text"] else None,
    )
    if parts["text"] == "features":
        cfg.data.text.features = "features/images"
    text_tower = dict(name="clip_text_b", num_layers=4, context_length=32)
    cfg.model = dict(
        image="resnet50" if large else dict(name="resnet18", projection=0),
        text=text_tower if parts["text"] == "tower" else None,
        text_features=384 if parts["text"] == "features" else 0,  # width of all-MiniLM-L6-v2
        heads=parts["heads"],
        prototypes=parts["prototypes"],
    )
    cfg.augment = dict(image=parts["augment"])
    cfg.loss = parts["loss"]
    cfg.optimizer = dict(
        name="adamw",
        weight_decay=0.01,
        weight_decay_exclude=("bias$", "scale$"),
        schedule=dict(name="cosine", base=1e-3, per_examples=512, warmup_steps=500),
    )
    return cfg
