"""Operations and bytes of programs, compared with formulas, jaxprs and XLA's own analysis."""

import jax
import jax.numpy as jnp
import pytest

from mmjax.aot import costs, hlo


def count(text):
    return costs.count(hlo.parse("HloModule m\n\n" + text))


def count_compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(function).lower(*arguments).compile()
    return costs.count(hlo.parse(compiled.as_text())), compiled.cost_analysis()


def test_a_matrix_product_costs_two_operations_per_product():
    result, analysis = count_compiled(lambda a, b: a @ b, (40, 30), (30, 20))
    assert result.flops == analysis["flops"] == 2 * 40 * 30 * 20
    assert result.bytes == analysis["bytes accessed"] == 4 * (40 * 30 + 30 * 20 + 40 * 20)
    assert not result.uncounted


def test_a_batched_matrix_product_counts_its_batch():
    result, _ = count_compiled(
        lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b), (2, 3, 8, 4), (2, 3, 8, 4)
    )
    assert result.flops == 2 * (2 * 3) * 8 * 8 * 4


def test_a_loop_costs_its_body_times_its_iterations():
    def once(x, w):
        return jnp.tanh(x @ w)

    def loop(x, ws):
        return jax.lax.scan(lambda x, w: (once(x, w), None), x, ws)[0]

    single, _ = count_compiled(once, (64, 32), (32, 32))
    looped, analysis = count_compiled(loop, (64, 32), (9, 32, 32))
    assert looped.flops == 9 * single.flops == 9 * 2 * 64 * 32 * 32
    assert analysis["flops"] < 0.2 * looped.flops  # why XLA's own analysis is not used
    assert 9 * single.bytes <= looped.bytes < 1.5 * 9 * single.bytes


@pytest.mark.parametrize(
    ("strides", "padding"), [((1, 1), "SAME"), ((2, 2), "SAME"), ((3, 3), "VALID")]
)
def test_a_convolution_does_not_count_products_with_padding(strides, padding):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    result, _ = count_compiled(convolve, (2, 6, 7, 3), (3, 3, 3, 5))
    # The same convolution of ones sums the elements that are not padding.
    ones = convolve(jnp.ones((2, 6, 7, 3)), jnp.ones((3, 3, 3, 5)))
    assert result.flops == 2 * float(ones.sum())


CONDITIONAL = """%small (a: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0} parameter(0)
  ROOT %n = f32[4,4]{1,0} negate(%a)
}

%large (b: f32[4,4]) -> f32[4,4] {
  %b = f32[4,4]{1,0} parameter(0)
  ROOT %d = f32[4,4]{1,0} dot(%b, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (p: pred[], x: f32[4,4]) -> f32[4,4] {
  %p = pred[] parameter(0)
  %x = f32[4,4]{1,0} parameter(1)
  ROOT %c = f32[4,4]{1,0} conditional(%p, %x, %x), true_computation=%small, \
false_computation=%large
}
"""


def test_a_conditional_costs_its_largest_branch():
    result = count(CONDITIONAL)
    assert [o.name for o in result.operations] == ["d"]
    assert result.flops == 2 * 4**3


# A TPU writes matrix products as convolutions: here 16 × 128 by 128 × 256 for each of 4 heads,
# whose window is mostly padding.
HEADS = """ENTRY %main (x: bf16[4,16,128], w: bf16[4,128,256]) -> bf16[4,16,256] {
  %x = bf16[4,16,128]{2,1,0} parameter(0)
  %w = bf16[4,128,256]{2,1,0} parameter(1)
  ROOT %c = bf16[4,16,256]{2,1,0} convolution(%x, %w), \
window={size=4 stride=3 pad=3_3 lhs_dilate=4}, dim_labels=0bf_0io->0bf
}
"""


def test_the_batch_of_a_product_may_be_a_convolution_of_padding():
    assert count(HEADS).flops == 2 * 4 * 16 * 128 * 256


KERNELS = """ENTRY %main (q: bf16[2,4,8,64], a: bf16[16,32], b: bf16[32,8]) -> bf16[16,8] {
  %q = bf16[2,4,8,64]{3,2,1,0} parameter(0)
  %a = bf16[16,32]{1,0} parameter(1)
  %b = bf16[32,8]{1,0} parameter(2)
  %f = (bf16[2,4,8,64]{3,2,1,0}, u8[99]{0}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config":\
{"intermediate_tensor_shape":{"dimensions":["2","4","8","8"]}}}
  %p = bf16[16,32]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"1000","bytes_accessed":"777"}}}
  %u = bf16[16,32]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", backend_config={}
  ROOT %g = (bf16[16,8]{1,0}, s8[4096]{0}) custom-call(%u, %b), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
}
"""


def test_kernels_count_by_their_shapes_or_their_estimates():
    result = count(KERNELS)
    flops = {o.name: o.flops for o in result.operations}
    assert flops == {
        "f": 2 * 2 * (2 * 4 * 8 * 8) * 64,  # scores, and their product with the values
        "p": 1000,
        "u": 0,
        "g": 2 * 16 * 32 * 8,
    }
    read = {o.name: o.bytes for o in result.operations}
    assert read["p"] == 777
    assert read["g"] == 2 * (16 * 32 + 32 * 8 + 16 * 8)  # without scratch memory


def test_what_is_not_counted_is_reported():
    assert count(KERNELS).uncounted == {"operations of custom call tpu_custom_call": 1}


SLICES = """%update (stack: f32[9,128], i: s32[], row: f32[1,128]) -> f32[9,128] {
  %stack = f32[9,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,128]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %old = f32[1,128]{1,0} dynamic-slice(%stack, %i, %zero), dynamic_slice_sizes={1,128}
  %sum = f32[1,128]{1,0} add(%old, %row)
  ROOT %new = f32[9,128]{1,0} dynamic-update-slice(%stack, %sum, %i, %zero)
}

ENTRY %main (stack.1: f32[9,128], i.1: s32[], row.1: f32[1,128]) -> f32[9,128] {
  %stack.1 = f32[9,128]{1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %row.1 = f32[1,128]{1,0:S(1)} parameter(2)
  ROOT %f = f32[9,128]{1,0} fusion(%stack.1, %i.1, %row.1), kind=kLoop, calls=%update
}
"""


def test_an_update_in_place_moves_only_the_slice():
    # Reads the old slice and the index; the row is on the chip; writes the new slice.
    assert count(SLICES).bytes == 512 + 4 + 512


# TPUs: the operands of a product pass through fusions of their own, which only rename them.
NESTED = """%rename (p: bf16[64,32]) -> bf16[64,32] {
  %p = bf16[64,32]{1,0} parameter(0)
  ROOT %b = bf16[64,32]{1,0} bitcast(%p)
}

%rename_out (q: bf16[64,64]) -> bf16[64,64] {
  %q = bf16[64,64]{1,0} parameter(0)
  ROOT %c = bf16[64,64]{1,0} bitcast(%q)
}

%product (x: bf16[64,32], y: bf16[64,32]) -> bf16[64,64] {
  %x = bf16[64,32]{1,0} parameter(0)
  %y = bf16[64,32]{1,0} parameter(1)
  %left = bf16[64,32]{1,0} fusion(%x), kind=kLoop, calls=%rename
  %right = bf16[64,32]{1,0} fusion(%y), kind=kLoop, calls=%rename
  %dot = bf16[64,64]{1,0} convolution(%left, %right), dim_labels=bf_oi->bf
  ROOT %out = bf16[64,64]{1,0} fusion(%dot), kind=kLoop, calls=%rename_out
}

ENTRY %main (x.1: bf16[64,32], y.1: bf16[64,32]) -> bf16[64,64] {
  %x.1 = bf16[64,32]{1,0} parameter(0)
  %y.1 = bf16[64,32]{1,0} parameter(1)
  ROOT %f = bf16[64,64]{1,0} fusion(%x.1, %y.1), kind=kOutput, calls=%product
}
"""


def test_fusions_that_rename_an_operand_do_not_hide_that_it_is_read():
    result = count(NESTED)
    assert result.bytes == 2 * (64 * 32 + 64 * 32 + 64 * 64)
    assert result.flops == 2 * 64 * 32 * 64
