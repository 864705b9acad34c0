"""Wrong programs do not compile, and the compiler says in words what is wrong."""

import pytest

WRONG = {
    "rows": ("rt_fl<12, 16> d; zero(d);", "a register tile has a multiple of 16 rows"),
    "columns": (
        "rt_bf<16, 8> d; d.x[0][0] = 0;",
        "a register tile has a multiple of 8 columns (float, int, tf32), of 16",
    ),
    "type": (
        "rt<double, 16, 16> d; (void)d;",
        "register tiles hold float, bf16 or fp16, e4m3 or e5m2, tf32, int or int8",
    ),
    "swizzle": ("__shared__ st<bf16, 64, 48, 64> t; t.data[0] = {};", "the swizzle must divide the bytes of a row"),
    "shared_rows": ("__shared__ st<bf16, 12, 64> t; t.data[0] = {};", "a shared tile has a multiple of 8 rows"),
    "box": ("using T = st<bf16, 512, 64>; gl<T> g(m);", "a TMA box has at most 256 rows"),
    "fits": (
        "__shared__ st<bf16, 64, 64> t; rt_bf<16, 128> r; load(r, t);",
        "the register tile must fit in the shared tile",
    ),
    "same_type": (
        "__shared__ st<fp16, 64, 64> t; rt_bf<16, 64> r; load(r, t);",
        "register and shared tile must hold the same type",
    ),
    "mma_type": (
        "__shared__ st<bf16, 64, 64> a; __shared__ st<fp16, 64, 64> b; rt_fl<16, 64> d; mma_AB(d, a, b);",
        "A and B must hold the same type",
    ),
    "mma_rows": (
        "__shared__ st<bf16, 128, 64> a; __shared__ st<bf16, 64, 64> b; rt_fl<16, 64> d; mma_AB(d, a, b);",
        "A must have 64 rows (columns when it is stored transposed)",
    ),
    "mma_width": (
        "__shared__ st<bf16, 64, 64> a; __shared__ st<bf16, 64, 64> b; rt_fl<16, 128> d; mma_AB(d, a, b);",
        "the accumulator must be as wide as B",
    ),
    "mma_depth": (
        "__shared__ st<bf16, 64, 64> a; __shared__ st<bf16, 64, 32> b; rt_fl<16, 64> d; mma_ABt(d, a, b);",
        "A and B must have the same inner dimension",
    ),
    "mma_swizzle": (
        "__shared__ st<bf16, 64, 64, 0> a; __shared__ st<bf16, 64, 64> b; rt_fl<16, 64> d; mma_AB(d, a, b);",
        "wgmma reads swizzled tiles",
    ),
    "part": ("__shared__ st<bf16, 24, 64> t; part<2>(t, 0).data[0] = {};", "a tile is cut in parts of 8-row groups"),
    "registers": ("give_registers<42>();", "setmaxnreg takes 24..256 in steps of 8"),
}


@pytest.fixture(scope="module")
def complaints(compile_kernel, toolchain, tmp_path_factory):
    """All of them in one file, one namespace each: nvcc goes on after a failed static_assert, and one run is enough."""
    folder = tmp_path_factory.mktemp("wrong")
    source = folder / "wrong.cu"
    body = ['#include "tk/tk.cuh"\nusing namespace tk;\n']
    for name, (code, _) in WRONG.items():
        body.append(f"__global__ void wrong_{name}(const __grid_constant__ tensor_map m) {{ {code} }}\n")
    source.write_text("".join(body))
    with pytest.raises(compile_kernel.CompileError) as error:
        compile_kernel.compile_kernel(source, "wrong", folder, toolchain, flags=("-Xcudafe", "--error_limit=1000"))
    return str(error.value)


@pytest.mark.parametrize("name", WRONG)
def test_the_sentence_is_there(name, complaints):
    assert f'static assertion failed with "{WRONG[name][1]}' in complaints
