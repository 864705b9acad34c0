"""Trains tiny models and prints their losses: alone, under DDP or under FSDP2. Run by tests/test_distributed.py.

Every process takes its share of each global batch, so the mean loss over processes equals that of one process.
"""

from __future__ import annotations

import json
import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tkpy import models

VOCAB, STEPS, BATCH, LENGTH = 64, 4, 4, 24
MODELS = ("striped_hyena", "rwkv5", "sparse_transformer", "m2_bert")


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "striped_hyena":
        config = models.StripedHyenaConfig(
            vocab_size=VOCAB, hidden_size=32, num_layers=2, attn_layer_idxs=(1,), num_attention_heads=2, state_size=4
        )
        return models.StripedHyena(config)
    if name == "rwkv5":
        return models.RWKV5(models.RWKV5Config(vocab_size=VOCAB, hidden_size=32, num_layers=2, head_size=16))
    if name == "sparse_transformer":
        config = models.SparseTransformerConfig(
            vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48
        )
        return models.SparseTransformer(config)
    config = models.M2BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
    )
    return models.M2Bert(config)


def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    out = model(ids)
    return out[0] if isinstance(out, tuple) else out.mlm_logits


def losses_of(name: str, mode: str, rank: int, world: int) -> list[float]:
    model = build(name)
    if mode == "ddp":
        model = DistributedDataParallel(model, find_unused_parameters=True)
    elif mode == "fsdp":
        mesh = dist.init_device_mesh("cpu", (world,))
        for layers in [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]:
            for layer in layers:
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    # SGD: its step is linear in the gradient, so a wrong gradient scale cannot hide as it would in Adam.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(STEPS):
        ids = torch.randint(2, VOCAB, (BATCH, LENGTH), generator=generator)
        share = ids.chunk(world)[rank]
        loss = torch.nn.functional.cross_entropy(logits_of(model, share)[:, :-1].flatten(0, 1), share[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        if world > 1:
            dist.all_reduce(mean)
            mean /= world
        losses.append(mean.item())
    return losses


def main(mode: str) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if world > 1 else 0
    result = {name: losses_of(name, mode, rank, world) for name in MODELS}
    if rank == 0:
        print(json.dumps(result))
    if world > 1:
        dist.destroy_process_group()
        # FSDP's device mesh keeps its group, and so gloo's threads, alive past this; one that asks for the lock of an
        # interpreter that shuts down ends the process by std::terminate. The losses are out: leave without a shutdown.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
