"""LGSSL's published settings on RedCaps: ResNet-50, 250,000 steps of 512 images or pairs.

    mmjax sentences datasets/redcaps --encoder st:all-mpnet-base-v2 --out features/redcaps
    mmjax neighbors features/redcaps --out pairs/redcaps
    python -m mmjax.main --task=guided --config=lgssl:lgsimclr

The argument is the method. lgsimclr, lgsimsiam and lgslip need the pairs; simclr, simsiam, nnclr,
swav, clip, declip and slip do not; clip_sbert needs the caption features (features/redcaps).
docs/guided.md describes how to prepare the data. We have not trained these recipes.

Run LGSSL's evaluation during or after training:

    python -m mmjax.main --task=guided --mode=eval --evals=suite \\
        --model_dir=runs/guided-lgssl-lgsimclr
"""

from mmjax import config
from mmjax.configs.guided._methods import METHODS, method

_TEXT = dict(name="clip_text_b", projection=0, activation="quick_gelu")


def get_config(arg: str = "lgsimclr"):
    """Returns the config.

    Args:
      arg: A method; optionally 'exempt' (no weight decay of norms, biases and scales, as LGSSL
        intended) and 'fixed_blur' (the blur of kornia up to 0.6.9, as in its runs), with commas.
    """
    words = config.variants(arg, *METHODS, "exempt", "fixed_blur")
    name = config.only(words, METHODS, "lgsimclr", what="method")
    parts = method(name, fixed_blur="fixed_blur" in words)
    cfg = config.base()
    cfg.task = "guided"
    cfg.seed = 8
    cfg.batch_size = 512
    cfg.total_steps = 250_000
    cfg.log_every = 50
    cfg.checkpoint = dict(every=25_000, keep=10)
    text = dict(candidates=1, sample="first")
    if parts["text"] == "tower":
        text |= dict(tokenizer="clip", max_tokens=77)
    cfg.data = dict(
        train="datasets/redcaps",
        split="train",
        corrupt="skip",
        max_corrupt=100_000,
        image=dict(size=224, crops=parts["crops"], antialias=False),
        pairs=dict(path="pairs/redcaps") if parts["pairs"] else None,
        text=text if parts["text"] else None,
    )
    if parts["text"] == "features":
        cfg.data.text.features = "features/redcaps"
    backbone = dict(name="resnet50", zero_init_last=name in ("simsiam", "lgsimsiam"))
    cfg.model = dict(
        image=backbone,
        text=_TEXT if parts["text"] == "tower" else None,
        text_features=768 if parts["text"] == "features" else 0,  # width of all-mpnet-base-v2
        heads=parts["heads"],
        prototypes=parts["prototypes"],
        dtype="bfloat16",
    )
    cfg.augment = dict(image=parts["augment"])
    cfg.loss = parts["loss"]
    cfg.optimizer = dict(
        name="adamw",
        weight_decay=0.01,
        weight_decay_exclude=("(^|/)(bias|scale)$",) if "exempt" in words else (),
        schedule=dict(
            name="cosine",
            base=1e-3,
            per_examples=512,
            warmup_from=1e-5,
            warmup_steps=4999,
            hold_steps=1,
            end=1e-6,
        ),
    )
    return cfg
