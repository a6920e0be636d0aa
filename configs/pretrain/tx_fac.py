"""VATT's modality-specific pretraining (released: tx_fac_bbs, tx_fac_mbs, tx_fac_lbs).

    python -m mmjax.main --task=pretrain --model_arch=tx_fac --config=tx_fac:mbs \\
        --model_dir=runs/mbs --config.init_from=words.npz \\
        --config.data.text.vocab=howto100m_en.txt

The recipe reads datasets/howto100m and datasets/audioset (see docs/datasets); set
`--config.data.train` for other datasets. The word vectors are frozen; here they are VATT's, with
its vocabulary (see docs/convert.md). To train them instead, omit both options and set
`--config.optimizer.frozen="()"`.

The argument is the size: bbs, mbs (default) or lbs, for a base, medium or large video tower. The
values are those of VATT's published code. Its batch size is not published (the paper mentions 2048
examples on 256 TPU v3 cores); choose one that fits your devices. The fine-tuning recipes
(`--task=finetune`) list the published results of these towers. We have not trained them.
"""

from mmjax.configs.pretrain import _vatt


def get_config(arg: str = "mbs"):
    """Returns the config.

    Args:
      arg: 'bbs', 'mbs' or 'lbs'.
    """
    model = dict(name="tx_fac", size=arg, remat="dots")
    return _vatt.settings(model, sharding="fsdp" if arg == "lbs" else "dp")
