"""README.md's Python runs as written, on small checkpoints saved where it says `path/to/...`."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from tkpy.models import RWKV5, RWKV5Config, StripedHyena, StripedHyenaConfig

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_every_block(tmp_path, capsys):
    torch.manual_seed(0)
    hyena = StripedHyenaConfig(
        vocab_size=512, hidden_size=32, num_layers=2, attn_layer_idxs=(1,), num_attention_heads=2, state_size=4
    )
    StripedHyena(hyena).save_pretrained(tmp_path / "evo-1-8k-base")
    rwkv = RWKV5Config(vocab_size=4096, hidden_size=64, num_layers=2, head_size=16)
    RWKV5(rwkv).save_pretrained(tmp_path / "rwkv-5-world")
    assert len(BLOCKS) == 2
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(block.replace("path/to", str(tmp_path)), names)
    assert "reference" in capsys.readouterr().out
    assert names["q"].grad is not None
    assert len(names["scores"]) == 2
    assert len(names["text"]) == 100
    assert names["branches"].batch == 4


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"@\w+@", README)
