"""Weights with NaN or infinite values are named when they are loaded or converted."""

import ml_dtypes
import numpy as np
import pytest

from mmjax.convert.load import load_params
from mmjax.monitor import nonfinite
from mmjax.tools import cli
from tests.convert import published
from tests.messages import assert_mentions


def messages(caplog):
    return [r.getMessage() for r in caplog.records if "NaN" in r.getMessage()]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16, np.complex64])
def test_every_array_is_named(caplog, dtype):
    arrays = {name: np.ones(3, dtype) for name in ("a/kernel", "b/kernel", "c/kernel")}
    arrays["a/kernel"][:] = np.nan
    arrays["c/kernel"][1] = np.inf
    nonfinite.warn_about_weights(arrays, "FILE", {"c/kernel": ["key"]})
    (message,) = messages(caplog)
    assert_mentions(message, "FILE", "a/kernel: 3 of 3", "c/kernel (key): 1 of 3")
    assert "b/kernel" not in message


def test_finite_integers_and_text_give_no_warning(caplog):
    arrays = {"a": np.arange(3), "b": np.array(["nan"]), "c": np.ones(2), "d": np.array(True)}
    nonfinite.warn_about_weights(arrays, "FILE")
    assert not messages(caplog)


def test_loading_and_converting_a_checkpoint_warn(tmp_path, caplog):
    arrays = published.values(published.finetuned())
    key = published.ROOT + "_base/tx/layers/1/mha/q/kernel"
    arrays[key][0, 0] = np.nan
    prefix = published.write(tmp_path, arrays)
    load_params(prefix)
    path = "video/encoder/layers/attention/query/kernel"
    assert_mentions(messages(caplog)[0], prefix, path, "1 of 512")
    caplog.clear()
    out = str(tmp_path / "run")
    assert cli.main(["convert", prefix, "--head-dim", "8", "--out", out]) == 0
    (message,) = messages(caplog)
    assert_mentions(message, prefix, path, key)
    assert key.replace("/1/", "/0/") not in message
