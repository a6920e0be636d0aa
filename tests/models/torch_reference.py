"""Reference forward passes of PyTorch models in float64 NumPy, from their state dicts.

They follow the papers and the state-dict names of the libraries, and share no code with mmjax: one
image or text and one attention head at a time. Images are [N, H, W, 3], as everywhere in mmjax;
arrays in state dicts have PyTorch's layout. The `*_state` functions return random state dicts.
"""

import numpy as np
from scipy.special import erf

ARRAY = np.float64


def _state(state):
    return {name: np.asarray(value, ARRAY) for name, value in state.items()}


def _norm(state, name, x, epsilon):
    centered = x - x.mean(-1, keepdims=True)
    scaled = centered / np.sqrt(np.mean(centered**2, -1, keepdims=True) + epsilon)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def _linear(state, name, x):
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def _gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def _quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def convolve(x, kernel, *, stride, pad):  # [N, H, W, C], [O, C, k, k]
    """Convolves one output pixel at a time."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    size = kernel.shape[-1]
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    y = np.empty((len(x), height, width, len(kernel)))
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            y[:, i, j] = np.einsum("nijc,ocij->no", window, kernel)
    return y


def _attention(x, weight, bias, out, *, num_heads, causal=False):  # [T, D], [3 D, D]
    width = x.shape[-1] // num_heads
    query, key, value = np.split(x @ weight.T + bias, 3, axis=-1)
    heads = []
    for h in range(num_heads):
        part = slice(h * width, (h + 1) * width)
        scores = query[:, part] @ key[:, part].T / np.sqrt(width)
        if causal:
            scores[np.triu_indices(len(x), 1)] = -np.inf
        weights = np.exp(scores - scores.max(1, keepdims=True))
        heads.append(weights / weights.sum(1, keepdims=True) @ value[:, part])
    return out(np.concatenate(heads, axis=-1))


def _patches(state, name, images):
    """Returns patch embeddings [N, T, D]."""
    kernel = state[f"{name}.weight"]
    y = convolve(images, kernel, stride=kernel.shape[-1], pad=0)
    y = y.reshape(len(y), -1, y.shape[-1])
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def _resblocks(state, prefix, x, *, num_heads, causal, activation):  # [T, D]
    i = 0
    while f"{prefix}.{i}.ln_1.weight" in state:
        block = f"{prefix}.{i}"
        x = x + _attention(
            _norm(state, f"{block}.ln_1", x, 1e-5),
            state[f"{block}.attn.in_proj_weight"],
            state[f"{block}.attn.in_proj_bias"],
            lambda y, block=block: _linear(state, f"{block}.attn.out_proj", y),
            num_heads=num_heads,
            causal=causal,
        )
        hidden = _linear(state, f"{block}.mlp.c_fc", _norm(state, f"{block}.ln_2", x, 1e-5))
        x = x + _linear(state, f"{block}.mlp.c_proj", activation(hidden))
        i += 1
    return x


def open_clip_image(state, images, *, num_heads=None, quick_gelu=False):
    """Returns the unnormalized image features [N, D] of an OpenCLIP model.

    Args:
      state: State dict of the whole model.
      images: Normalized images [N, H, W, 3].
      num_heads: Attention heads; None uses heads of 64 features.
      quick_gelu: Use the activation of OpenAI's weights.
    """
    state = _state(state)
    tokens = _patches(state, "visual.conv1", np.asarray(images, ARRAY))
    first = state["visual.class_embedding"]
    out = []
    for image in tokens:
        x = np.concatenate([first[None], image]) + state["visual.positional_embedding"]
        x = _resblocks(
            state,
            "visual.transformer.resblocks",
            _norm(state, "visual.ln_pre", x, 1e-5),
            num_heads=num_heads or len(first) // 64,
            causal=False,
            activation=_quick_gelu if quick_gelu else _gelu,
        )
        out.append(_norm(state, "visual.ln_post", x, 1e-5)[0] @ state["visual.proj"])
    return np.stack(out)


def open_clip_text(state, ids, *, num_heads=None, quick_gelu=False):
    """Returns the unnormalized text features [N, D] of an OpenCLIP model.

    Args:
      state: State dict of the whole model.
      ids: Token ids, int [N, W]. As published, features are taken at the largest id, which is the
        end-of-text token.
      num_heads: Attention heads; None uses heads of 64 features.
      quick_gelu: Use the activation of OpenAI's weights.
    """
    state = _state(state)
    out = []
    for text in np.asarray(ids):
        x = state["token_embedding.weight"][text] + state["positional_embedding"][: len(text)]
        x = _resblocks(
            state,
            "transformer.resblocks",
            x,
            num_heads=num_heads or x.shape[-1] // 64,
            causal=True,
            activation=_quick_gelu if quick_gelu else _gelu,
        )
        x = _norm(state, "ln_final", x, 1e-5)
        out.append(x[np.argmax(text)] @ state["text_projection"])
    return np.stack(out)


def timm_vit(state, images, num_heads):
    """Returns the output [N, D] of a timm VisionTransformer with `global_pool='avg'`.

    Without a head in the state dict, these are the pooled features.
    """
    out = []
    for x in timm_tokens(state, images, num_heads):
        pooled = _norm(_state(state), "fc_norm", x[1:].mean(0), 1e-6)
        out.append(_linear(_state(state), "head", pooled) if "head.weight" in state else pooled)
    return np.stack(out)


def timm_vit_class(state, images, num_heads):
    """Returns the features [N, D] of a timm VisionTransformer with `global_pool='token'`."""
    tokens = timm_tokens(state, images, num_heads)
    return _norm(_state(state), "norm", tokens[:, 0], 1e-6)


def timm_tokens(state, images, num_heads):
    """Returns the tokens [N, 1 + T, D] of a timm VisionTransformer before its last norm."""
    state = _state(state)
    out = []
    for image in _patches(state, "patch_embed.proj", np.asarray(images, ARRAY)):
        x = np.concatenate([state["cls_token"][0], image]) + state["pos_embed"][0]
        i = 0
        while f"blocks.{i}.norm1.weight" in state:
            block = f"blocks.{i}"
            x = x + _attention(
                _norm(state, f"{block}.norm1", x, 1e-6),
                state[f"{block}.attn.qkv.weight"],
                state[f"{block}.attn.qkv.bias"],
                lambda y, block=block: _linear(state, f"{block}.attn.proj", y),
                num_heads=num_heads,
            )
            hidden = _linear(state, f"{block}.mlp.fc1", _norm(state, f"{block}.norm2", x, 1e-6))
            x = x + _linear(state, f"{block}.mlp.fc2", _gelu(hidden))
            i += 1
        out.append(x)
    return np.stack(out)


def _batch_norm(state, name, x):
    scale = state[f"{name}.weight"] / np.sqrt(state[f"{name}.running_var"] + 1e-5)
    return (x - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]


def _max_pool(x):
    """Max pooling over 3×3 windows with stride 2 and a border of -inf."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    height, width = ((n - 3) // 2 + 1 for n in x.shape[1:3])
    y = np.empty((len(x), height, width, x.shape[-1]))
    for i in range(height):
        for j in range(width):
            y[:, i, j] = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
    return y


def torch_resnet(state, images):
    """Returns the output [N, D] of a torchvision or timm ResNet in evaluation mode.

    Supports basic blocks and bottlenecks. Without `fc` in the state dict, these are the pooled
    features.
    """
    state = _state(state)

    def unit(x, convolution, norm, stride=1):
        kernel = state[f"{convolution}.weight"]
        y = convolve(x, kernel, stride=stride, pad=kernel.shape[-1] // 2)
        return _batch_norm(state, norm, y)

    x = np.asarray(images, ARRAY)
    x = _max_pool(np.maximum(unit(x, "conv1", "bn1", 2), 0))
    for group in range(1, 5):
        j = 0
        while f"layer{group}.{j}.conv1.weight" in state:
            block = f"layer{group}.{j}"
            strided = 2 if group > 1 and j == 0 else 1
            if f"{block}.conv3.weight" in state:
                strides = (1, strided, 1)
            else:
                strides = (strided, 1)
            y = x
            for k, stride in enumerate(strides, 1):
                y = np.maximum(y, 0) if k > 1 else y
                y = unit(y, f"{block}.conv{k}", f"{block}.bn{k}", stride)
            if f"{block}.downsample.0.weight" in state:
                x = unit(x, f"{block}.downsample.0", f"{block}.downsample.1", strided)
            x = np.maximum(x + y, 0)
            j += 1
    pooled = x.mean((1, 2))
    return _linear(state, "fc", pooled) if "fc.weight" in state else pooled


torch_resnet18 = torch_resnet


def _depthwise(x, kernel, *, stride):  # [N, H, W, C], [C, 1, 3, 3]
    planes = [
        convolve(x[..., c : c + 1], kernel[c : c + 1], stride=stride, pad=1)
        for c in range(x.shape[-1])
    ]
    return np.concatenate(planes, axis=-1)


def torch_mobilenet(state, images, strides):
    """Returns the pooled features [N, D] of a torchvision MobileNetV2 in evaluation mode.

    Args:
      state: State dict.
      images: [N, H, W, 3].
      strides: Stride of each block.
    """
    state = _state(state)

    def unit(x, convolution, norm, *, stride=1, relu=True):
        kernel = state[f"{convolution}.weight"]
        if kernel.shape[1] == 1:
            y = _depthwise(x, kernel, stride=stride)
        else:
            y = convolve(x, kernel, stride=stride, pad=kernel.shape[-1] // 2)
        y = _batch_norm(state, norm, y)
        return np.clip(y, 0, 6) if relu else y

    x = unit(np.asarray(images, ARRAY), "features.0.0", "features.0.1", stride=2)
    for n, stride in enumerate(strides, 1):
        block, y = f"features.{n}.conv", x
        # Units before the projection: the expansion, if any, and the depthwise convolution.
        units = 2 if f"{block}.3.weight" in state else 1
        for k in range(units):
            strided = stride if k == units - 1 else 1
            y = unit(y, f"{block}.{k}.0", f"{block}.{k}.1", stride=strided)
        y = unit(y, f"{block}.{units}", f"{block}.{units + 1}", relu=False)
        x = x + y if stride == 1 and x.shape[-1] == y.shape[-1] else y
    last = f"features.{len(strides) + 1}"
    return unit(x, f"{last}.0", f"{last}.1").mean((1, 2))


def _sample(shapes, seed):
    """Returns random arrays: scales and variances around 1, others around 0; kernels by fan-in."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape)
        if name.endswith("running_var"):
            noise = np.exp(0.3 * noise)
        elif len(shape) > 1:
            noise = noise / np.sqrt(np.prod(shape[1:]))
        elif name.endswith("weight"):
            noise = 1 + 0.2 * noise
        else:
            noise = 0.2 * noise
        out[name] = noise.astype(np.float32)
    return out


def _resblock_shapes(prefix, num_layers, width):
    shapes = {}
    for i in range(num_layers):
        shapes |= {
            f"{prefix}.{i}.ln_1.weight": (width,),
            f"{prefix}.{i}.ln_1.bias": (width,),
            f"{prefix}.{i}.attn.in_proj_weight": (3 * width, width),
            f"{prefix}.{i}.attn.in_proj_bias": (3 * width,),
            f"{prefix}.{i}.attn.out_proj.weight": (width, width),
            f"{prefix}.{i}.attn.out_proj.bias": (width,),
            f"{prefix}.{i}.ln_2.weight": (width,),
            f"{prefix}.{i}.ln_2.bias": (width,),
            f"{prefix}.{i}.mlp.c_fc.weight": (4 * width, width),
            f"{prefix}.{i}.mlp.c_fc.bias": (4 * width,),
            f"{prefix}.{i}.mlp.c_proj.weight": (width, 4 * width),
            f"{prefix}.{i}.mlp.c_proj.bias": (width,),
        }
    return shapes


def open_clip_state(
    *,
    width,
    text_width,
    num_layers,
    text_layers,
    image_size,
    patch_size,
    embed_dim,
    vocab_size,
    context_length=77,
    seed=0,
):
    """Returns a random state dict of an OpenCLIP model."""
    positions = 1 + (image_size // patch_size) ** 2
    shapes = {
        "positional_embedding": (context_length, text_width),
        "text_projection": (text_width, embed_dim),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (positions, width),
        "visual.proj": (width, embed_dim),
        "visual.conv1.weight": (width, 3, patch_size, patch_size),
        **{f"visual.{n}.{p}": (width,) for n in ("ln_pre", "ln_post") for p in ("weight", "bias")},
        **_resblock_shapes("visual.transformer.resblocks", num_layers, width),
        **_resblock_shapes("transformer.resblocks", text_layers, text_width),
        "token_embedding.weight": (vocab_size, text_width),
        "ln_final.weight": (text_width,),
        "ln_final.bias": (text_width,),
    }
    return {**_sample(shapes, seed), "logit_scale": np.float32(4.6)}


def timm_vit_state(*, width, num_layers, image_size, patch_size, num_classes, seed=0):
    """Returns a random state dict of a timm VisionTransformer; 0 classes omit the head."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + (image_size // patch_size) ** 2, width),
        "patch_embed.proj.weight": (width, 3, patch_size, patch_size),
        "patch_embed.proj.bias": (width,),
        "fc_norm.weight": (width,),
        "fc_norm.bias": (width,),
    }
    sizes = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for i in range(num_layers):
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{i}.{name}.weight"] = shapes[f"blocks.{i}.{name}.bias"] = (width,)
        for name, (out, features) in sizes.items():
            shapes[f"blocks.{i}.{name}.weight"] = (out * width, features * width)
            shapes[f"blocks.{i}.{name}.bias"] = (out * width,)
    if num_classes:
        shapes |= {"head.weight": (num_classes, width), "head.bias": (num_classes,)}
    return _sample(shapes, seed)


def torch_resnet_state(*, blocks=(2, 2, 2, 2), bottleneck=False, width=64, num_classes, seed=0):
    """Returns a random state dict of a torchvision ResNet.

    Args:
      blocks: Number of blocks per group.
      bottleneck: Use bottlenecks instead of basic blocks.
      width: Channels of the stem.
      num_classes: Outputs of `fc`; 0 omits it.
      seed: Random seed.
    """
    shapes = {}

    def unit(convolution, norm, channels, features, size):
        shapes[f"{convolution}.weight"] = (features, channels, size, size)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{name}"] = (features,)

    unit("conv1", "bn1", 3, width, 7)
    channels = width
    for g, count in enumerate(blocks):
        inner = width * 2**g
        out = 4 * inner if bottleneck else inner
        for j in range(count):
            block = f"layer{g + 1}.{j}"
            units = [(inner, 1), (inner, 3), (out, 1)] if bottleneck else [(inner, 3), (out, 3)]
            features = channels
            for k, (next_features, size) in enumerate(units, 1):
                unit(f"{block}.conv{k}", f"{block}.bn{k}", features, next_features, size)
                features = next_features
            if channels != out:
                unit(f"{block}.downsample.0", f"{block}.downsample.1", channels, out, 1)
            channels = out
    if num_classes:
        shapes |= {"fc.weight": (num_classes, channels), "fc.bias": (num_classes,)}
    return _sample(shapes, seed)


def torch_mobilenet_state(*, groups, stem, head, num_classes=0, seed=0):
    """Returns a random state dict of a torchvision MobileNetV2.

    Args:
      groups: (expansion, channels, blocks, stride) of each group; channels are not rounded.
      stem: Channels of the first convolution.
      head: Channels of the last convolution.
      num_classes: Outputs of the classifier; 0 omits it.
      seed: Random seed.
    """
    shapes = {}

    def unit(convolution, norm, channels, features, size):
        shapes[f"{convolution}.weight"] = (features, channels, size, size)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{name}"] = (features,)

    unit("features.0.0", "features.0.1", 3, stem, 3)
    n, channels = 1, stem
    for expansion, features, count, _ in groups:
        for _ in range(count):
            block, k = f"features.{n}.conv", 0
            if expansion > 1:
                unit(f"{block}.0.0", f"{block}.0.1", channels, expansion * channels, 1)
                k = 1
            unit(f"{block}.{k}.0", f"{block}.{k}.1", 1, expansion * channels, 3)
            unit(f"{block}.{k + 1}", f"{block}.{k + 2}", expansion * channels, features, 1)
            n, channels = n + 1, features
    unit(f"features.{n}.0", f"features.{n}.1", channels, head, 1)
    if num_classes:
        shapes |= {"classifier.1.weight": (num_classes, head), "classifier.1.bias": (num_classes,)}
    return _sample(shapes, seed)
