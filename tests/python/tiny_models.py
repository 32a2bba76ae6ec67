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

MOE = dict(num_experts_per_tok=2, moe_intermediate_size=24, router_aux_loss_coef=0.1)
LINEAR_ATTENTION = dict(
    head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    layer_types=["linear_attention", "full_attention"],
)
LOW_RANK = dict(
    kv_lora_rank=8,
    q_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=8,
    num_key_value_heads=4,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    first_k_dense_replace=1,
    n_group=2,
    topk_group=1,
)

# row -> (class, changes to TEXT)
MODELS = {
    "llama": ("LlamaForCausalLM", {}),
    "mistral": ("MistralForCausalLM", dict(sliding_window=4)),
    "ministral": ("MinistralForCausalLM", dict(sliding_window=4, head_dim=8)),
    "mixtral": ("MixtralForCausalLM", dict(MOE, num_local_experts=4)),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", dict(head_dim=8)),
    "qwen3_moe": ("Qwen3MoeForCausalLM", dict(MOE, head_dim=8, num_experts=4, mlp_only_layers=[0])),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        dict(MOE, **LINEAR_ATTENTION, num_experts=4, shared_expert_intermediate_size=24, mlp_only_layers=[0]),
    ),
    "qwen3_5": ("Qwen3_5ForCausalLM", LINEAR_ATTENTION),
    "phi3": ("Phi3ForCausalLM", dict(partial_rotary_factor=0.5)),
    "gemma": ("GemmaForCausalLM", dict(head_dim=8, hidden_act="gelu_pytorch_tanh")),
    "gemma2": ("Gemma2ForCausalLM", dict(GEMMA, sliding_window=4, final_logit_softcapping=3.0)),
    "gemma3_text": ("Gemma3ForCausalLM", dict(GEMMA, sliding_window=4, final_logit_softcapping=3.0)),
    "gemma4_text": (
        "Gemma4ForCausalLM",
        dict(
            head_dim=8,
            global_head_dim=8,
            sliding_window=4,
            final_logit_softcapping=3.0,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=VOCAB,
            num_kv_shared_layers=1,
            use_double_wide_mlp=True,
            num_hidden_layers=3,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
    ),
    "granite": ("GraniteForCausalLM", dict(logits_scaling=2.0, attention_multiplier=0.3, residual_multiplier=0.7)),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "olmo3": ("Olmo3ForCausalLM", dict(sliding_window=4)),
    "smollm3": ("SmolLM3ForCausalLM", dict(no_rope_layers=[1, 0])),
    "glm4": ("Glm4ForCausalLM", dict(head_dim=8)),
    "exaone4": ("Exaone4ForCausalLM", dict(head_dim=8, sliding_window=4)),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", dict(head_dim=8)),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        dict(
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_n_groups=1,
            mamba_chunk_size=4,
            mlp_multipliers=[0.7, 1.3],
            lm_head_multiplier=0.5,
        ),
    ),
    "gpt_oss": ("GptOssForCausalLM", dict(MOE, head_dim=8, sliding_window=4, num_local_experts=4)),
    "deepseek_v2": ("DeepseekV2ForCausalLM", LOW_RANK),
    "deepseek_v3": ("DeepseekV3ForCausalLM", LOW_RANK),
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
