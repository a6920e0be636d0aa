"""Metadata and dependencies of mmjax. Lower bounds are what is tested."""

from setuptools import find_packages, setup

# Top-level directories that are installed inside the package: {package: directory}.
TOP_LEVEL = {"mmjax.configs": "configs", "mmjax.assets": "data", "mmjax.tools": "tools"}


def packages() -> list[str]:
    """Returns all packages; those of top-level directories under their installed names."""
    names = find_packages(include=["mmjax", "mmjax.*"])
    for package, directory in TOP_LEVEL.items():
        names += [f"{package}.{name}" for name in find_packages(directory)]
    return names


setup(
    name="mmjax",
    version="0.2.0",
    description=(
        "Pretrain, fine-tune and evaluate multimodal encoders (video, audio, text, touch) in JAX"
    ),
    license="Apache-2.0",
    packages=packages(),
    package_dir={"mmjax": "mmjax", **TOP_LEVEL},
    package_data={"mmjax.assets": ["*/*"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.4",
        "av>=18.1",
        "flax>=0.12.8",
        "ftfy>=6.3",
        "google-crc32c>=1.7",
        "httpx>=0.28,<1",
        "jax>=0.10.2",
        "matplotlib>=3.10",
        "ml_collections>=1.1",
        "ml_dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "Pillow>=11",
        "pycocotools>=2.0.10",  # rasterizes polygons of masks
        "PyYAML>=6",
        "rich>=14",
        "scikit-learn>=1.7",
        "scipy>=1.15",
        "sentencepiece>=0.2.1",
        'tensorflow-cpu>=2.21; platform_machine == "x86_64" and sys_platform != "darwin"',
        'tensorflow>=2.21; platform_machine != "x86_64" or sys_platform == "darwin"',
        "tensorboardX>=2.6.4",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources>=6.4",  # tensorflow-datasets imports it but does not require it
        "tokenizers>=0.22",
        "tqdm>=4.67",
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "beam": ["apache-beam>=2.77"],
        "faiss": ["faiss-cpu>=1.9"],  # `mmjax bench neighbors` compares with it
        "wandb": ["wandb>=0.17"],
        "sentences": ["sentence-transformers>=5"],  # `mmjax sentences --encoder st:NAME`
        "tensorboard": ["tensorboard>=2.18"],
        # tests/convert/test_torch.py compares with PyTorch what mmjax reads and writes.
        "torch": ["open_clip_torch>=3.3", "safetensors>=0.8", "timm>=1.0.31", "torch>=2.13"],
        # tests/test_installation.py builds packages without network access if setuptools is here.
        "test": [
            # libtpu, with which tests/aot compiles for TPUs on a CPU.
            'jax[tpu]; platform_machine == "x86_64" and sys_platform == "linux"',
            "hypothesis>=6.100",
            "pytest>=8",
            "pytest-xdist>=3.8",
            "ruff>=0.6",
            "setuptools>=70.1",
        ],
    },
    entry_points={"console_scripts": ["mmjax = mmjax.tools.cli:main"]},
)
