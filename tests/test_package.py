"""What importing the package does to a process."""

import subprocess
import sys

import pytest

FLAG = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", f"{FLAG}="),
        ("--xla_force_host_platform_device_count=2", None),
        (f"{FLAG}=dot", f"{FLAG}=dot"),
    ],
)
def test_the_faulty_fusion_is_off_before_jax_starts(user_env, given, found):
    code = "import mmjax, jax, os; jax.numpy.ones(2); print(os.environ['XLA_FLAGS'])"
    env = user_env() | {"XLA_FLAGS": given}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == (f"{given} {FLAG}=" if found is None else found)
