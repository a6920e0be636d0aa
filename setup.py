"""Metadata and dependencies of mmjax. Lower bounds are what is tested."""

from setuptools import find_packages, setup

setup(
    name="mmjax",
    version="0.1.0",
    description="Pretrain, fine-tune and evaluate multimodal encoders (video, audio, text, touch) in JAX",
    license="Apache-2.0",
    packages=find_packages(include=["mmjax", "mmjax.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "av>=14",
        "flax>=0.12",
        "jax>=0.7",
        "matplotlib>=3.8",
        "ml_collections>=1.0",
        "numpy>=1.26",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.20",
        "Pillow>=10",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "sentencepiece>=0.2",
        'tensorflow-cpu>=2.18; platform_machine == "x86_64" and sys_platform != "darwin"',
        'tensorflow>=2.18; platform_machine != "x86_64" or sys_platform == "darwin"',
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.7",
        "tokenizers>=0.20",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "beam": ["apache-beam>=2.60"],
        "wandb": ["wandb>=0.17"],
        "tensorboard": ["tensorboard>=2.18"],
        "test": ["hypothesis>=6.100", "pytest>=8", "pytest-xdist>=3.5", "ruff>=0.6"],
    },
    entry_points={"console_scripts": ["mmjax = mmjax.tools.cli:main"]},
)
