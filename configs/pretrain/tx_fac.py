"""VATT's modality-specific pretraining (released: tx_fac_bbs, tx_fac_mbs, tx_fac_lbs).

    python -m mmjax.main --task=pretrain --model_arch=tx_fac --config=tx_fac:mbs \\
        --model_dir=runs/mbs --config.init_from=words.npz \\
        --config.data.text.vocab=howto100m_en.txt

It reads data/howto100m and data/audioset (docs/datasets; `--config.data.train` for others). Word
vectors stay as they are given, here VATT's with its vocabulary (docs/convert.md); to learn them
instead, leave both out and say `--config.optimizer.frozen="()"`.

The argument is the size: bbs, mbs (default) or lbs, a base, medium or large video tower. The values
are those of VATT's published code; its batch size is not published (the paper names 2048 over 256
TPU-v3 cores) and is for you to set with your devices. What these towers reached after fine-tuning
stands in the recipes of the end tasks (`--task=finetune`).
"""

from mmjax.configs.pretrain import _vatt


def get_config(arg: str = "mbs"):
    """`arg`: 'bbs', 'mbs' or 'lbs'."""
    model = dict(name="tx_fac", size=arg, remat="dots")
    return _vatt.settings(model, sharding="fsdp" if arg == "lbs" else "dp")
