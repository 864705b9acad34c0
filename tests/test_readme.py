"""README.md's Python runs as written, on small checkpoints saved where it says `path/to/...`."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from tkpy.models import RWKV5, RWKV5Config, StripedHyena, StripedHyenaConfig

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
#: y[i] = a * x[i] for i < n
SCALE = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry scale(.param .u64 x, .param .u64 y, .param .f32 a, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    ld.param.f32 %f1, [a];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra done;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    ld.global.f32 %f2, [%rd4];
    mul.f32 %f3, %f1, %f2;
    add.s64 %rd5, %rd2, %rd3;
    st.global.f32 [%rd5], %f3;
done:
    ret;
}
"""
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_every_block(tmp_path, capsys):
    torch.manual_seed(0)
    hyena = StripedHyenaConfig(
        vocab_size=512, hidden_size=32, num_layers=2, attn_layer_idxs=(1,), num_attention_heads=2, state_size=4
    )
    StripedHyena(hyena).save_pretrained(tmp_path / "evo-1-8k-base")
    rwkv = RWKV5Config(vocab_size=4096, hidden_size=64, num_layers=2, head_size=16)
    RWKV5(rwkv).save_pretrained(tmp_path / "rwkv-5-world")
    (tmp_path / "kernel.ptx").write_text(SCALE)
    assert len(BLOCKS) == 3
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(block.replace("path/to", str(tmp_path)), names)
    assert "reference" in capsys.readouterr().out
    assert names["q"].grad is not None
    assert len(names["scores"]) == 2
    assert len(names["text"]) == 100
    assert names["branches"].batch == 4
    assert torch.equal(names["y"], 3 * names["x"])


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"@\w+@", README)
