"""Run by torchrun: a model whose weights two processes share (tensor parallelism), on CPUs.

torchrun --nproc-per-node 2 two_shards.py MODEL BATCH LOGITS
"""

from __future__ import annotations

import sys

import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers.distributed.configuration_utils import DistributedConfig

from alignvlm import AlignVLMForConditionalGeneration

if __name__ == "__main__":
    model = AlignVLMForConditionalGeneration.from_pretrained(
        sys.argv[1], distributed_config=DistributedConfig(tp_plan="auto")
    )
    assert isinstance(model.get_input_embeddings().weight, DTensor)
    with torch.no_grad():
        logits = model(**torch.load(sys.argv[2], weights_only=True)).logits
    if distributed.get_rank() == 0:
        torch.save(logits, sys.argv[3])
    distributed.destroy_process_group()
