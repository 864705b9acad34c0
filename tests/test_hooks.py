"""docs/hooks.md does what it says, in every architecture."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).resolve().parent.parent / "docs/hooks.md").read_text()


def test_the_page_runs_as_written():
    blocks = re.findall(r"```python\n# (setup|run)\n(.*?)```", PAGE, flags=re.DOTALL)
    assert [kind for kind, _ in blocks] == ["setup"] + ["run"] * 6
    names: dict[str, object] = {}
    for _, block in blocks:
        exec(block, names)


def test_the_edited_layers_compile_too():
    """Hooks and head edits live under torch.compile(fullgraph=True)."""
    import torch

    from tkpy import nn
    from tkpy.models import RWKV5, RWKV5Config

    torch.manual_seed(0)
    model = RWKV5(RWKV5Config(vocab_size=64, hidden_size=32, num_layers=1, head_size=16))
    for module in model.modules():
        if isinstance(module, nn.HeadEdit):
            module.enable()
            torch.nn.init.normal_(module.bias)
    model.blocks[0].ffn.register_forward_hook(lambda module, args, out: (out[0] * 0.5, out[1]))
    ids = torch.randint(0, 64, (1, 9))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(ids)[0], model(ids)[0], atol=1e-5)
