"""Attention by lists of blocks in the emulator, under all checks: blocks of either size, full and partial, of a head or
of all heads; with every other option; odd lengths, persistence, several schedules; what it costs; what it refuses."""

from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tkpy._C", reason="tkpy's compiled part is not built")
from attention_runs import (  # noqa: E402  (after the skips)
    BACKWARD_BLOCK_MODULES,
    BLOCK_MODULES,
    OP,
    block_mask,
    disagreement,
    gather,
    gradients,
    inputs,
    on_machine,
    wrong_gradient,
)

import tkpy  # noqa: E402
from tkpy import machine  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16]
BLOCKS = [64, 128]


@pytest.fixture(scope="module")
def folder(kernel_folder, tmp_path_factory):
    parts = [kernel_folder(f"kernels/attention_forward/{module}.cu") for module in BLOCK_MODULES]
    modules = ("rows", *BACKWARD_BLOCK_MODULES)
    parts += [kernel_folder(f"kernels/attention_backward/{module}.cu") for module in modules]
    return gather(tmp_path_factory.mktemp("attention_blocks"), parts)


@pytest.fixture
def built(folder, monkeypatch):
    on_machine(monkeypatch, folder)
    return folder


@pytest.fixture(autouse=True)
def any_order(monkeypatch):
    """All tests run with `torch.use_deterministic_algorithms(True)`, for its NaN-filled memory."""
    monkeypatch.setattr(OP.module("cuda"), "_in_order", lambda: False)


@pytest.fixture
def in_order(monkeypatch, any_order):
    monkeypatch.setattr(OP.module("cuda"), "_in_order", lambda: True)


def masked(b, sq, sk, h, hkv, d, block, *, mask_b=1, mask_h=1, seed=0, dtype=torch.bfloat16, empty=None, **options):
    mask = block_mask(mask_b, mask_h, sq, sk, block, seed, empty=empty)
    return inputs(b, sq, sk, h, hkv, d, dtype=dtype, seed=seed, block_mask=mask, **options)


def kernels_of(monkeypatch) -> list[str]:
    """The kernels that will have run."""
    ran, launch = [], machine.launch
    monkeypatch.setattr(OP.module("cuda"), "launch", lambda *args, **more: ran.append(launch(*args, **more)))
    return ran


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("d, kernel", [(64, 64), (72, 96), (128, 128), (160, 160), (256, 256)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_the_kernel_that_ran(built, monkeypatch, d, kernel, block, dtype, softcap):
    ran = kernels_of(monkeypatch)
    kwargs = masked(1, 70, 150, 2, 2, d, block, dtype=dtype, softcap=softcap)
    assert disagreement(kwargs) == ""
    assert wrong_gradient(kwargs) == ""
    kind, which = "bf16" if dtype == torch.bfloat16 else "fp16", "capped" if softcap else "plain"
    forward = f"attention_forward_{kind}_{kernel}_blocks{block}_{'capped' if kernel == 160 else which}"
    backward = f"{kernel}_blocks{block if kernel < 160 else ''}_{'capped' if kernel in (96, 160) else which}"
    assert ran == [forward, forward, f"attention_backward_{kind}_{backward}"]


NARROW = [  # d, dv, kernel, multiprocessors (blocks of 64: with 1 to 3 CTAs each)
    (24, 24, "32", 1),
    (32, 32, "32", 2),
    (32, 96, "96", 1),
    (96, 96, "96", 2),
    (160, 136, "160", 1),
    (160, 160, "160", 2),
    (192, 128, "192x128", 1),
    (176, 120, "192x128", 2),
    (168, 192, "192", 1),
    (192, 192, "192", 2),
    (200, 224, "224", 2),
    (224, 224, "224", 1),
]
MIXED = [
    {},
    {"causal": True},
    {"softcap": 3.0, "window": (200, 90)},
    {"scale": -0.2, "sinks": torch.tensor([0.5, 2.0])},
]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("case", range(len(NARROW)), ids=lambda case: "x".join(map(str, NARROW[case][:2])))
def test_widths_between(folder, monkeypatch, case, block):
    """Of both dtypes and several schedules in turn: two heads that share keys, partial blocks, a row of blocks without
    any, several tiles for each CTA, keys and queries that end within a block."""
    (d, dv, kernel, multiprocessors), turn = NARROW[case], case + block // 128
    on_machine(monkeypatch, folder, case, multiprocessors)
    ran, options, dtype = kernels_of(monkeypatch), MIXED[turn % len(MIXED)], DTYPES[turn % 2]
    kwargs = masked(
        1, 4 * block - 9, 5 * block - 23, 2, 1, d, block, mask_h=2, seed=case, dtype=dtype, empty=1, dv=dv, **options
    )
    assert disagreement(kwargs) == ""
    kind = "plain" if kernel in ("32", "96") and not {"softcap", "scale"} & set(options) else "capped"
    assert ran == [f"attention_forward_{'bf16' if dtype == torch.bfloat16 else 'fp16'}_{kernel}_blocks{block}_{kind}"]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("mask_b, mask_h", [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_masks_of_heads_and_batch_entries(built, mask_b, mask_h, block):
    assert disagreement(masked(2, 130, 200, 4, 2, 64, block, mask_b=mask_b, mask_h=mask_h)) == ""
    assert wrong_gradient(masked(2, 130, 200, 4, 2, 64, block, mask_b=mask_b, mask_h=mask_h)) == ""


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("sq, sk", [(1, 1), (1, 300), (63, 129), (128, 128), (193, 257), (257, 31)])
def test_lengths(built, sq, sk, block):
    kwargs = masked(1, sq, sk, 1, 1, 64, block, seed=3)
    assert disagreement(kwargs) == ""
    assert wrong_gradient(kwargs) == ""


OPTIONS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (150, 60)},
    "causal window softcap": {"causal": True, "window": (200, None), "softcap": 3.0},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "d, block, multiprocessors", [(64, 128, 2), (64, 64, 1), (128, 128, 3), (128, 64, 1), (256, 64, 2), (256, 128, 1)]
)
def test_persistent_ctas_go_round_their_rings(folder, monkeypatch, d, block, multiprocessors, options, seed):
    on_machine(monkeypatch, folder, seed, multiprocessors)
    assert disagreement(masked(1, 300, 390, 2, 1, d, block, mask_h=2, seed=seed, **OPTIONS[options])) == ""


WIDTHS = [(64, 128, 2), (64, 64, 1), (128, 128, 3), (128, 64, 2), (256, 64, 2), (256, 128, 1)]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("seed, options", list(enumerate(OPTIONS)))
@pytest.mark.parametrize("d, block, multiprocessors", WIDTHS)
def test_gradients(folder, monkeypatch, d, block, multiprocessors, options, seed, ordered):
    """Several tiles for each CTA, sums of dq in any order and in one."""
    on_machine(monkeypatch, folder, seed, multiprocessors)
    monkeypatch.setattr(OP.module("cuda"), "_in_order", lambda: ordered)
    assert wrong_gradient(masked(1, 300, 390, 2, 1, d, block, mask_h=2, seed=seed, **OPTIONS[options])) == ""


NARROW_GRADIENTS = [  # d, dv, the kernels' width, multiprocessors
    (24, 32, "32", 1),
    (32, 24, "32", 2),
    (72, 96, "96", 1),
    (96, 96, "96", 2),
    (136, 160, "160", 1),
    (160, 160, "160", 3),
    (168, 192, "192", 2),
    (192, 128, "192x128", 1),
    (168, 40, "192x128", 2),
    (200, 224, "224", 1),
    (224, 216, "224", 2),
]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    "case", range(len(NARROW_GRADIENTS)), ids=lambda case: "x".join(map(str, NARROW_GRADIENTS[case][:2]))
)
def test_gradients_of_widths_between(folder, monkeypatch, case, block):
    """Both dtypes, options, several schedules and both ways to sum dq in turn: heads that share keys, partial blocks,
    several tiles for each CTA, keys and queries that end within a block. One kernel serves with a cap and without."""
    (d, dv, width, multiprocessors), turn = NARROW_GRADIENTS[case], case + block // 64
    on_machine(monkeypatch, folder, case, multiprocessors)
    monkeypatch.setattr(OP.module("cuda"), "_in_order", lambda: turn // 2 % 2 == 0)
    ran, dtype = kernels_of(monkeypatch), DTYPES[turn // 4 % 2]
    options = [*OPTIONS.values(), {"scale": -0.2}][turn % 5]
    kwargs = masked(
        1, 4 * block - 9, 5 * block - 23, 2, 1, d, block, mask_h=2, seed=case, dtype=dtype, dv=dv, **options
    )
    assert wrong_gradient(kwargs) == ""
    kind = "bf16" if dtype == torch.bfloat16 else "fp16"
    assert ran[1:] == [f"attention_backward_{kind}_{width}_blocks{block if d <= 128 else ''}_capped"]


@pytest.mark.parametrize("d, block", [(64, 128), (64, 64), (96, 64), (128, 64), (160, 64), (256, 128)])
def test_the_same_bits_where_that_is_asked_for(folder, monkeypatch, in_order, d, block):
    found = []
    for seed, multiprocessors in ((0, 2), (1, 5), (2, 3)):
        on_machine(monkeypatch, folder, seed, multiprocessors)
        found.append(gradients(masked(1, 200, 520, 2, 1, d, block, mask_h=2, dtype=torch.float16), "emulator"))
    for other in found[1:]:
        for name in ("q", "k", "v"):
            assert torch.equal(found[0][name], other[name])


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("d", [64, 256])
def test_all_options_together(folder, monkeypatch, d, block):
    on_machine(monkeypatch, folder, 1, 2)
    make = torch.Generator().manual_seed(0)
    options = {
        "sinks": torch.randn(3, generator=make),
        "out_scale": torch.randn(3, d, generator=make),
        "out_bias": torch.randn(3, d, generator=make),
        "kv_head_map": torch.tensor([1, 1, 0], dtype=torch.int32),
        "window": (160, 30),
        "softcap": 4.0,
        "scale": 0.3,
    }
    kwargs = masked(2, 200, 250, 3, 2, d, block, mask_b=2, mask_h=3, **options)
    assert disagreement(kwargs) == ""
    assert wrong_gradient(kwargs) == ""


def lists_of(n: int, block: int, keys: list[int]) -> tkpy.BlockMask:
    """Every query block sees the key blocks `keys`, completely."""
    blocks = torch.zeros(1, 1, -(-n // block), -(-n // block), dtype=torch.bool)
    blocks[..., keys] = True
    return tkpy.BlockMask.from_dense(blocks, n, n, block)


@pytest.mark.parametrize("block", BLOCKS)
def test_more_blocks_than_a_warp_reads_at_once(built, block):
    n = 40 * block
    kwargs = inputs(1, 2 * block, n, 1, 1, 64)
    mask = tkpy.BlockMask.from_dense(torch.ones(1, 1, 2, 40, dtype=torch.bool), 2 * block, n, block)
    assert disagreement({**kwargs, "block_mask": mask}) == ""
    partial = tkpy.BlockMask.from_predicate(lambda b, h, q, k: (q + k) % 3 > 0, 2 * block, n, block)
    assert disagreement({**kwargs, "block_mask": partial}) == ""
    assert wrong_gradient({**kwargs, "block_mask": partial}) == ""


@pytest.mark.parametrize("block", BLOCKS)
def test_queries_without_blocks(built, block):
    n = 3 * block
    blocks = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    blocks[..., 1, 2] = True
    mask = tkpy.BlockMask.from_dense(blocks, n, n, block)
    kwargs = inputs(1, n, n, 1, 1, 64, block_mask=mask)
    with torch.no_grad():
        out, lse = tkpy.attention(**kwargs, return_lse=True, backend="emulator")
    alone = [*range(block), *range(2 * block, n)]
    assert out[:, alone].eq(0).all()
    assert lse[..., alone].eq(-torch.inf).all()
    assert disagreement(kwargs) == ""
    bias = torch.randn(1, 64)
    assert wrong_gradient(kwargs) == ""
    assert disagreement({**kwargs, "out_bias": bias, "sinks": torch.tensor([0.3])}) == ""
    # The only block lies beyond what a causal mask lets these queries see.
    blocks[..., 0, 2] = True
    mask = tkpy.BlockMask.from_dense(blocks, n, n, block)
    assert disagreement({**kwargs, "block_mask": mask, "causal": True}) == ""


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("d", [64, 96, 128, 160, 256])
def test_keys_that_are_not_listed_are_not_read(built, d, block):
    n = 3 * block
    kwargs = inputs(1, n, n, 2, 1, d, block_mask=lists_of(n, block, [0, 2]))
    for name in "kv":
        kwargs[name][:, block : 2 * block] = float("nan")
    with torch.no_grad():
        out = tkpy.attention(**kwargs, backend="emulator")
    assert out.isfinite().all()
    found = gradients(kwargs, "emulator")
    assert found["q"].isfinite().all()
    for name in "kv":
        assert found[name][:, block : 2 * block].eq(0).all()


def test_flex_masks_reach_the_kernel(built):
    from torch.nn.attention.flex_attention import create_block_mask

    flex = create_block_mask(lambda b, h, q, k: (q >= k) & (k % 100 != 7), 1, 2, 200, 200, device="cpu", BLOCK_SIZE=64)
    kwargs = inputs(1, 200, 200, 2, 1, 64, block_mask=tkpy.BlockMask.from_flex(flex))
    with tkpy.record_dispatches() as log:
        assert disagreement(kwargs) == ""
    assert (log[0].op, log[0].backend) == ("attention", "emulator")


def counted(kwargs):
    with torch.no_grad(), machine.counting() as counters:
        tkpy.attention(**kwargs, backend="emulator")
        return asdict(machine.total(counters()))


def counted_backward(kwargs):
    out = tkpy.attention(**{**kwargs, "q": kwargs["q"].requires_grad_(True)}, backend="emulator")
    with machine.counting() as counters:
        torch.autograd.grad(out, kwargs["q"], torch.ones_like(out))
        return asdict(machine.total(counters()))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("d", [64, 128, 256])
def test_no_more_work_than_listed(folder, monkeypatch, d, block):
    """Of random full blocks, within 5 % of their pairs' flops (softmax included), and of the bytes that their keys and
    values are; no bank conflict on the output's way through shared memory: 4 passes for 512 bytes."""
    on_machine(monkeypatch, folder)
    n = 6 * block
    make = torch.Generator().manual_seed(0)
    blocks = torch.rand(1, 2, 6, 6, generator=make) < 0.4
    mask = tkpy.BlockMask.from_dense(blocks, n, n, block)
    found = counted(inputs(1, n, n, 2, 2, d, block_mask=mask))
    ideal = 4 * d * block**2 * int(blocks.sum())
    assert ideal <= found["flops"] <= 1.05 * ideal
    assert found["shared_wavefronts"] <= 4 * found["shared_requests"]
    causal = counted(inputs(1, n, n, 2, 2, d, block_mask=mask, causal=True))
    backward = counted_backward(inputs(1, n, n, 2, 2, d, block_mask=mask))
    ideal = 10 * d * block**2 * int(blocks.sum())
    assert ideal <= backward["flops"] <= 1.05 * ideal
    assert causal["flops"] <= 1.05 * 4 * d * block**2 * int(blocks.tril().sum())


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("d, dv", [*((width, width) for width in range(32, 257, 32)), (192, 128)])
def test_the_products_are_those_that_are_listed(folder, monkeypatch, d, dv, block):
    """At every width in steps of 32: no tensor-core flops but those of the listed pairs."""
    on_machine(monkeypatch, folder)
    n = 2 * block
    kwargs = inputs(1, n, n, 1, 1, d, dv, block_mask=lists_of(n, block, [1]))
    assert counted(kwargs)["tensor_flops"] == 2 * (d + dv) * n * block
    assert counted_backward(kwargs)["tensor_flops"] == 2 * (3 * d + 2 * dv) * n * block


def test_the_launcher_checks_again(built):
    good = masked(1, 70, 200, 2, 1, 64, 64)
    q, k, v = (good[name] for name in "qkv")
    lists = dict(
        zip(
            ("full_count", "full_index", "partial_count", "partial_index", "partial_slot", "masks"),
            good["block_mask"].tensors,
            strict=False,
        )
    )
    lists["block"] = 64
    out, lse = torch.empty_like(q), torch.empty(1, 2, 70)
    wrong = {
        "block: need 64 or 128": {"block": 32},
        r"full_count: need \[1 or batch, 1 or heads, 1\]": {"block": 128},
        "full_index: need four dimensions": {"full_index": lists["full_index"][0]},
        "partial_count: need 2 contiguous elements of i32": {"partial_count": lists["partial_count"].long()},
        "partial_slot: need .* contiguous elements of i32": {
            "partial_slot": lists["partial_slot"][..., :-1].contiguous()
        },
        "masks: need": {"masks": lists["masks"][:, :32]},
    }
    for words, change in wrong.items():
        with pytest.raises(tkpy.InternalError, match=words):
            machine.launch(
                "attention_forward_blocks",
                q,
                k,
                v,
                out,
                lse,
                *[None] * 5,
                *(lists | change).values(),
                0.1,
                -1,
                -1,
                0.0,
                op="attention",
            )
    ran = machine.launch(
        "attention_forward_blocks", q, k, v, out, lse, *[None] * 5, *lists.values(), 0.1, -1, -1, 0.0, op="attention"
    )
    assert ran == "attention_forward_bf16_64_blocks64_plain"


@pytest.mark.gpu
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("d", [64, 96, 128, 256])
def test_real_lengths_on_the_gpu(d, options, block):
    kwargs = masked(2, 1000, 1300, 8, 2, d, block, mask_h=8, **OPTIONS[options])
    mask = kwargs.pop("block_mask").to("cuda")
    kwargs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    assert disagreement({**kwargs, "block_mask": mask}, backend="cuda") == ""
    assert wrong_gradient({**kwargs, "block_mask": mask}, backend="cuda") == ""
