"""quantize_blocks and the scales of attention_fp8, packed and not; what both refuse."""

import pytest

torch = pytest.importorskip("torch")
from torch._dynamo.utils import counters  # noqa: E402  (after the skip)

import tkpy  # noqa: E402
from tkpy import numerics  # noqa: E402


def test_quantize_blocks():
    x = torch.randn(2, 300, 3, 16, dtype=torch.float64)
    x[:, 128:256] *= 1e5
    x[0, :128, 1] = 0
    x[1, 0, 2, 0], x[1, 1, 2, 0] = 448.0 * 4, -448.0 * 4
    x8, descale = tkpy.quantize_blocks(x)
    assert (x8.shape, x8.dtype) == (x.shape, torch.float8_e4m3fn)
    assert (descale.shape, descale.dtype) == ((2, 3, 3), torch.float32)
    assert descale[0, 1, 0] == 1.0
    assert descale[1, 2, 0] == 4.0  # the largest is exactly representable
    of_row = descale.double().transpose(1, 2).repeat_interleave(128, 1)[:, :300, :, None]
    assert ((x8.double() * of_row - x).abs() <= x.abs() / 16 + of_row / 1024).all()  # half a step; below 2^-6, of 2^-9
    peaks = x8.float().abs()[:, :128].amax((1, 3))
    assert ((peaks >= 224) | (peaks == 0)).all()
    assert tkpy.quantize_blocks(torch.zeros(1, 0, 2, 16))[1].shape == (1, 2, 0)


def offsets(*lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


LENGTHS = [(1, 127, 128, 0, 129, 300), (0, 0), (128, 128), (64, 64, 64), (0, 5), (700,), ()]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed_sequences_are_quantised_as_if_alone(lengths):
    """The same numbers as each sequence by itself, at the places that the docstring says, which do not overlap."""
    cu_seqlens = offsets(*lengths)
    x = torch.randn(sum(lengths), 3, 16) * torch.exp2(torch.arange(sum(lengths)) % 97 / 9).view(-1, 1, 1)
    x8, descale = tkpy.quantize_blocks(x, cu_seqlens)
    assert descale.shape == (3, sum(lengths) // 128 + len(lengths))
    unused = set(range(descale.shape[1]))
    for n, length in enumerate(lengths):
        begin = int(cu_seqlens[n])
        alone = tkpy.quantize_blocks(x[None, begin : begin + length])
        places = range(begin // 128 + n, begin // 128 + n + -(-length // 128))
        assert torch.equal(x8[begin : begin + length].float(), alone[0][0].float())
        assert torch.equal(descale[:, list(places)], alone[1][0])
        assert unused.issuperset(places)
        unused -= set(places)
    assert (descale[:, list(unused)] == 1).all()


def test_new_lengths_and_numbers_of_sequences_compile_nothing_new():
    """One graph with symbols for sizes: nothing reads an offset. (One sequence alone is a constant to torch.)"""

    def step(x, cu_seqlens):
        x8, descale = tkpy.quantize_blocks(x, cu_seqlens)
        scales = {"descale_q": descale, "descale_k": descale, "descale_v": descale}
        return tkpy.attention_fp8(x8, x8, x8, **scales, cu_seqlens_q=cu_seqlens, causal=True, return_lse=True)

    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for lengths in ((130, 0, 130), (1, 2), (9, 257, 0, 128, 3), (5,) * 40):
        x, cu_seqlens = torch.randn(sum(lengths), 2, 16), offsets(*lengths)
        for a, b in zip(compiled(x, cu_seqlens), step(x, cu_seqlens), strict=True):
            assert torch.equal(a, b)
    assert counters["stats"]["unique_graphs"] <= 2


def call(**change):
    x, cu_seqlens = torch.randn(140, 2, 16), offsets(130, 10)
    x8, descale = tkpy.quantize_blocks(x, cu_seqlens)
    tensors = {"q": x8, "k": x8, "v": x8, "descale_q": descale, "descale_k": descale, "descale_v": descale}
    return tkpy.attention_fp8(**{**tensors, "cu_seqlens_q": cu_seqlens, **change})


WRONG = {
    "tkpy.quantize_blocks: argument 'cu_seqlens' must be offsets that end at the total length 9, got 8 (int)": (
        lambda: tkpy.quantize_blocks(torch.zeros(9, 1, 16), offsets(3, 5))
    ),
    "tkpy.quantize_blocks: argument 'cu_seqlens' must be a tensor of dtype int32 or int64, got a float32 tensor of "
    "shape (2,) on cpu": lambda: tkpy.quantize_blocks(torch.zeros(9, 1, 16), torch.zeros(2)),
    "tkpy.quantize_blocks: argument 'x' must be a tensor of rank 3 and shape (total, H, D), got shape (1, 9, 1, 16)": (
        lambda: tkpy.quantize_blocks(torch.zeros(1, 9, 1, 16), offsets(9))
    ),
    "tkpy.attention_fp8: argument 'descale_k' must be of shape (2, 3) or (2, 2, 1), got a float32 tensor of shape "
    "(2, 2) on cpu": lambda: call(descale_k=torch.ones(2, 2)),
    "tkpy.attention_fp8: argument 'cu_seqlens_k' must be None unless 'cu_seqlens_q' is given, got a value": (
        lambda: tkpy.attention_fp8(*[torch.zeros(1, 9, 1, 16).to(torch.float8_e4m3fn)] * 3, cu_seqlens_k=offsets(9))
    ),
    "tkpy.attention_fp8: argument 'cu_seqlens_q' must be offsets that end at the total length 140, got 139 (int)": (
        lambda: call(cu_seqlens_q=offsets(130, 9))
    ),
    "tkpy.attention_fp8: argument 'max_seqlen_q' must be at least the longest, 130, got 129 (int)": (
        lambda: call(max_seqlen_q=129)
    ),
    "tkpy.attention_fp8: argument 'kv_head_map' must be in range [0, 2), got a int32 tensor of shape (2,) on cpu": (
        lambda: call(kv_head_map=torch.tensor([0, 2], dtype=torch.int32))
    ),
}


@pytest.mark.parametrize("sentence", WRONG, ids=range(len(WRONG)))
def test_wrong_calls_are_refused_in_words(sentence):
    with pytest.raises((TypeError, ValueError)) as error:
        WRONG[sentence]()
    assert str(error.value) == sentence


def test_scales_of_whole_heads():
    """One scale for a head of a sequence is that scale for all its blocks."""
    lengths = (130, 0, 10)
    cu_seqlens, whole = offsets(*lengths), torch.tensor([[0.5, 2.0], [1.0, 1.0], [4.0, 0.25]])
    x8 = torch.randn(140, 2, 16).to(torch.float8_e4m3fn)
    blocks = torch.cat([whole[[0, 0]], whole[[1]], whole[[2]]]).T
    assert blocks.shape == (2, 140 // 128 + 3)
    tensors = {"q": x8, "k": x8, "v": x8, "cu_seqlens_q": cu_seqlens, "out_dtype": torch.float32}
    one = tkpy.attention_fp8(**tensors, descale_v=whole.unsqueeze(-1), descale_q=whole.unsqueeze(-1))
    other = tkpy.attention_fp8(**tensors, descale_v=blocks, descale_q=blocks)
    assert torch.equal(one, other)
    assert not torch.equal(one, tkpy.attention_fp8(**tensors))


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_packed_is_attention_of_each_sequence_by_itself(backend):
    """Beside float64, written out: products, mask at the bottom right, softmax; numbers and scales of each sequence."""
    of_q, of_k = offsets(5, 0, 140, 30), offsets(9, 4, 260, 7)
    made = {}
    for name, cu_seqlens, heads in (("q", of_q, 2), ("k", of_k, 1), ("v", of_k, 1)):
        x = torch.randn(int(cu_seqlens[-1]), heads, 16) * torch.exp2(torch.arange(int(cu_seqlens[-1])) // 50 % 3).view(
            -1, 1, 1
        )
        made[name], made[f"descale_{name}"] = tkpy.quantize_blocks(x, cu_seqlens)
    got = tkpy.attention_fp8(
        **made, cu_seqlens_q=of_q, cu_seqlens_k=of_k, causal=True, out_dtype=torch.float32, backend=backend
    )
    want = torch.zeros(175, 2, 16, dtype=torch.float64)
    for n in range(4):
        rows, keys = range(int(of_q[n]), int(of_q[n + 1])), range(int(of_k[n]), int(of_k[n + 1]))

        def number(name, at, begin, head, n=n):
            return (
                made[name][at, head].double()
                * made[f"descale_{name}"][head, begin // 128 + n + (at - begin) // 128].double()
            )

        for i in rows:
            seen = [j for j in keys if j - keys.start <= i - rows.start + len(keys) - len(rows)]
            for head in range(2 if seen else 0):
                q = number("q", i, rows.start, head)
                weights = torch.softmax(torch.stack([q @ number("k", j, keys.start, 0) for j in seen]) / 4, 0)
                want[i, head] = weights @ torch.stack([number("v", j, keys.start, 0) for j in seen])
    comparison = numerics.compare(got, want, 1e-5)
    assert comparison, str(comparison)
