"""Compares with files that PyTorch and its libraries write and read; skipped without them."""

import argparse

import jax
import numpy as np
import pytest

from mmjax import config, init_from, tree
from mmjax.checkpoints.run_dir import RunDir
from mmjax.convert.load import load_params
from mmjax.formats import safetensors, torch_reader
from mmjax.models.guided import make_model as make_guided
from mmjax.models.tvl import make_model
from mmjax.state import ModelDef
from mmjax.tools import cli
from tests.messages import assert_mentions

torch = pytest.importorskip("torch")
rng = np.random.default_rng(0)
VIT = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=24)
TOUCH = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)


def numpy_of(state):
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}


def test_files_of_torch_save_are_read(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    saved = {
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "transposed": base.T,
        "part": base[1:, ::2],
        "bfloat16": torch.randn(4).to(torch.bfloat16),
        "float8": torch.randn(4).to(torch.float8_e4m3fn),
        "half": torch.randn(2, 2).half(),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "uint16": torch.tensor([1, 60_000], dtype=torch.uint16),
    }
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    more = dict(
        state=state,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        args=argparse.Namespace(lr=0.1, size=torch.Size([1, 2]), score=np.float64(0.5)),
    )
    path = tmp_path / "x.pt"
    torch.save({**saved, **more}, path)
    entries = torch_reader.entries(path)
    for name, tensor in {**saved, **{f"state.{k}": v for k, v in state.items()}}.items():
        assert entries[name].shape == tuple(tensor.shape)
        expected = tensor.detach()
        expected = expected if tensor.dtype == torch.uint16 else expected.double()
        np.testing.assert_array_equal(entries[name].astype(np.float64), expected.numpy())
    assert entries["dtype"] == "bfloat16" and entries["device"] == "cpu"
    assert entries["args.size"] == (1, 2) and entries["args.score"] == 0.5


def test_legacy_files_of_torch_save_are_read(tmp_path):
    path = tmp_path / "x.pth"
    base = torch.randn(3, 4)
    saved = dict(base=base, part=base[1:, ::2], parameter=torch.nn.Parameter(torch.randn(2)))
    saved |= dict(count=torch.tensor(3), half=torch.randn(3).to(torch.bfloat16))
    more = dict(state=torch.nn.BatchNorm1d(3).state_dict(), score=np.float64(0.5), flag=True)
    torch.save({**saved, **more}, path, _use_new_zipfile_serialization=False)
    entries = torch_reader.entries(path)
    for name, tensor in {**saved, **{f"state.{k}": v for k, v in more["state"].items()}}.items():
        expected = tensor.detach().double().numpy()
        np.testing.assert_array_equal(entries[name].astype(np.float64), expected)
    assert entries["score"] == 0.5 and entries["flag"] is True


def test_the_safetensors_library_reads_and_writes_the_same_arrays(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    arrays = {"a": rng.normal(size=(3, 4)), "b": np.arange(5), "c": np.float32(rng.normal(size=7))}
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    safetensors.write(ours, arrays)
    read = library.load_file(ours)
    half = torch.randn(2, 3).to(torch.bfloat16)
    library.save_file({**read, "half": half}, theirs)
    back = safetensors.read(theirs)
    np.testing.assert_array_equal(back.pop("half").astype(np.float32), half.float().numpy())
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype


def features(run, inputs, make=make_model):
    """Returns the pooled features that the model of a run computes."""
    cfg = RunDir(run, create=False).read_config()
    model = ModelDef(make(**config.plain(cfg.model)))
    leaves, _ = load_params(str(run))
    extra = {k.removeprefix("extra/"): v for k, v in leaves.items() if k.startswith("extra/")}
    params = {k: v for k, v in leaves.items() if not k.startswith("extra/")}
    module = model.bind(tree.unflatten(params), tree.unflatten(extra))
    with jax.default_matmul_precision("highest"):
        return module.encode(inputs)


def assert_close(actual, tensor):
    expected = tensor.detach().numpy()
    assert np.abs(actual - expected).max() < 2e-5 * np.abs(expected).max()


def to_torch_images(array):
    """Converts images [N, H, W, C] to a tensor [N, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """`(model, state, {suffix: file})` of a small OpenCLIP."""
    open_clip = pytest.importorskip("open_clip")
    from open_clip.model import CLIP

    torch.manual_seed(0)
    vision = dict(image_size=32, patch_size=8, width=128, layers=2, head_width=64)
    text = dict(context_length=9, vocab_size=50, width=64, heads=1, layers=2)
    model = CLIP(24, vision, text).eval()
    for parameter in model.parameters():  # some are initialized with 0 or 1
        parameter.data += 0.02 * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp("clip")
    torch.save(model.state_dict(), directory / "open_clip_pytorch_model.bin")
    library = pytest.importorskip("safetensors.torch")
    library.save_file(model.state_dict(), directory / "open_clip_model.safetensors")
    assert open_clip
    return model, {path.suffix: str(path) for path in directory.iterdir()}


def vit(seed):
    timm = pytest.importorskip("timm")
    torch.manual_seed(seed)
    model = timm.models.vision_transformer.VisionTransformer(**VIT, global_pool="avg").eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_features_of_open_clip(clip, suffix, tmp_path):
    model, files = clip
    run, exported = tmp_path / "run", tmp_path / "exported.safetensors"
    assert cli.main(["convert", files[suffix], "--out", str(run)]) == 0
    ids = np.array([[48, 3, 14, 49, 0, 0, 0, 0, 0], [48, 9, 2, 6, 5, 3, 5, 8, 49]])
    ours = features(run, {"image": TOUCH, "text": ids})
    assert_close(ours["image"], model.encode_image(to_torch_images(TOUCH)))
    assert_close(ours["text"], model.encode_text(torch.from_numpy(ids)))
    assert cli.main(["convert", str(run), "--to", "open_clip", "--out", str(exported)]) == 0
    state = {name: torch.from_numpy(np.array(x)) for name, x in safetensors.read(exported).items()}
    model.load_state_dict(state, strict=True)
    for name, array in numpy_of(model.state_dict()).items():
        np.testing.assert_array_equal(array, state[name].numpy())


@pytest.mark.parametrize("name", ["vit", "resnet18"])
def test_features_and_export_of_a_tvl_touch_encoder(clip, name, tmp_path):
    timm = pytest.importorskip("timm")

    def make(seed):
        if name == "vit":
            return vit(seed)
        torch.manual_seed(seed)
        return timm.create_model("resnet18", num_classes=24).eval()

    model = make(1)
    for path, buffer in model.named_buffers():
        if "running" in path:
            buffer += 0.3 * torch.rand_like(buffer)
    scale = torch.nn.Parameter(torch.tensor(2.5))
    optimizer = torch.optim.AdamW([scale, *model.parameters()], betas=(0.9, 0.95))
    sum((p**2).sum() for p in [scale, *model.parameters()]).backward()
    optimizer.step()
    state = {f"tactile_encoder.{path}": x for path, x in model.state_dict().items()}
    torch.save(
        dict(
            model={"logit_scale": scale.data, **state},
            optimizer=optimizer.state_dict(),
            epoch=3,
            scaler=torch.amp.GradScaler("cpu").state_dict(),
            args=argparse.Namespace(tactile_model=name, lr=3e-4, datasets=["ssvtp"]),
        ),
        tmp_path / "tvl_enc.pth",
    )
    run, out = tmp_path / "run", tmp_path / "touch.safetensors"
    source = [str(tmp_path / "tvl_enc.pth"), clip[1][".safetensors"]]
    assert cli.main(["convert", *source, "--out", str(run)]) == 0
    assert_close(features(run, {"touch": TOUCH})["touch"], model(to_torch_images(TOUCH)))
    leaves, description = load_params(str(run))
    assert_mentions(description, "step 1", run)  # the optimizer has made one step
    assert leaves["logit_scale"] == scale.item()
    # The exported file loads strictly into another model, which then computes the same.
    assert cli.main(["convert", str(run), "--to", "timm", "--out", str(out)]) == 0
    other = make(2)
    loaded = {name: torch.from_numpy(np.array(x)) for name, x in safetensors.read(out).items()}
    other.load_state_dict(loaded, strict=True)
    assert torch.equal(other(to_torch_images(TOUCH)), model(to_torch_images(TOUCH)))


BACKBONES = {  # name, and a function that computes the last feature map
    "torchvision resnet50": ("resnet50", lambda model, x: trunk(model, x)),
    "timm resnet50": ("resnet50", lambda model, x: model.forward_features(x)),
    "torchvision mobilenet": ("mobilenet_v2", lambda model, x: model.features(x)),
    "timm mobilenet": ("mobilenetv2_050", lambda model, x: model.forward_features(x)),
}


def trunk(model, x):
    """Computes the last feature map of a torchvision ResNet."""
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    return model.layer4(model.layer3(model.layer2(model.layer1(x))))


@pytest.mark.parametrize("which", BACKBONES)
def test_image_backbone_features_and_export(which, tmp_path):
    library, (name, run_trunk) = which.split()[0], BACKBONES[which]
    if library == "timm":
        make = pytest.importorskip("timm").create_model
    else:
        make = getattr(pytest.importorskip("torchvision").models, name)
    torch.manual_seed(0)
    model = (make(name, num_classes=3) if library == "timm" else make(num_classes=3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some scales are initialized with 0
            parameter += 0.2 * torch.randn_like(parameter) if parameter.ndim == 1 else 0
        for path, buffer in model.named_buffers():
            if "running_mean" in path:
                buffer += 0.1 * torch.randn_like(buffer)
            elif "running_var" in path:
                buffer *= torch.exp(0.3 * torch.randn_like(buffer))
    source, run = tmp_path / "model.pth", tmp_path / "run"
    legacy = library == "torchvision"  # the format of its published files
    torch.save(model.state_dict(), source, _use_new_zipfile_serialization=not legacy)
    assert cli.main(["convert", str(source), "--out", str(run)]) == 0
    inputs = rng.normal(size=(2, 49, 70, 3)).astype(np.float32)
    with torch.no_grad():
        expected = run_trunk(model, to_torch_images(inputs)).mean((2, 3))
    ours = features(run, {"image": inputs}, make=make_guided)
    assert_close(ours["image"], expected)
    if which == "timm mobilenet":
        return
    for suffix in (".pth", ".safetensors"):
        exported = tmp_path / f"exported{suffix}"
        command = ["convert", str(run), "--to", "torchvision", "--out", str(exported)]
        assert cli.main(command) == 0
        if suffix == ".pth":
            loaded = torch.load(exported, weights_only=True)
        else:
            loaded = {
                k: torch.from_numpy(np.array(x)) for k, x in safetensors.read(exported).items()
            }
        state = model.state_dict()
        missing = set(state) - set(loaded)
        assert set(loaded) <= set(state)
        assert {key.split(".")[0] for key in missing} <= {"fc", "classifier"}
        for key, tensor in loaded.items():
            assert torch.equal(tensor, state[key]), key
            assert tensor.dtype == state[key].dtype


@pytest.mark.parametrize("old, new", [(14, 16), (16, 7)])
def test_position_embeddings_are_resized_as_in_timm_and_open_clip(old, new):
    table = rng.normal(size=(1 + old**2, 3)).astype(np.float32)
    target = {"touch/positions": jax.ShapeDtypeStruct((1 + new**2, 3), np.float32)}
    ours = init_from.match(target, {"touch/positions": table})[0]["touch/positions"]
    square = torch.from_numpy(table[1:].reshape(1, old, old, 3)).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(
        square, (new, new), mode="bicubic", antialias=True, align_corners=False
    )
    np.testing.assert_allclose(
        ours[1:], theirs[0].permute(1, 2, 0).reshape(new * new, 3), atol=1e-5
    )
