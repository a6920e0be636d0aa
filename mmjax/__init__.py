"""mmjax: pretrain, fine-tune and evaluate encoders of video, audio, text and touch in JAX."""

import importlib.metadata
import os


def _avoid_wrong_results_on_cpu() -> None:
    """Turns off a fusion of XLA's CPU backend that reads memory nobody wrote.

    Since jaxlib 0.10.2, matrix products fused by YNNPACK on x86-64 give NaN now and then, or crash
    (jax issues 39257 and 40412; here: the linear probe). XLA reads its flags when JAX makes its
    first array, so this stands where nothing of mmjax can be imported before it. A flag of the
    user's own is left alone.
    """
    flag = "--xla_cpu_experimental_ynn_fusion_type"
    given = os.environ.get("XLA_FLAGS", "")
    try:
        version = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:3]))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return
    if (0, 10, 2) <= version < (0, 12) and flag not in given:
        os.environ["XLA_FLAGS"] = f"{given} {flag}=".strip()


_avoid_wrong_results_on_cpu()


def load(source, *, overrides=()):
    """A trained touch model, ready for use: see `mmjax.inference.load`."""
    from mmjax import inference  # imports jax

    return inference.load(source, overrides=overrides)
