"""Wrong programs do not compile, and the compiler says in words what is wrong."""

import re

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
    "mma_types": (
        "__shared__ st<bf16, 64, 64> a, b; rt<int, 16, 64> d; mma_AB(d, a, b);",
        "wgmma has no product of these types",
    ),
    "mma_8bit_order": (
        "__shared__ st<e4m3, 64, 64> a, b; rt_fl<16, 64> d; mma_AB(d, a, b);",
        "wgmma reads tf32 and 8-bit operands along K only: B must be stored N x K",
    ),
    "mma_8bit_transposed": (
        "__shared__ st<int8, 64, 64> a, b; rt<int, 16, 64> d; mma_AtBt(d, a, b);",
        "wgmma reads tf32 and 8-bit operands along K only: A must be stored M x K",
    ),
    "mma_int_width": (
        "__shared__ st<int8, 64, 64> a; __shared__ st<int8, 40, 64> b; rt<int, 16, 40> d; mma_ABt(d, a, b);",
        "integer products have 8, 24 or a multiple of 16 columns",
    ),
    "mma_register_a": (
        "__shared__ st<bf16, 64, 64> b; rt_bf<64, 16, Layout::col> a; rt_fl<16, 64> d; mma_AtB(d, a, b);",
        "A in registers must be the warp's 16 rows of it, in row layout, stored M x K",
    ),
    "mma_warp_b": (
        "rt_bf<16, 16> a, b; rt_fl<16, 16> d; mma_AB(d, a, b);",
        "B must be stored K x N in column layout, or N x K in row layout",
    ),
    "mma_warp_a": (
        "rt_bf<16, 16, Layout::col> a, b; rt_fl<16, 16> d; mma_AB(d, a, b);",
        "A must be in row layout, or stored K x M in column layout",
    ),
    "mma_warp_types": (
        "rt_e4m3<16, 32> a, b; rt_hf<16, 16> d; mma_ABt(d, a, b);",
        "mma.sync has no product of these types",
    ),
    "mma_warp_height": (
        "rt_bf<32, 16> a; rt_bf<16, 16> b; rt_fl<16, 16> d; mma_ABt(d, a, b);",
        "the accumulator must be as tall as A",
    ),
    "mma_mixed_places": (
        "__shared__ st<bf16, 64, 16> a; rt_bf<16, 16> b; rt_fl<16, 16> d; mma_ABt(d, a, b);",
        "with B in registers, A must be in registers too",
    ),
    "map_rank": ("using T = st<bf16, 8, 64>; gl<T, 6> g(m);", "a tensor map has 1 to 5 dimensions"),
    "map_rank_1": (
        "using T = st<bf16, 8, 64>; gl<T, 1> g(m);",
        "a tile behind a one-dimensional map has no swizzle and at most 256 elements",
    ),
    "reduce_float": (
        "using T = st<float, 8, 8>; __shared__ T t; store_min(gl<T>(m), t, {0, 0});",
        "float tiles can only be added by a store",
    ),
    "reduce_half": (
        "using T = st<bf16, 8, 64>; __shared__ T t; store_xor(gl<T>(m), t, {0, 0});",
        "bf16 and fp16 tiles can be added, or take the minimum or maximum, by a store",
    ),
    "reduce_byte": (
        "using T = st<e4m3, 8, 64>; __shared__ T t; store_add(gl<T>(m), t, {0, 0});",
        "a store cannot reduce 8-bit elements",
    ),
    "reduce_bulk": (
        "__shared__ float t[4]; bulk_max(t, t, 4);",
        "bulk copies have no such reduction of this type",
    ),
    "specialised": (
        "(void)specialised<Greedy>::threads;",
        "the registers of the warpgroups must fit in the SM: at most 512 in all",
    ),
    "part": ("__shared__ st<bf16, 24, 64> t; part<2>(t, 0).data[0] = {};", "a tile is cut in parts of 8-row groups"),
    "col_columns": ("rt_fl<16, 8, Layout::col> d; zero(d);", "a column tile has a multiple of 16 columns"),
    "vector_type": ("rv<bf16, 16, Spread::across> v; (void)v;", "register vectors hold float or int"),
    "group": ("rt_fl<16, 16> d; zero(d); group<33>::warp();", "a group has 1 to 32 warps"),
    "operand_shape": (
        "rt_fl<16, 16> a; rt_fl<16, 32> b; add(a, a, b);",
        "an operand must have the shape of the result",
    ),
    "operand_layout": (
        "rt_fl<16, 16> a; rt_fl<16, 16, Layout::col> b; add(a, a, b);",
        "an operand must have the layout of the result: use swap_layout",
    ),
    "operand_run": (
        "rt_fl<16, 32> a; rt_e4m3<16, 32> b; add(a, a, b);",
        "8-bit and tf32 tiles are laid out differently: convert with copy first",
    ),
    "operand_spread": (
        "rt_fl<16, 32> a; rv<float, 16, Spread::lanes> v; mul(a, a, v);",
        "a vector operand must be Tile::per_row or Tile::per_col: copy it into one",
    ),
    "operand_length": (
        "rt_fl<16, 32> a; rt_fl<32, 32>::per_row v; mul(a, a, v);",
        "a vector operand must be per_row or per_col of the result's own tile type",
    ),
    "shared_shape": (
        "__shared__ st<bf16, 16, 32> a; __shared__ st<bf16, 16, 64> b; add(a, a, b);",
        "an operand must have the shape of the result",
    ),
    "shared_length": (
        "__shared__ sv<bf16, 32> a; __shared__ sv<bf16, 16> b; add(a, a, b);",
        "an operand must have the length of the result",
    ),
    "shared_vector": (
        "__shared__ st<bf16, 32, 32> a; __shared__ sv<bf16, 32> b; add(a, a, b);",
        "a shared vector cannot be an operand of a shared tile",
    ),
    "shared_reduce": (
        "__shared__ st<bf16, 32, 32> a; __shared__ sv<bf16, 32> b; exp2(b, a);",
        "a tile cannot be an operand of a vector: reduce it first",
    ),
    "shared_registers": (
        "__shared__ st<bf16, 16, 32> a; rt_bf<16, 32> b; zero(b); exp2(a, b);",
        "registers cannot be an operand of shared memory: store them first",
    ),
    "operand_vector": (
        "rt_fl<16, 32>::per_row v; rt_fl<16, 32>::per_col w; mul(v, v, w);",
        "an operand must have the length and spread of the result: copy it into such a vector",
    ),
    "operand_tile": (
        "rt_fl<16, 32> a; rt_fl<16, 32>::per_row v; exp2(v, a);",
        "a tile cannot be an operand of a vector: reduce it first",
    ),
    "row_vector": (
        "rt_fl<16, 32> a; rt_fl<16, 32>::per_col v; row_sum(v, a);",
        "row_sum needs one value per row: Tile::per_row",
    ),
    "col_vector": (
        "rt_fl<16, 32> a; rt_fl<16, 32>::per_row v; col_max(v, a);",
        "col_max needs one value per column: Tile::per_col",
    ),
    "scratch": (
        "__shared__ sv<float, 64> s; rt_fl<16, 32> a; rt_fl<16, 32>::per_col v; col_sum<warpgroup>(v, a, s, 1);",
        "scratch must hold one vector of the result's type for each warp",
    ),
    "scan_type": ("rt_int<16, 16> a; row_cumsum(a, a);", "scans are of floating-point tiles"),
    "copy_shape": ("rt_fl<16, 16> a; rt_bf<16, 32> b; copy(a, b);", "copy needs tiles of one shape"),
    "copy_layout": (
        "rt_fl<16, 16> a; rt_bf<16, 16, Layout::col> b; copy(a, b);",
        "copy keeps the layout: swap_layout or transpose change it",
    ),
    "copy_vectors": (
        "rt_fl<16, 32>::per_row v; rt_fl<16, 32>::per_col w; copy(v, w);",
        "copy needs vectors of one length",
    ),
    "columns_part": ("rt_fl<16, 32> a; rt_fl<16, 16> b; columns(a, b, 0);", "columns takes a part of the tile"),
    "subtile_fits": (
        "__shared__ st<bf16, 64, 64> t; subtile<16, 128>(t, 0, 0).at(0, 0);",
        "a sub-tile must fit in its tile",
    ),
    "subtile_rows": (
        "__shared__ st<bf16, 64, 64> t; subtile<12, 16>(t, 0, 0).at(0, 0);",
        "a sub-tile has a multiple of 8 rows and of 16 bytes of columns, and begins at one",
    ),
    "group_fits": (
        "__shared__ st<bf16, 64, 64> t; rt_bf<32, 64> r; load<warpgroup>(r, t);",
        "the register tile must fit in the shared tile",
    ),
    "column_load": (
        "__shared__ st<float, 64, 64> t; rt_fl<8, 16, Layout::col> r; load(r, t);",
        "a column tile of this type needs a multiple of 16 (fp8: 32) rows and columns",
    ),
    "global_type": (
        "__shared__ st<float, 64, 64> t; load(t, view<const bf16>{nullptr, 1, 1, 1}, 0, 0);",
        "global and shared tile must hold the same type",
    ),
    "vector_fits": (
        "__shared__ sv<float, 16> s; rt_fl<32, 16>::per_row v; load(v, s);",
        "the register vector must fit in the shared vector",
    ),
    "tensor_index": (
        "tensor<float, 4> x{}; x(1);",
        "a matrix of a tensor is named by all but its last two dimensions",
    ),
    "registers": ("give_registers<42>();", "setmaxnreg takes 24..256 in steps of 8"),
}


GREEDY = "struct Greedy { static constexpr int consumers = 2, producer_registers = 40, consumer_registers = 240; };\n"


PRELUDE = '#include "tk/tk.cuh"\nusing namespace tk;\n' + GREEDY
FIRST_LINE = 1 + PRELUDE.count("\n")


@pytest.fixture(scope="module")
def complaints(compile_kernel, toolchain, tmp_path_factory):
    """All of them in one file, a line each: nvcc goes on after a failed static_assert, and one run is enough."""
    folder = tmp_path_factory.mktemp("wrong")
    source = folder / "wrong.cu"
    body = [PRELUDE]
    for name, (code, _) in WRONG.items():
        body.append(f"__global__ void wrong_{name}(const __grid_constant__ tensor_map m) {{ {code} }}\n")
    source.write_text("".join(body))
    with pytest.raises(compile_kernel.CompileError) as error:
        compile_kernel.compile_kernel(source, "wrong", folder, toolchain, flags=("-Xcudafe", "--error_limit=1000"))
    return str(error.value).split("\n\n")


@pytest.mark.parametrize("name", WRONG)
def test_the_sentence_is_there(name, complaints):
    """The compiler's words about this program hold it."""
    line = FIRST_LINE + list(WRONG).index(name)
    here = re.compile(rf"wrong\.cu\({line}\)|line {line} of \S*wrong\.cu|line {line}$", re.MULTILINE)
    about = [block for block in complaints if here.search(block)]
    assert any(f'static assertion failed with "{WRONG[name][1]}' in block for block in about), about
