"""VATT's models at inference in plain NumPy (float64), on the arrays of a checkpoint.

`w` is a function that returns the array of the end of a key.
"""

import math

import numpy as np
from scipy import special


def weights(arrays, prefix):
    """Returns a function that looks up the arrays below `prefix`, as float64."""

    def get(name):
        return arrays[f"model/layer_with_weights-0/{prefix}{name}"].astype(np.float64)

    return get


def below(w, name):
    """Returns the lookup function for the arrays below `name`."""
    return lambda rest: w(f"{name}{rest}")


def layer_norm(w, name, x):
    centered = x - x.mean(-1, keepdims=True)
    std = np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    return centered / std * w(f"{name}/gamma") + w(f"{name}/beta")


def rms_norm(w, name, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w(f"{name}/weight")


def dense(w, name, x, bias=True):
    y = np.tensordot(x, w(f"{name}/kernel"), axes=1)
    return y + w(f"{name}/bias") if bias else y


def gelu(x):
    return x * special.ndtr(x)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(w, name, x, heads, *, bias=True, scaled=True, added=0.0):
    """Attention of one example [T, D], one head at a time."""
    q, k, v = (np.split(dense(w, f"{name}/{n}", x, bias), heads, axis=-1) for n in "qkv")
    scale = math.sqrt(q[0].shape[-1]) if scaled else 1.0
    added = np.broadcast_to(added, (heads, len(x), len(x)))
    out = [softmax(a @ b.T / scale + e) @ c for a, b, c, e in zip(q, k, v, added, strict=True)]
    return dense(w, f"{name}/o", np.concatenate(out, -1), bias)


def encoder(w, x, heads, layers, *, bias=True, padding=0.0, pre_norm=True):
    """VATT's encoder for one example, with norms before each layer or after each residual sum."""

    def residual(norm, part, x):
        return x + part(layer_norm(w, norm, x)) if pre_norm else layer_norm(w, norm, x + part(x))

    for i in range(layers):
        at = f"tx/layers/{i}"

        def attend(y, name=f"{at}/mha"):
            return attention(w, name, y, heads, bias=bias, added=padding)

        def feed(y, name=f"{at}/feed_forward/mlp"):
            return dense(w, f"{name}/wo", gelu(dense(w, f"{name}/wi", y, bias)), bias)

        x = residual(f"{at}/layer_norm", attend, x)
        x = residual(f"{at}/feed_forward/layer_norm", feed, x)
    return layer_norm(w, "tx/final_layer_norm", x) if pre_norm else x


def patches(w, name, x):
    """Embeds the patches of one example [*sizes, C]; returns [tokens, D] and the grid."""
    kernel = w(f"{name}/kernel")
    size = kernel.shape[:-2]
    grid = [range(n // p) for n, p in zip(x.shape, size, strict=False)]
    out = []
    for index in np.ndindex(*(len(g) for g in grid)):
        cut = tuple(slice(i * p, (i + 1) * p) for i, p in zip(index, size, strict=True))
        out.append(np.tensordot(x[cut], kernel, axes=kernel.ndim - 1) + w(f"{name}/bias"))
    return np.stack(out), [len(g) for g in grid]


def positions(w, grid, axes, name="pos_embedding_lookup"):
    """Returns position embeddings [tokens, D]; each axis of the grid has a table of its size."""
    tables = [w(f"{name}/{axis}_position_embeddings/embeddings") for axis in axes]
    sums = [sum(t[i] for t, i in zip(tables, index, strict=True)) for index in np.ndindex(*grid)]
    return layer_norm(w, f"{name}/layernorm", np.stack(sums))


SPACE_TIME = ("temporal", "vertical", "horizontal")


def patch_tower(w, patch, axes, x, heads, layers, *, projections=False, bias=True):
    """Returns the outputs [AGG, tokens…] of ViT, WaT or SPT for one example."""
    tokens, grid = patches(w, patch, x)
    if projections:
        tokens = gelu(dense(w, "pre_proj", tokens))
    embeddings = positions(w, grid, axes)
    if axes[-1] == "spectoral":  # in VATT, the order of positions is transposed to that of tokens
        embeddings = positions(w, grid[::-1], axes[::-1])
    x = np.concatenate([w("agg_embedding")[None], tokens + embeddings])
    x = encoder(w, x, heads, layers, bias=bias)
    return gelu(dense(w, "post_proj", x)) if projections else x


def bucket(distance):
    """Returns T5's bidirectional bucket of key - query: 32 buckets, maximum distance 64."""
    n, side = abs(distance), 16 * (distance > 0)
    return side + (n if n < 8 else min(15, 8 + int(8 * math.log(n / 8) / math.log(8))))


def t5(w, ids, heads, layers):
    """Returns the outputs [AGG, tokens…] for one sentence."""
    inputs = np.concatenate([w("agg_embedding")[None], w("embedding/embeddings")[ids]])
    x = gelu(dense(w, "pre_proj", inputs, bias=False))
    n = len(x)
    relative = "base_lm/layers/0/self_attention/attention/relative_attention_bias/embeddings"
    table = w(relative)
    added = np.array([[table[bucket(k - q)] for k in range(n)] for q in range(n)]).transpose(
        2, 0, 1
    )
    added = added + np.where(np.concatenate([[1], ids]) != 0, 0, -1e9)
    for i in range(layers):
        at = f"base_lm/layers/{i}"
        y = rms_norm(w, f"{at}/self_attention/layer_norm", x)
        y = attention(
            w, f"{at}/self_attention/attention", y, heads, bias=False, scaled=False, added=added
        )
        x = x + y
        y = layer_norm(w, f"{at}/feed_forward/layer_norm", x)
        y = gelu(dense(w, f"{at}/feed_forward/mlp/wi", y, bias=False))
        x = x + dense(w, f"{at}/feed_forward/mlp/wo", y, bias=False)
    return rms_norm(w, "base_lm/final_layer_norm", x)


def bert(w, ids, heads, layers, *, small=False):
    """Returns the outputs [AGG, tokens…] for one sentence; bert_small has a second AGG token."""
    inputs = w("embedding/embeddings")[ids]
    if small:
        inputs, ids = np.concatenate([w("agg_embedding")[None], inputs]), np.concatenate([[1], ids])
    x = gelu(dense(w, "pre_proj", inputs, bias=False))
    inner = below(w, "base_lm/")
    x = x + positions(inner, [len(ids)], ["temporal"])
    x = np.concatenate([inner("agg_embedding")[None], x])
    padding = np.where(np.concatenate([[1], ids]) != 0, 0, -1e9)
    return encoder(inner, x, heads, layers, padding=padding, pre_norm=not small)


def unified(w, modality, x, heads, layers):
    """Returns the outputs [AGG, tokens…] of the unified model for one modality of one example."""
    padding = 0.0
    if modality == "text":
        tokens, grid = w("raw_to_embeddings/text/embeddings")[x], [len(x)]
        padding = np.where(np.concatenate([[1], x]) != 0, 0, -1e9)
    else:
        tokens, grid = patches(w, f"raw_to_embeddings/{modality}", x)
    tokens = gelu(dense(w, f"pre_proj/{modality}", tokens))
    axes = SPACE_TIME if modality == "video" else ["temporal"]
    tokens = tokens + positions(w, grid, axes, f"pos_embedding_lookup/{modality}")
    agg = w({"video": "vid", "audio": "aud", "text": "txt"}[modality] + "_agg_embedding")
    x = encoder(w, np.concatenate([agg[None], tokens]), heads, layers, padding=padding)
    return gelu(dense(w, f"post_proj/{modality}", x))


def linear_text(w, ids):
    inputs = w("embedding/embeddings")[ids]  # [W, E]; the maximum includes padding
    return np.maximum(inputs @ w("base_lm/conv1d/kernel")[0] + w("base_lm/conv1d/bias"), 0).max(0)


def batch_norm(w, name, x):
    scale = w(f"{name}/gamma") / np.sqrt(w(f"{name}/moving_variance") + 1e-5)
    return (x - w(f"{name}/moving_mean")) * scale + w(f"{name}/beta")


def head(w, video, audio, text):
    """The fine-and-coarse head on pooled features [N, D]."""
    hidden = np.maximum(batch_norm(w, "hid_to_va/pre_bn", dense(w, "vid_to_hid", video, False)), 0)
    fine = batch_norm(w, "hid_to_va/bn", dense(w, "hid_to_va/dense", hidden, False))
    coarse = dense(w, "va_to_vat/dense", np.maximum(fine, 0), False)
    return {
        "video/audio": fine,
        "video/text": batch_norm(w, "va_to_vat/bn", coarse),
        "audio/video": dense(w, "aud_to_va", audio),
        "text/video": dense(w, "txt_to_vat", text),
    }


def _windows(x, size, stride, fill):
    """Yields (index in the window, inputs there [N, …, C]) for `SAME` padding."""
    counts = [-(-n // s) for n, s in zip(x.shape[1:], stride, strict=False)]
    total = [
        max((c - 1) * s + k - n, 0)
        for c, s, k, n in zip(counts, stride, size, x.shape[1:], strict=False)
    ]
    x = np.pad(x, [(0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)], constant_values=fill)
    for index in np.ndindex(*size):
        cut = (
            slice(p, p + (c - 1) * s + 1, s) for p, c, s in zip(index, counts, stride, strict=True)
        )
        yield index, x[(slice(None), *cut)]


def convolve(kernel, x, stride):
    size = kernel.shape[:-2]
    windows = _windows(x, size, [stride] * len(size), 0)
    return sum(part @ kernel[index] for index, part in windows)


def _pool(x, size, stride):
    return np.max([part for _, part in _windows(x, size, stride, -np.inf)], axis=0)


def i3d(w, x):
    """Returns pooled features of frames [N, T, H, W, 3]."""

    def unit(name, x, stride=1):
        y = convolve(w(f"{name}/conv3d/kernel"), x, stride)
        return np.maximum(batch_norm(w, f"{name}/bn", y), 0)

    x = _pool(unit("conv3d_1a_7x7", x, 2), (1, 3, 3), (1, 2, 2))
    x = _pool(unit("conv3d_2c_3x3", unit("conv3d_2b_1x1", x)), (1, 3, 3), (1, 2, 2))
    for block in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
        if block in ("4b", "5b"):
            x = _pool(x, (3, 3, 3) if block == "4b" else (2, 2, 2), (2, 2, 2))
        at = f"mixed_{block}/unit3d_"
        x = np.concatenate(
            [
                unit(f"{at}b0_0", x),
                unit(f"{at}b1_1", unit(f"{at}b1_0", x)),
                unit(f"{at}b2_1", unit(f"{at}b2_0", x)),
                unit(f"{at}b3_1", _pool(x, (3, 3, 3), (1, 1, 1))),
            ],
            -1,
        )
    return x.mean((1, 2, 3))


def resnet2d(w, x, blocks=(2, 1, 1, 1)):
    """Returns pooled features of spectrograms [N, frames, bins, 1]."""

    def unit(conv, norm, x, stride=1, relu=True):
        kernel = w(f"{conv}/conv2d/kernel")
        half = len(kernel) // 2
        if stride > 1:  # symmetric padding, independent of the input's size
            x = np.pad(x, [(0, 0), (half, half), (half, half), (0, 0)])
            starts = [range(0, n - 2 * half, stride) for n in x.shape[1:3]]
            y = sum(
                x[:, i:][:, starts[0]][:, :, j:][:, :, starts[1]] @ kernel[i, j]
                for i, j in np.ndindex(*kernel.shape[:2])
            )
        else:
            y = convolve(kernel, x, 1)
        y = batch_norm(w, f"{norm}/bn", y)
        return np.maximum(y, 0) if relu else y

    stem = "initial_conv_relu_max_pool"
    x = _pool(unit(f"{stem}/0", f"{stem}/2", x, 2), (3, 3), (2, 2))
    for g, count in enumerate(blocks):
        for j in range(count):
            stride = 2 if g and not j else 1
            at = f"block_groups/{g}/layers/{j}"
            main, short = f"{at}/conv_relu_dropblock_layers", f"{at}/projection_layers"
            y = unit(f"{main}/0", f"{main}/1", x)
            y = unit(f"{main}/3", f"{main}/4", y, stride)
            y = unit(f"{main}/6", f"{main}/7", y, relu=False)
            if j == 0:
                x = unit(f"{short}/0", f"{short}/1", x, stride, relu=False)
            x = np.maximum(x + y, 0)
    return x.mean((1, 2))
