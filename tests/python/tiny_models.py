"""Each family of the model table, small enough for a unit test: two layers, grouped queries, an odd vocabulary."""

from __future__ import annotations

import torch

VOCAB = 97

TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,  # far enough from uniform that a wrong loss cannot hide behind log(vocab)
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
GEMMA = dict(head_dim=8, query_pre_attn_scalar=8)

# row -> (class, changes to TEXT)
MODELS = {
    "llama": ("LlamaForCausalLM", {}),
    "mistral": ("MistralForCausalLM", dict(sliding_window=4)),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", dict(head_dim=8)),
    "phi3": ("Phi3ForCausalLM", dict(partial_rotary_factor=0.5)),
    "gemma": ("GemmaForCausalLM", dict(head_dim=8, hidden_act="gelu_pytorch_tanh")),
    "gemma2": ("Gemma2ForCausalLM", dict(GEMMA, sliding_window=4, final_logit_softcapping=3.0)),
    "gemma3_text": ("Gemma3ForCausalLM", dict(GEMMA, sliding_window=4, final_logit_softcapping=3.0)),
}


def build(name, seed=0, **changes):
    """The row's model, its norms' weights random, or None if the installed transformers has no such class."""
    import transformers

    class_name, options = MODELS[name]
    cls = getattr(transformers, class_name, None)
    if cls is None:
        return None
    torch.manual_seed(seed)
    model = cls(cls.config_class(**{**TEXT, **options, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _module_name, module in model.named_modules():
            if "norm" in type(module).__name__.lower():
                for parameter in module.parameters(recurse=False):
                    parameter.add_(0.5 * torch.rand(parameter.shape, generator=generator) - 0.25)
    return model.train()


def batch(rows=2, length=9, seed=1, ignored=2):
    """The inputs of a step, with labels: the first `ignored` positions of the first row are masked out."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (rows, length), generator=generator)
    labels = ids.clone()
    labels[0, : ignored + 1] = -100
    return {"input_ids": ids, "labels": labels}
