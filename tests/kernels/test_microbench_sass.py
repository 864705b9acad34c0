"""What ptxas made of the microbenchmarks: the instructions between the two readings of the clock. ptxas moves loads out
of loops, merges additions, folds a reciprocal of a reciprocal away; none of that may happen here."""

from __future__ import annotations

import functools
import re
import subprocess

import pytest

from tkpy import build_info

pytestmark = pytest.mark.skipif(
    build_info.missing_reason("microbench_alu") is not None, reason="the microbenchmarks are not built"
)
MODULES = sorted(name for name in build_info.reports() if name.startswith("microbench_"))
WGMMA = {  # type -> its SASS: opcode, K, types
    "bf16": ("HGMMA", 16, "F32.BF16"), "f16": ("HGMMA", 16, "F32"), "f16_f16": ("HGMMA", 16, "F16"),
    "tf32": ("HGMMA", 8, "F32.TF32"), "e4m3": ("QGMMA", 32, "F32.E4M3.E4M3"), "e5m2": ("QGMMA", 32, "F32.E5M2.E5M2"),
    "e4m3_f16": ("QGMMA", 32, "F16.E4M3.E4M3"), "e5m2_f16": ("QGMMA", 32, "F16.E5M2.E5M2"),
    "s8": ("IGMMA", 32, "S8.S8"), "sparse_f16": ("HGMMA.SP", 32, "F32"), "sparse_tf32": ("HGMMA.SP", 16, "F32.TF32"),
    "sparse_e4m3": ("QGMMA.SP", 64, "F32.E4M3.E4M3"),
}  # fmt: skip


@pytest.fixture(scope="module")
def windows(compile_kernel):
    """Module -> kernel -> the instructions between its first and its last reading of the clock."""
    cuobjdump = compile_kernel.find_cuobjdump()
    if cuobjdump is None:
        pytest.skip("no cuobjdump")

    @functools.cache
    def of(module: str) -> dict[str, list[str]]:
        command = [cuobjdump, "--dump-sass", str(build_info.KERNELS / f"{module}.cubin")]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = {}
        for part in text.split("Function : ")[1:]:
            lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z].*?)\s*;", part, re.MULTILINE)
            lines = [line for line in lines if ", -RZ, RZ, 0, 0" not in line]  # HFMA2 as a way to make zeros
            reads = [i for i, line in enumerate(lines) if "SR_CLOCKLO" in line]
            found[part.split()[0]] = lines[reads[0] + 1 : reads[-1]] if len(reads) > 1 else []
        return found

    return of


def count(lines: list[str], *opcodes: str) -> int:
    """Instructions whose mnemonic is, or begins with, one of these."""
    return sum(line.startswith(opcodes) for line in lines)


@pytest.mark.parametrize("module", MODULES)
def test_no_warnings_spills_or_local_memory(module):
    report = build_info.reports()[module]
    assert report["warnings"] == []
    assert not report["wgmma_serialized"]
    for name, facts in report["kernels"].items():
        assert facts["stack"] == facts["spill_stores"] == facts["spill_loads"] == 0, name
        assert not {"LDL", "STL"} & set(facts["sass"] or {}), name


@pytest.mark.parametrize("module", [m for m in MODULES if "wgmma" in m])
def test_wgmma_is_one_product_and_a_group_of_four(windows, module):
    kernels = windows(module)
    assert kernels
    for kernel, lines in kernels.items():
        kind, n, source = re.fullmatch(r"wgmma_(\w+)_n(\d+)_(ss|rs)", kernel).groups()
        opcode, depth, types = WGMMA[kind]
        products = [line for line in lines if re.match(r"[HQI]GMMA", line)]
        assert len(products) == 5, kernel
        for line in products:
            assert line.startswith(f"{opcode}.64x{n}x{depth}.{types} "), (kernel, line)
            operands = line.split(None, 1)[1].split(", ")
            assert operands[1].startswith("gdesc" if source == "ss" else "R"), (kernel, line)
            assert operands[0] == operands[2 if source == "ss" else 3], f"{kernel} does not accumulate in place: {line}"
        assert count(lines, "WARPGROUP.ARRIVE") == 2, kernel
        assert count(lines, "WARPGROUP.DEPBAR") == 3, kernel
        assert count(lines, "CS2R", "FADD", "IADD3.X") <= 1, (
            f"{kernel}: accumulators are made or summed inside the clocks"
        )


ALU = {  # unit -> what one step is; the rest are one of the opcode
    "fadd": ["FADD"], "fmul": ["FMUL"], "ffma": ["FFMA"], "fmax": ["FMNMX"], "hfma2": ["HFMA2"], "bfma2": ["HFMA2"],
    "ex2": ["MUFU.EX2"], "ex2_f16x2": ["MUFU.EX2.F16"] * 2, "lg2": ["MUFU.LG2"], "rcp": ["MUFU.RCP", "FADD"],
    "rsqrt": ["MUFU.RSQ"], "sqrt": ["MUFU.SQRT"], "sin": ["MUFU.SIN", "FMUL"], "tanh": ["MUFU.TANH"],
    "tanh_f16x2": ["MUFU.TANH.F16"] * 2, "cvt_bf16x2_f32": ["F2FP.BF16"], "cvt_f16x2_f32": ["F2FP.F16"],
    "cvt_f32_f16": ["HADD2.F32"], "cvt_e4m3x2_f32": ["F2FP.SATFINITE.E4M3", "LOP3"],
    "cvt_f16x2_e4m3x2": ["F2FP.F16.E4M3"], "cvt_f32_s32": ["I2FP"], "cvt_s32_f32": ["F2I"], "imad": ["IMAD"],
    "lop3": ["LOP3"], "shf": ["SHF"], "viaddmax": ["VIADDMNMX"], "prmt": ["PRMT"], "popc": ["POPC"], "dp4a": ["IDP"],
    "shfl": ["SHFL"], "redux": ["REDUX"], "ballot": ["VOTE", "ISETP"],
}  # fmt: skip


def test_units_are_the_instructions_they_are_called_after(windows):
    kernels = windows("microbench_alu")
    for unit, step in ALU.items():
        for kernel, chains in ((f"{unit}_latency", 1), (f"{unit}_rate", 8)):
            for opcode in set(step):
                got, want = count(kernels[kernel], opcode), 32 * chains * step.count(opcode)
                # a few more of the common ones count the loop
                assert want <= got <= want + (4 if opcode in ("IMAD", "LOP3", "ISETP") else 0), (kernel, opcode, got)
    for chains, kernel in ((1, "iadd_latency"), (8, "iadd_rate")):
        assert 32 * chains <= count(kernels[kernel], "IADD3", "IMAD.IADD", "IADD") <= 32 * chains + 4, kernel
    assert {kernel.rsplit("_", 1)[0] for kernel in kernels} == {*ALU, "iadd"}


@pytest.mark.parametrize("unit", [u for u, step in ALU.items() if len(step) == 1 and u not in ("redux", "cvt_s32_f32")])
def test_latency_chains_depend(windows, unit):
    """Each instruction reads what the one before wrote, the first what the last wrote."""
    chain = [line for line in windows("microbench_alu")[f"{unit}_latency"] if line.startswith(ALU[unit][0])][:32]
    results = [re.findall(r"\bR\d+\b", line)[0] for line in chain]
    links = [
        before in re.findall(r"\bR\d+\b", line)[1:]
        for before, line in zip(results, [*chain[1:], chain[0]], strict=True)
    ]
    assert links.count(False) <= 1, chain  # ptxas may end the loop with a move


#: module -> kernel -> opcode -> how often it stands in the loop.
LOOPS = {
    "shared": {
        "shared_chase": {"LDS": 16}, "shared_read_4": {"LDS": 8}, "shared_read_8": {"LDS.64": 8},
        "shared_read_16": {"LDS.128": 8}, "shared_write_4": {"STS": 8}, "shared_write_8": {"STS.64": 8},
        "shared_write_16": {"STS.128": 8}, "ldmatrix_x1": {"LDSM.16.M88 R": 8}, "ldmatrix_x2": {"LDSM.16.M88.2": 8},
        "ldmatrix_x4": {"LDSM.16.M88.4": 8}, "ldmatrix_x4_trans": {"LDSM.16.MT88.4": 8},
        "stmatrix_x4": {"STSM.16.M88.4": 8},
    },
    "memory": {
        "chase_ca": {"LDG.E.64": 8}, "chase_cg": {"LDG.E.64.STRONG.GPU": 8}, "chase_each": {"LDG.E.64.STRONG.GPU": 1},
        "read_ca": {"LDG.E.128": 4}, "read": {"LDG.E.128.STRONG.GPU": 4}, "write": {"STG.E.128": 4},
        "copy": {"LDG.E.128.STRONG.GPU": 4, "STG.E.128": 4},
    },
    "mma": {
        f"mma_{kind}_{what}": {opcode: number}
        for kind, opcode, number in (
            ("bf16", "HMMA.16816.F32.BF16", 8), ("f16", "HMMA.16816.F32 R", 8), ("f16_f16", "HMMA.16816.F16", 8),
            ("tf32", "HMMA.1688.F32.TF32", 8), ("e4m3", "HMMA.16816.F32 R", 16), ("s8", "IMMA.16832.S8.S8", 8),
        )
        for what in ("latency", "rate")
    },
    "cluster": {
        "cluster_chase": {"LD.E R": 16}, "cluster_read": {"LD.E.128": 4}, "cluster_write": {"ST.E.128": 4},
        "cluster_send": {"UBLKCP": 1},
    },
    "sync": {
        "sync_threads": {"BAR.SYNC": 9}, "sync_named": {"BAR.SYNC": 9}, "cluster_barrier": {"UCGABAR_ARV": 8},
        "cluster_barrier_relaxed": {"UCGABAR_ARV": 8}, "register_pool": {"USETMAXREG": 2},
        "grid_barrier": {"REDG": 1}, "mbarrier_all": {"SYNCS.ARRIVE": 1},
        **{f"fence_{scope}": {"MEMBAR": 8} for scope in ("cta", "cluster", "gpu", "system")},
        "fence_proxy_async": {"FENCE.VIEW.ASYNC": 8},
    },
    "atomics": {
        **{f"{op}_global": {"REDG": 8} for op in ("red_add", "red_add_f32", "red_add_v4_f32")},
        **{f"{op}_global": {"ATOMG": 8} for op in ("atom_add", "cas")},
        **{f"{op}_shared": {"ATOMS": 8} for op in ("atom_add", "cas", "red_add", "red_add_f32")},
        "atom_latency_global": {"ATOMG": 8}, "atom_latency_shared": {"ATOMS": 8},
    },
}  # fmt: skip


@pytest.mark.parametrize("module", LOOPS)
def test_loops_hold_what_is_timed(windows, module):
    kernels = windows(f"microbench_{module}")
    wrong = [
        f"{kernel}: {opcode} {got} times, must be {number}"
        for kernel, wanted in LOOPS[module].items()
        for opcode, number in wanted.items()
        if (got := count(kernels[kernel], opcode)) != number
    ]
    assert wrong == []


def test_copies_are_the_engine_s(windows):
    kernels = windows("microbench_tma")
    for prefix, opcode in (("tma_load", "UTMALDG"), ("tma_multicast", "UTMALDG"), ("tma_store", "UTMASTG"),
                           ("bulk", "UBLKCP"), ("cp_async", "LDGSTS.E.BYPASS"), ("ld_st", "LDG.E.128")):  # fmt: skip
        found = [name for name in kernels if name.startswith(prefix)]
        assert found
        for name in found:
            assert count(kernels[name], opcode) >= 1, name
    assert "MULTICAST" in next(line for line in kernels["tma_multicast"] if line.startswith("UTMALDG"))
