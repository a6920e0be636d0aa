"""Settings that VATT's pretraining recipes share: `tx_fac`, `ut_fac` and `mmv_fac`."""

from mmjax.published.vatt import pretraining_config


def settings(model: dict, *, sharding: str = "dp"):
    """Returns the published config with a model."""
    cfg = pretraining_config()
    cfg.sharding = sharding
    cfg.model = dict(model, dtype="bfloat16")
    return cfg
