"""A Llama small enough for a unit test, with every feature of the big one: grouped queries, odd vocabulary, two layers."""

from __future__ import annotations

import torch

VOCAB = 97

SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,  # far enough from uniform that a wrong loss cannot hide behind log(vocab)
)


def config(**changes):
    from transformers import LlamaConfig

    return LlamaConfig(**{**SIZES, "tie_word_embeddings": False, **changes})


def build(device="cpu", dtype=torch.float32, seed=0, **changes):
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(config(**changes)).to(device=device, dtype=dtype).train()


def batch(device="cpu", rows=2, length=9, seed=1, ignored=2, tokens=(0, VOCAB)):
    """(input_ids, labels); the first `ignored` positions of the first row are masked out."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(*tokens, (rows, length), generator=generator)
    labels = ids.clone()
    labels[0, : ignored + 1] = -100
    return ids.to(device), labels.to(device)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def run(model, **inputs):
    """(output, gradients) of one training step's forward and backward."""
    model.zero_grad(set_to_none=True)
    output = model(**inputs)
    output.loss.backward()
    return output, gradients(model)
