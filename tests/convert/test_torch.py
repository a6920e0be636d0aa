"""Files that PyTorch and its libraries write and read themselves; skipped without them."""

import argparse

import jax
import numpy as np
import pytest

from mmjax import config, initialize, tree
from mmjax.convert import safetensors, torch_files
from mmjax.models.guided import make_model as make_guided
from mmjax.models.tvl import make_model
from mmjax.rundir import RunDir
from mmjax.state import ModelDef
from mmjax.tools import cli

torch = pytest.importorskip("torch")
rng = np.random.default_rng(0)
VIT = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=24)
TOUCH = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)


def numpy_of(state):
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}


def test_what_torch_saves_is_read(tmp_path):
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
    entries = torch_files.entries(path)
    for name, tensor in {**saved, **{f"state.{k}": v for k, v in state.items()}}.items():
        assert entries[name].shape == tuple(tensor.shape)
        wanted = tensor.detach()
        wanted = wanted if tensor.dtype == torch.uint16 else wanted.double()
        np.testing.assert_array_equal(entries[name].astype(np.float64), wanted.numpy())
    assert entries["dtype"] == "bfloat16" and entries["device"] == "cpu"
    assert entries["args.size"] == (1, 2) and entries["args.score"] == 0.5


def test_what_torch_saves_in_its_old_format_is_read(tmp_path):
    path = tmp_path / "x.pth"
    base = torch.randn(3, 4)
    saved = dict(base=base, part=base[1:, ::2], parameter=torch.nn.Parameter(torch.randn(2)))
    saved |= dict(count=torch.tensor(3), half=torch.randn(3).to(torch.bfloat16))
    more = dict(state=torch.nn.BatchNorm1d(3).state_dict(), score=np.float64(0.5), flag=True)
    torch.save({**saved, **more}, path, _use_new_zipfile_serialization=False)
    found = torch_files.entries(path)
    for name, tensor in {**saved, **{f"state.{k}": v for k, v in more["state"].items()}}.items():
        wanted = tensor.detach().double().numpy()
        np.testing.assert_array_equal(found[name].astype(np.float64), wanted)
    assert found["score"] == 0.5 and found["flag"] is True


def test_the_library_safetensors_reads_and_writes_alike(tmp_path):
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
    """Pooled features of a run's model."""
    cfg = RunDir(run, create=False).read_config()
    model = ModelDef(make(**config.plain(cfg.model)))
    leaves, _ = initialize.load_params(str(run))
    extra = {k.removeprefix("extra/"): v for k, v in leaves.items() if k.startswith("extra/")}
    params = {k: v for k, v in leaves.items() if not k.startswith("extra/")}
    module = model.bind(tree.unflatten(params), tree.unflatten(extra))
    with jax.default_matmul_precision("highest"):
        return module.encode(inputs)


def close(actual, tensor):
    expected = tensor.detach().numpy()
    assert np.abs(actual - expected).max() < 2e-5 * np.abs(expected).max()


def pictures(array):
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
    for parameter in model.parameters():  # some start at 0 or 1
        parameter.data += 0.02 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("clip")
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    library = pytest.importorskip("safetensors.torch")
    library.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    assert open_clip
    return model, {path.suffix: str(path) for path in folder.iterdir()}


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
    run, back = tmp_path / "run", tmp_path / "back.safetensors"
    assert cli.main(["convert", files[suffix], "--out", str(run)]) == 0
    ids = np.array([[48, 3, 14, 49, 0, 0, 0, 0, 0], [48, 9, 2, 6, 5, 3, 5, 8, 49]])
    ours = features(run, {"image": TOUCH, "text": ids})
    close(ours["image"], model.encode_image(pictures(TOUCH)))
    close(ours["text"], model.encode_text(torch.from_numpy(ids)))
    assert cli.main(["convert", str(run), "--to", "open_clip", "--out", str(back)]) == 0
    state = {name: torch.from_numpy(np.array(x)) for name, x in safetensors.read(back).items()}
    model.load_state_dict(state, strict=True)
    for name, array in numpy_of(model.state_dict()).items():
        np.testing.assert_array_equal(array, state[name].numpy())


@pytest.mark.parametrize("kind", ["vit", "resnet18"])
def test_features_of_a_touch_encoder_as_tvl_saves_it(clip, kind, tmp_path):
    timm = pytest.importorskip("timm")

    def make(seed):
        if kind == "vit":
            return vit(seed)
        torch.manual_seed(seed)
        return timm.create_model("resnet18", num_classes=24).eval()

    model = make(1)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer += 0.3 * torch.rand_like(buffer)
    scale = torch.nn.Parameter(torch.tensor(2.5))
    optimizer = torch.optim.AdamW([scale, *model.parameters()], betas=(0.9, 0.95))
    sum((p**2).sum() for p in [scale, *model.parameters()]).backward()
    optimizer.step()
    state = {f"tactile_encoder.{name}": x for name, x in model.state_dict().items()}
    torch.save(
        dict(
            model={"logit_scale": scale.data, **state},
            optimizer=optimizer.state_dict(),
            epoch=3,
            scaler=torch.amp.GradScaler("cpu").state_dict(),
            args=argparse.Namespace(tactile_model=kind, lr=3e-4, datasets=["ssvtp"]),
        ),
        tmp_path / "tvl_enc.pth",
    )
    run, out = tmp_path / "run", tmp_path / "touch.safetensors"
    source = [str(tmp_path / "tvl_enc.pth"), clip[1][".safetensors"]]
    assert cli.main(["convert", *source, "--out", str(run)]) == 0
    close(features(run, {"touch": TOUCH})["touch"], model(pictures(TOUCH)))
    leaves, what = initialize.load_params(str(run))
    assert what.startswith("step 1 of") and leaves["logit_scale"] == scale.item()
    # And back: it loads strictly, and says the same.
    assert cli.main(["convert", str(run), "--to", "timm", "--out", str(out)]) == 0
    other = make(2)
    loaded = {name: torch.from_numpy(np.array(x)) for name, x in safetensors.read(out).items()}
    other.load_state_dict(loaded, strict=True)
    assert torch.equal(other(pictures(TOUCH)), model(pictures(TOUCH)))


BACKBONES = {  # name, and what computes the last feature map
    "torchvision resnet50": ("resnet50", lambda model, x: trunk(model, x)),
    "timm resnet50": ("resnet50", lambda model, x: model.forward_features(x)),
    "torchvision mobilenet": ("mobilenet_v2", lambda model, x: model.features(x)),
    "timm mobilenet": ("mobilenetv2_050", lambda model, x: model.forward_features(x)),
}


def trunk(model, x):
    """A torchvision ResNet's last feature map."""
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    return model.layer4(model.layer3(model.layer2(model.layer1(x))))


@pytest.mark.parametrize("which", BACKBONES)
def test_backbones_of_pictures(which, tmp_path):
    library, (name, run_trunk) = which.split()[0], BACKBONES[which]
    if library == "timm":
        make = pytest.importorskip("timm").create_model
    else:
        make = getattr(pytest.importorskip("torchvision").models, name)
    torch.manual_seed(0)
    model = (make(name, num_classes=3) if library == "timm" else make(num_classes=3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # scales may start at 0
            parameter += 0.2 * torch.randn_like(parameter) if parameter.ndim == 1 else 0
        for path, buffer in model.named_buffers():
            if "running_mean" in path:
                buffer += 0.1 * torch.randn_like(buffer)
            elif "running_var" in path:
                buffer *= torch.exp(0.3 * torch.randn_like(buffer))
    source, run = tmp_path / "model.pth", tmp_path / "run"
    old = library == "torchvision"  # whose published files are of the old format
    torch.save(model.state_dict(), source, _use_new_zipfile_serialization=not old)
    assert cli.main(["convert", str(source), "--out", str(run)]) == 0
    inputs = rng.normal(size=(2, 49, 70, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = run_trunk(model, pictures(inputs)).mean((2, 3))
    ours = features(run, {"image": inputs}, make=make_guided)
    close(ours["image"], wanted)
    if which == "timm mobilenet":
        return
    for suffix in (".pth", ".safetensors"):
        back = tmp_path / f"back{suffix}"
        command = ["convert", str(run), "--to", "torchvision", "--out", str(back)]
        assert cli.main(command) == 0
        if suffix == ".pth":
            loaded = torch.load(back, weights_only=True)
        else:
            loaded = {k: torch.from_numpy(np.array(x)) for k, x in safetensors.read(back).items()}
        state = model.state_dict()
        missing = set(state) - set(loaded)
        assert set(loaded) <= set(state)
        assert {key.split(".")[0] for key in missing} <= {"fc", "classifier"}
        for key, tensor in loaded.items():
            assert torch.equal(tensor, state[key]), key
            assert tensor.dtype == state[key].dtype


@pytest.mark.parametrize("old, new", [(14, 16), (16, 7)])
def test_positions_are_resized_as_timm_and_open_clip_resize_them(old, new):
    table = rng.normal(size=(1 + old**2, 3)).astype(np.float32)
    target = {"touch/positions": jax.ShapeDtypeStruct((1 + new**2, 3), np.float32)}
    ours = initialize.match(target, {"touch/positions": table})[0]["touch/positions"]
    square = torch.from_numpy(table[1:].reshape(1, old, old, 3)).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(
        square, (new, new), mode="bicubic", antialias=True, align_corners=False
    )
    np.testing.assert_allclose(
        ours[1:], theirs[0].permute(1, 2, 0).reshape(new * new, 3), atol=1e-5
    )
