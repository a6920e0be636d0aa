"""Side effects of importing the package."""

import subprocess
import sys

import pytest

FLAG = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", f"{FLAG}="),
        (
            "--xla_force_host_platform_device_count=2",
            f"--xla_force_host_platform_device_count=2 {FLAG}=",
        ),
        (f"{FLAG}=dot", f"{FLAG}=dot"),
    ],
)
def test_import_disables_the_faulty_fusion_unless_it_is_configured(user_env, flags, expected):
    code = "import mmjax, jax, os; jax.numpy.ones(2); print(os.environ['XLA_FLAGS'])"
    env = user_env() | {"XLA_FLAGS": flags}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == expected
