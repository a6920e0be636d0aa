"""Names of arrays in VATT's checkpoints, and their mapping to paths of mmjax."""

import numpy as np
import pytest

from mmjax import tree
from mmjax.convert.vatt.names import TX_FAC, fill, find_components, key_of, keys_of, path_of
from mmjax.errors import UserError
from mmjax.models.vatt import make_model
from mmjax.state import ModelDef
from tests.convert import published
from tests.messages import raises

PREFIX = "model/layer_with_weights-0/"
VIDEO = "_base_layer/vid_backbone/_base/"
AUDIO = "_base_layer/aud_backbone/_base/"
UNIFIED = "_base_layer/unified_backbone/unified_transformer/"
# Representative paths of tx_fac.
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
# {checkpoint: {key: (path, layer)}}.
OTHERS = {
    "ut_fac": {
        UNIFIED + "tx/layers/1/mha/q/kernel": ("encoder/layers/attention/query/kernel", 1),
        UNIFIED + "aud_agg_embedding": ("audio/agg_token", None),
        UNIFIED + "raw_to_embeddings/text/embeddings": ("text/word_embedding", None),
        UNIFIED + "post_proj/video/bias": ("video/post_projection/bias", None),
    },
    "finetuned": {
        "_base/voxel_to_patch/bias": ("video/patch/bias", None),
        "_ops/cls/kernel": ("classifier/kernel", None),
    },
    "mmv_fac": {
        VIDEO + "conv3d_2c_3x3/bn/moving_mean": ("video/conv_2c/norm/mean", None),
        VIDEO + "mixed_4e/unit3d_b2_1/conv3d/kernel": ("video/mixed_4e/b2b/conv/kernel", None),
        AUDIO + "block_groups/3/layers/0/projection_layers/1/bn/gamma": (
            "audio/groups/3/0/shortcut/norm/scale",
            None,
        ),
        AUDIO + "block_groups/0/layers/1/conv_relu_dropblock_layers/6/conv2d/kernel": (
            "audio/groups/0/1/expand/conv/kernel",
            None,
        ),
    },
}


def test_tx_fac_paths_and_keys_map_both_ways():
    assert {path: key_of(path).removeprefix(PREFIX) for path in KNOWN} == KNOWN
    for path, key in KNOWN.items():
        layer = 7 if "{i}" in key else None
        assert path_of(PREFIX + key.replace("{i}", "7")) == (path, layer)


@pytest.mark.parametrize("name", OTHERS)
def test_keys_of_other_models_map_to_paths(name):
    keys = getattr(published, name)()
    components = find_components(keys)
    for key, (path, layer) in OTHERS[name].items():
        assert PREFIX + key in keys
        assert path_of(PREFIX + key, components) == (path, layer)


def test_components_are_detected_from_the_keys():
    assert set(find_components(published.tx_fac())) == set(TX_FAC)
    types = {
        "mmv_fac": ["i3d", "resnet2d", "linear", "fac"],
        "ut_fac": ["unified", "fac"],
        "finetuned": ["vit", "classifier"],
    }
    for name, expected in types.items():
        assert [
            component.type for component in find_components(getattr(published, name)())
        ] == expected
    assert find_components(["model/dense/kernel", "save_counter"]) == ()


def test_arrays_of_tx_fac_have_unique_keys():
    model = ModelDef(make_model("tx_fac", size="mbs"))
    leaves = tree.flatten(model.params) | tree.flatten(model.extra)
    keys = [key for path, leaf in leaves.items() for key in keys_of(path, leaf.shape)]
    # Two towers of 12 layers with 16 arrays each and 10 and 8 more; a text tower of 6 layers with
    # 9 arrays each and 5 more; the head.
    assert len(keys) == 2 * 12 * 16 + 10 + 8 + 6 * 9 + 5 + (3 + 4 + 6 + 6)
    assert len(set(keys)) == len(keys)


def test_layers_are_stacked_in_order():
    path = "video/encoder/layers/mlp/up/bias"
    out = fill({path: (3, 2)}, lambda key: np.full(2, float(key.split("/layers/")[1][0])))
    np.testing.assert_array_equal(out[path], [[0, 0], [1, 1], [2, 2]])


def test_paths_without_a_vatt_array_are_named():
    with raises(UserError, "VATT", "touch/patch/kernel"):
        key_of("touch/patch/kernel")
    with raises(UserError, "VATT", "video/encoder/layers/mlp/gate/kernel"):
        key_of("video/encoder/layers/mlp/gate/kernel")
    assert path_of(PREFIX + VIDEO + "mask_embedding") is None
