"""Torch states laid out as mmjax's parameters, by hand; see `torch_reference` for the states."""

import jax.numpy as jnp
import numpy as np

from mmjax import tree

# Names of a block's parts: query, key and value in one, out, first and second norm, up, down.
TIMM = ("attn.qkv.", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")
OPEN_CLIP = ("attn.in_proj_", "attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")


def _norm(state, name):
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def _dense(state, name):
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def _block(state, prefix, names):
    joint, out, first, second, up, down = (f"{prefix}.{name}" for name in names)
    thirds = zip(
        np.split(state[f"{joint}weight"], 3), np.split(state[f"{joint}bias"], 3), strict=True
    )
    attention = {
        name: {"kernel": kernel.T, "bias": bias}
        for name, (kernel, bias) in zip(("query", "key", "value"), thirds, strict=True)
    }
    return {
        "attention": {**attention, "out": _dense(state, out)},
        "attention_norm": _norm(state, first),
        "mlp_norm": _norm(state, second),
        "mlp": {"up": _dense(state, up), "down": _dense(state, down)},
    }


def _layers(state, prefix, names):
    blocks, i = [], 0
    while any(name.startswith(f"{prefix}.{i}.") for name in state):
        blocks.append(tree.flatten(_block(state, f"{prefix}.{i}", names)))
        i += 1
    return tree.unflatten({path: np.stack([b[path] for b in blocks]) for path in blocks[0]})


def _arrays(params):
    return tree.map_named(lambda path, leaf: jnp.asarray(leaf), params)


def timm_vit(state):
    """Params of a touch tower."""
    patch = {
        "kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "bias": state["patch_embed.proj.bias"],
    }
    return _arrays(
        {
            "patch": patch,
            "class_token": state["cls_token"][0, 0],
            "positions": state["pos_embed"][0],
            "encoder": {"layers": _layers(state, "blocks", TIMM)},
            "pool_norm": _norm(state, "fc_norm"),
            **({"projection": _dense(state, "head")} if "head.weight" in state else {}),
        }
    )


def open_clip(state):
    """Params of the towers of pictures and text."""
    layers = _layers(state, "visual.transformer.resblocks", OPEN_CLIP)
    image = {
        "patch": {"kernel": state["visual.conv1.weight"].transpose(2, 3, 1, 0)},
        "class_token": state["visual.class_embedding"],
        "positions": state["visual.positional_embedding"],
        "pre_norm": _norm(state, "visual.ln_pre"),
        "encoder": {"layers": layers, "final_norm": _norm(state, "visual.ln_post")},
        "projection": {"kernel": state["visual.proj"]},
    }
    layers = _layers(state, "transformer.resblocks", OPEN_CLIP)
    text = {
        "token_embedding": state["token_embedding.weight"],
        "positions": state["positional_embedding"],
        "encoder": {"layers": layers, "final_norm": _norm(state, "ln_final")},
        "projection": {"kernel": state["text_projection"]},
    }
    return _arrays(image), _arrays(text)


def torch_resnet(state):
    """Params and statistics of a ResNet."""
    places = {"conv1": "stem", "bn1": "stem"}
    blocks = {name.rsplit(".", 2)[0] for name in state if name.startswith("layer")}
    for block in {name.removesuffix(".downsample") for name in blocks}:
        group, j = block.removeprefix("layer").split(".")
        place = f"groups/{int(group) - 1}/{j}"
        for k, name in enumerate(("first", "second", "third"), 1):
            places[f"{block}.conv{k}"] = places[f"{block}.bn{k}"] = f"{place}/{name}"
        places[f"{block}.downsample.0"] = places[f"{block}.downsample.1"] = f"{place}/shortcut"
    params, extra = {}, {}
    for name, value in state.items():
        layer, kind = name.rsplit(".", 1)
        if layer == "fc":
            params["projection/kernel" if kind == "weight" else "projection/bias"] = value.T
        elif value.ndim == 4:
            params[f"{places[layer]}/conv/kernel"] = value.transpose(2, 3, 1, 0)
        elif kind.startswith("running"):
            extra[f"{places[layer]}/norm/{kind.removeprefix('running_')}"] = value
        else:
            params[f"{places[layer]}/norm/{'scale' if kind == 'weight' else 'bias'}"] = value
    return _arrays(tree.unflatten(params)), _arrays(tree.unflatten(extra))
