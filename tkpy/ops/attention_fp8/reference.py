"""attention_fp8 in float64: the formula on the dequantised inputs."""

import torch

from tkpy.ops.attention import reference
from tkpy.ops.attention_fp8.op import dequantized


def forward(
    q, k, v, descale_q, descale_k, descale_v, sinks, kv_head_map, out_scale, out_bias,
    scale, left, right, softcap, out_dtype,
):  # fmt: skip
    wide = torch.float64 if torch.float64 in (q.dtype, out_dtype) else torch.float32
    a, b, c = (dequantized(x, s, torch.float64) for x, s in ((q, descale_q), (k, descale_k), (v, descale_v)))
    options = (sinks, kv_head_map, out_scale, out_bias)
    out, lse, _ = reference.forward(a, b, c, *options, None, None, [], 0, scale, left, right, softcap, -1, -1)
    return out.to(torch.float64 if q.dtype == torch.float64 else out_dtype), lse.to(wide)
