"""mmjax: pretrain, fine-tune and evaluate multimodal encoders in JAX."""

import importlib.metadata
import os


def _avoid_wrong_results_on_cpu() -> None:
    """Turns off a fusion of XLA's CPU backend that reads uninitialized memory.

    Since jaxlib 0.10.2, matrix products fused by YNNPACK on x86-64 are sometimes NaN or crash (JAX
    issues 39257 and 40412; here, the linear probe). XLA reads its flags when JAX creates its first
    array, so the flag is set when `mmjax` is imported. A flag set by the user is kept.
    """
    flag = "--xla_cpu_experimental_ynn_fusion_type"
    flags = os.environ.get("XLA_FLAGS", "")
    try:
        version = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:3]))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return
    if (0, 10, 2) <= version < (0, 12) and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=".strip()


_avoid_wrong_results_on_cpu()


def load(source, *, overrides=()):
    """Returns a trained model of any task, ready for use; see `mmjax.inference.load`.

    Args:
      source: A run directory, or published files.
      overrides: `--config.key=value` arguments for its config.
    """
    from mmjax import inference  # imports jax

    return inference.load(source, overrides=overrides)
