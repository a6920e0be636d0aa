"""Writes checkpoints of any size with the keys of VATT's published ones, using TensorFlow.

The tables list the keys of the published checkpoints: each line has a key below the model's root
and its shape. `{a,b}` means several names, and `#L` the index of a layer.
"""

import functools
import itertools
import re
import zlib

import numpy as np

ROOT = "model/layer_with_weights-0/"

_ENCODER = """
tx/layers/#L/layer_norm/{gamma,beta}               d
tx/layers/#L/mha/{q,k,v}/kernel                    d i
tx/layers/#L/mha/{q,k,v}/bias                      i
tx/layers/#L/mha/o/kernel                          i d
tx/layers/#L/mha/o/bias                            d
tx/layers/#L/feed_forward/layer_norm/{gamma,beta}  d
tx/layers/#L/feed_forward/mlp/wi/kernel            d f
tx/layers/#L/feed_forward/mlp/wi/bias              f
tx/layers/#L/feed_forward/mlp/wo/kernel            f d
tx/layers/#L/feed_forward/mlp/wo/bias              d
tx/final_layer_norm/{gamma,beta}                   d
"""
_SPACE_TIME = "pos_embedding_lookup/{temporal,vertical,horizontal}_position_embeddings/embeddings"
VIT = f"""
voxel_to_patch/kernel                     2 4 4 3 d
voxel_to_patch/bias                       d
agg_embedding                             d
{_SPACE_TIME}                             2 d
pos_embedding_lookup/layernorm/{{gamma,beta}}  d
{_ENCODER}
"""
WAT = f"""
wave_to_patch/kernel                      16 1 d
wave_to_patch/bias                        d
agg_embedding                             d
pos_embedding_lookup/temporal_position_embeddings/embeddings  5 d
pos_embedding_lookup/layernorm/{{gamma,beta}}  d
{_ENCODER}
"""
# No biases in attention and feed-forward; the published keys spell the second axis "spectoral".
SPT = "\n".join(
    line
    for line in f"""
spectrum_to_patch/kernel                  4 5 1 d
spectrum_to_patch/bias                    d
agg_embedding                             d
pos_embedding_lookup/temporal_position_embeddings/embeddings   3 d
pos_embedding_lookup/spectoral_position_embeddings/embeddings  2 d
pos_embedding_lookup/layernorm/{{gamma,beta}}  d
{_ENCODER}
""".splitlines()
    if not re.search(r"(mha|mlp)/\S+/bias", line)
)
PROJECTIONS = """
pre_proj/kernel   d d
pre_proj/bias     d
post_proj/kernel  d p
post_proj/bias    p
"""
T5 = """
embedding/embeddings                                            50 e
agg_embedding                                                   e
pre_proj/kernel                                                 e t
base_lm/layers/#L/self_attention/layer_norm/weight              t
base_lm/layers/#L/self_attention/attention/{q,k,v}/kernel       t j
base_lm/layers/#L/self_attention/attention/o/kernel             j t
base_lm/layers/0/self_attention/attention/relative_attention_bias/embeddings  32 2
base_lm/layers/#L/feed_forward/layer_norm/{gamma,beta}          t
base_lm/layers/#L/feed_forward/mlp/wi/kernel                    t f
base_lm/layers/#L/feed_forward/mlp/wo/kernel                    f t
base_lm/final_layer_norm/weight                                 t
"""
BERT = f"""
embedding/embeddings   50 e
pre_proj/kernel        e d
base_lm/agg_embedding  d
base_lm/pos_embedding_lookup/temporal_position_embeddings/embeddings  6 d
base_lm/pos_embedding_lookup/layernorm/{{gamma,beta}}  d
{_ENCODER.replace("tx/", "base_lm/tx/")}
"""
# Two AGG tokens; norms follow each residual sum, so there is no final one.
BERT_SMALL = "\n".join(
    line.replace("embeddings  6 d", "embeddings  7 d")
    for line in f"agg_embedding  e\n{BERT}".splitlines()
    if "final_layer_norm" not in line
)
LINEAR = """
embedding/embeddings   50 e
base_lm/conv1d/kernel  1 e t
base_lm/conv1d/bias    t
"""
UNIFIED = f"""
{{vid,aud,txt}}_agg_embedding           d
raw_to_embeddings/video/kernel          2 4 4 3 d
raw_to_embeddings/audio/kernel          16 1 d
raw_to_embeddings/{{video,audio}}/bias  d
raw_to_embeddings/text/embeddings       50 e
pre_proj/{{video,audio}}/kernel         d d
pre_proj/text/kernel                    e d
pre_proj/{{video,audio,text}}/bias      d
{_SPACE_TIME.replace("lookup/", "lookup/video/")}  2 d
pos_embedding_lookup/audio/temporal_position_embeddings/embeddings   5 d
pos_embedding_lookup/text/temporal_position_embeddings/embeddings    6 d
pos_embedding_lookup/{{video,audio,text}}/layernorm/{{gamma,beta}}   d
{_ENCODER}
post_proj/{{video,audio,text}}/kernel  d p
post_proj/{{video,audio,text}}/bias    p
"""
_BATCH_NORM = "{gamma,beta,moving_mean,moving_variance}"
HEAD = f"""
vid_to_hid/kernel                v 7
hid_to_va/pre_bn/{_BATCH_NORM}   7
hid_to_va/dense/kernel           7 7
hid_to_va/bn/{_BATCH_NORM}       7
aud_to_va/kernel                 a 7
aud_to_va/bias                   7
va_to_vat/dense/kernel           7 3
va_to_vat/bn/{_BATCH_NORM}       3
txt_to_vat/kernel                w 3
txt_to_vat/bias                  3
"""
CLASSIFIER = """
kernel  v c
bias    c
"""


def expand(table, prefix="", **sizes):
    """Returns {key: shape} of a table, with `prefix` below the root."""
    keys = {}
    for line in filter(None, map(str.strip, table.splitlines())):
        name, *shape = line.split()
        shape = tuple(sizes[s] if s.isalpha() else int(s) for s in shape)
        layers = range(sizes["L"]) if "#L" in name else [0]
        choices = [p.split(",") for p in re.split(r"\{([^}]*)\}", name)[1::2]]
        template = re.sub(r"\{[^}]*\}", "%s", name)
        for layer, chosen in itertools.product(layers, itertools.product(*choices)):
            keys[f"{ROOT}{prefix}{(template % chosen).replace('#L', str(layer))}"] = shape
    return keys


VIDEO, AUDIO = "_base_layer/vid_backbone/_base/", "_base_layer/aud_backbone/_base/"
TEXT, HEADS = "_base_layer/txt_backbone/", "_head_layer/_bridge_heads/0/"
# Attention heads have 8 features; feed-forward layers are twice as wide as the rest.
SIZES = dict(d=16, i=16, f=32, t=24, j=16, e=10, p=20, L=2)


def tx_fac(text=T5, **sizes):
    video, audio = SIZES | sizes, SIZES | dict(d=24, i=24, L=1)
    width = 24 if text is T5 else video["d"]
    return {
        **expand(VIT, VIDEO, **video),
        **expand(WAT, AUDIO, **audio),
        **expand(text, TEXT, **video),
        **expand(HEAD, HEADS, v=video["d"], a=24, w=width),
    }


def ut_fac():
    prefix = "_base_layer/unified_backbone/unified_transformer/"
    return expand(UNIFIED, prefix, **SIZES) | expand(HEAD, HEADS, v=20, a=20, w=20)


def finetuned(tower=VIT, classes=5, projections=False):
    sizes = SIZES | dict(v=20 if projections else 16, c=classes)
    table = tower + (PROJECTIONS if projections else "")
    return expand(table, "_base/", **sizes) | expand(CLASSIFIER, "_ops/cls/", **sizes)


# Widths of the branches of I3D's blocks: branch 0 is one convolution, branches 1 and 2 are two,
# branch 3 follows a pooling. The models below have an eighth of these widths.
_I3D = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


def _unit(conv, norm, *shape):
    keys = {f"{conv}/kernel": shape}
    return keys | {
        f"{norm}/{leaf}": shape[-1:] for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
    }


def i3d():
    units = {"conv3d_1a_7x7": (7, 3, 8), "conv3d_2b_1x1": (1, 8, 8), "conv3d_2c_3x3": (3, 8, 24)}
    width = 24
    for block, channels in _I3D.items():
        b0, b1a, b1b, b2a, b2b, b3 = (c // 8 for c in channels)
        units |= {
            f"mixed_{block}/unit3d_b0_0": (1, width, b0),
            f"mixed_{block}/unit3d_b1_0": (1, width, b1a),
            f"mixed_{block}/unit3d_b1_1": (3, b1a, b1b),
            f"mixed_{block}/unit3d_b2_0": (1, width, b2a),
            f"mixed_{block}/unit3d_b2_1": (3, b2a, b2b),
            f"mixed_{block}/unit3d_b3_1": (1, width, b3),
        }
        width = b0 + b1b + b2b + b3
    keys = {}
    for name, (size, fan_in, fan_out) in units.items():
        keys |= _unit(f"{name}/conv3d", f"{name}/bn", size, size, size, fan_in, fan_out)
    return keys


def resnet2d(blocks=(2, 1, 1, 1)):
    stem = "initial_conv_relu_max_pool"
    keys, fan_in = _unit(f"{stem}/0/conv2d", f"{stem}/2/bn", 7, 7, 1, 8), 8
    for g, count in enumerate(blocks):
        inner = 8 * 2**g
        for j in range(count):
            at = f"block_groups/{g}/layers/{j}"
            main, short = f"{at}/conv_relu_dropblock_layers", f"{at}/projection_layers"
            keys |= _unit(f"{main}/0/conv2d", f"{main}/1/bn", 1, 1, fan_in, inner)
            keys |= _unit(f"{main}/3/conv2d", f"{main}/4/bn", 3, 3, inner, inner)
            keys |= _unit(f"{main}/6/conv2d", f"{main}/7/bn", 1, 1, inner, 4 * inner)
            if j == 0:
                keys |= _unit(f"{short}/0/conv2d", f"{short}/1/bn", 1, 1, fan_in, 4 * inner)
            fan_in = 4 * inner
    return keys


def mmv_fac():
    return {
        **{ROOT + VIDEO + key: shape for key, shape in i3d().items()},
        **{ROOT + AUDIO + key: shape for key, shape in resnet2d().items()},
        **expand(LINEAR, TEXT, **SIZES),
        **expand(HEAD, HEADS, v=128, a=256, w=24),
    }


def values(shapes):
    """Returns {key: array}; a key always has the same values."""
    out = {}
    for key, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        noise, last = rng.standard_normal(shape), key.rsplit("/", 1)[-1]
        if last in ("gamma", "weight"):
            noise = 1 + 0.1 * noise
        elif last == "moving_variance":
            noise = np.exp(0.3 * noise)
        elif last == "kernel":
            noise = noise * np.sqrt(2 / np.prod(shape[:-1]))
        else:
            noise = 0.3 * noise
        out[key] = noise.astype(np.float32)
    return out


@functools.cache
def _fake_adam():
    """Returns a class with an optimizer's checkpoint structure: counters and two slots.

    The slot `m` is twice its variable, `v` three times.
    """
    import tensorflow as tf

    class Adam(tf.Module):
        def __init__(self, variables, step):
            super().__init__()
            self.iter = tf.Variable(step, dtype=tf.int64)
            self.beta_1 = tf.Variable(0.9)
            self._slots = {}
            for variable in variables:
                for slot, factor in {"m": 2, "v": 3}.items():
                    self._slots[id(variable), slot] = tf.Variable(factor * variable)

        def get_slot_names(self):
            return ["m", "v"]

        def get_slot(self, variable, name):
            return self._slots[id(variable), name]

        def _create_or_restore_slot_variable(self, **_):
            raise NotImplementedError

        def _trackable_children(self, *args, **kwargs):
            children = super()._trackable_children(*args, **kwargs)
            return {name: child for name, child in children.items() if name != "_slots"}

    return Adam


def write(directory, arrays, *, step=500_000, adam=False):
    """Writes {key: array} with `tf.train.Checkpoint`; returns the prefix."""
    import tensorflow as tf

    nest = {}
    for key, array in arrays.items():
        *parents, last = key.split("/")
        node = nest
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = tf.Variable(array)

    def build(node):
        if isinstance(node, tf.Variable):
            return node
        if node and all(name.isdigit() for name in node):  # a list; some items have no variables
            return [build(node.get(str(i), {})) for i in range(1 + max(map(int, node)))]
        module = tf.Module()
        for name, child in node.items():
            setattr(module, name, build(child))
        return module

    variables = [v for v in tf.nest.flatten(nest) if isinstance(v, tf.Variable)]
    roots = {name: build(child) for name, child in nest.items()}
    if adam:
        roots["optimizer"] = _fake_adam()(variables, step)
    return tf.train.Checkpoint(**roots).write(str(directory / f"ckpt-{step}"))
