import numpy as np
import pytest

from mmjax import tree
from mmjax.convert.vatt_names import FINETUNE, fill, key_of, keys_of
from mmjax.errors import UserError
from mmjax.models.vatt import make_model
from mmjax.state import ModelDef

# Words of VATT's published checkpoints: one path of each kind.
PREFIX = "model/layer_with_weights-0/"
VIDEO = "_base_layer/vid_backbone/_base/"
AUDIO = "_base_layer/aud_backbone/_base/"
KNOWN = {
    "video/patch/kernel": VIDEO + "voxel_to_patch/kernel",
    "video/agg_token": VIDEO + "agg_embedding",
    "video/positions/vertical": VIDEO + "pos_embedding_lookup/"
    "vertical_position_embeddings/embeddings",
    "video/positions/norm/bias": VIDEO + "pos_embedding_lookup/layernorm/beta",
    "video/encoder/layers/attention_norm/scale": VIDEO + "tx/layers/{i}/layer_norm/gamma",
    "audio/encoder/layers/attention/out/bias": AUDIO + "tx/layers/{i}/mha/o/bias",
    "audio/encoder/layers/mlp/down/kernel": AUDIO + "tx/layers/{i}/feed_forward/mlp/wo/kernel",
    "text/relative_bias": "_base_layer/txt_backbone/base_lm/layers/0/self_attention/attention/"
    "relative_attention_bias/embeddings",
    "text/encoder/final_norm/scale": "_base_layer/txt_backbone/base_lm/final_layer_norm/weight",
    "head/video_fine_norm/var": "_head_layer/_bridge_heads/0/hid_to_va/bn/moving_variance",
    "head/text_coarse/bias": "_head_layer/_bridge_heads/0/txt_to_vat/bias",
}


def test_known_keys():
    assert {path: key_of(path).removeprefix(PREFIX) for path in KNOWN} == KNOWN
    assert key_of("audio/positions/spectral", audio="spt").endswith(
        "spectoral_position_embeddings/embeddings"
    )
    assert key_of("video/patch/bias", parts=FINETUNE) == PREFIX + "_base/voxel_to_patch/bias"
    assert key_of("classifier/kernel", parts=FINETUNE) == PREFIX + "_ops/cls/kernel"


def test_every_array_of_tx_fac_has_its_own_keys():
    model = ModelDef(make_model("tx_fac", size="mbs"))
    leaves = tree.flatten(model.params) | tree.flatten(model.extra)
    keys = [key for path, leaf in leaves.items() for key in keys_of(path, leaf.shape)]
    # Two towers of 12 layers with 16 arrays, six of text with 9; 10 and 8 more, 6; the head's.
    assert len(keys) == 2 * 12 * 16 + 10 + 8 + 6 * 9 + 5 + (3 + 4 + 6 + 6)
    assert len(set(keys)) == len(keys)


def test_layers_are_stacked_in_order():
    path = "video/encoder/layers/mlp/up/bias"
    out = fill({path: (3, 2)}, lambda key: np.full(2, float(key.split("/layers/")[1][0])))
    np.testing.assert_array_equal(out[path], [[0, 0], [1, 1], [2, 2]])


def test_paths_that_vatt_does_not_have_are_named():
    with pytest.raises(UserError, match="touch/patch/kernel"):
        key_of("touch/patch/kernel")
    with pytest.raises(UserError, match="video/encoder/layers/mlp/gate/kernel"):
        key_of("video/encoder/layers/mlp/gate/kernel")
