"""attention_fp8 in float64: the formula on the dequantised inputs."""

import torch

from tkpy.ops.attention import reference
from tkpy.ops.attention_fp8.scales import dequantized


def forward(
    q, k, v, descale_q, descale_k, descale_v, sinks, kv_head_map, out_scale, out_bias, cu_seqlens_q, cu_seqlens_k,
    scale, left, right, softcap, max_seqlen_q, max_seqlen_k, out_dtype,
):  # fmt: skip
    wide = torch.float64 if torch.float64 in (q.dtype, out_dtype) else torch.float32
    a = dequantized(q, descale_q, torch.float64, cu_seqlens_q)
    b, c = (dequantized(x, s, torch.float64, cu_seqlens_k) for x, s in ((k, descale_k), (v, descale_v)))
    options = (sinks, kv_head_map, out_scale, out_bias, cu_seqlens_q, cu_seqlens_k)
    rule = (scale, left, right, softcap, max_seqlen_q, max_seqlen_k)
    out, lse, _ = reference.forward(a, b, c, *options, [], 0, *rule)
    return out.to(torch.float64 if q.dtype == torch.float64 else out_dtype), lse.to(wide)
