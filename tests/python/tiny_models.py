"""Each family of the model table, small enough for a unit test: two layers, grouped queries, an odd vocabulary."""

from __future__ import annotations

import copy
import inspect

import tiny_llama
import torch
import transformers
from tiny_llama import VOCAB

TEXT = dict(tiny_llama.SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2)
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

IMAGE = 90  # the token that stands for a part of an image
VISION = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)
SIGLIP = dict(VISION, model_type="siglip_vision_model", image_size=8, patch_size=4, vision_use_head=False)
QWEN_VISION = dict(
    depth=2, hidden_size=32, out_hidden_size=32, intermediate_size=40, num_heads=4, patch_size=4, hidden_act="silu"
)
_ROPE = "rope_parameters" if int(transformers.__version__.partition(".")[0]) >= 5 else "rope_scaling"
SECTIONS = {_ROPE: dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 1, 1])}
QWEN_TOKENS = dict(image_token_id=IMAGE, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93)

# row -> (class, changes to TEXT, or a config with a text_config). A word after the row's name: another class of it.
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
    "gemma2": (
        "Gemma2ForCausalLM",
        dict(GEMMA, sliding_window=4, final_logit_softcapping=3.0, attn_implementation="eager"),
    ),
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
    "pixtral": ("PixtralVisionModel", dict(image_size=16, patch_size=4, hidden_act="silu")),
    "llava": (
        "LlavaForConditionalGeneration",
        dict(
            text_config=dict(TEXT, model_type="llama"),
            vision_config=dict(
                VISION,
                model_type="pixtral",
                image_size=16,
                patch_size=4,
                hidden_act="silu",
            ),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_token_index=IMAGE,
        ),
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        dict(
            text_config=dict(TEXT, **GEMMA, model_type="gemma3_text", sliding_window=4),
            vision_config=SIGLIP,
            mm_tokens_per_image=4,
            image_token_index=IMAGE,
            boi_token_index=92,
            eoi_token_index=93,
        ),
    ),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        dict(
            text_config=dict(TEXT, **GEMMA, model_type="gemma2", sliding_window=4, final_logit_softcapping=3.0),
            vision_config=dict(SIGLIP, projection_dim=32),
            projection_dim=32,
            hidden_size=32,
            image_token_index=IMAGE,
        ),
    ),
    "internvl": (
        "InternVLForConditionalGeneration",
        dict(
            text_config=dict(TEXT, model_type="qwen2"),
            vision_config=dict(
                VISION,
                model_type="internvl_vision",
                image_size=[8, 8],
                patch_size=[4, 4],
                use_qk_norm=True,
            ),
            image_token_id=IMAGE,
            image_seq_length=1,
        ),
    ),
    "smolvlm": (
        "SmolVLMForConditionalGeneration",
        dict(
            text_config=dict(TEXT, model_type="llama"),
            vision_config=dict(VISION, model_type="smolvlm_vision", image_size=8, patch_size=4),
            image_token_id=IMAGE,
        ),
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        dict(
            text_config=dict(TEXT, **SECTIONS),
            vision_config=dict(depth=2, embed_dim=32, hidden_size=32, num_heads=4, patch_size=4),
            **QWEN_TOKENS,
        ),
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        dict(
            text_config=dict(TEXT, **SECTIONS),
            vision_config=dict(QWEN_VISION, window_size=8, fullatt_block_indexes=[1]),
            **QWEN_TOKENS,
        ),
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        dict(
            text_config=dict(TEXT, **SECTIONS, head_dim=8),
            vision_config=dict(QWEN_VISION, num_position_embeddings=16, deepstack_visual_indexes=[0]),
            **QWEN_TOKENS,
        ),
    ),
    "qwen3_5 sees": (
        "Qwen3_5ForConditionalGeneration",
        dict(
            text_config=dict(TEXT, **LINEAR_ATTENTION, **SECTIONS),
            vision_config=dict(QWEN_VISION, num_position_embeddings=16),
            **QWEN_TOKENS,
        ),
    ),
}

# For the same models: what an image of 8 x 8 pixels is to them, and how many tokens stand for it.
PIXELS = dict(pixel_values=(2, 3, 8, 8))
QWEN_PIXELS = dict(pixel_values=(8, 96), image_grid_thw=[[1, 2, 2], [1, 2, 2]])
SEES = {
    "llava": (4, dict(PIXELS, image_sizes=[[8, 8], [8, 8]])),
    "gemma3": (4, dict(PIXELS, token_type_ids=IMAGE)),
    "paligemma": (4, dict(PIXELS, token_type_ids=IMAGE)),
    "internvl": (1, PIXELS),
    "smolvlm": (1, dict(pixel_values=(2, 1, 3, 8, 8))),
    "qwen2_vl": (1, dict(QWEN_PIXELS, mm_token_type_ids=IMAGE)),
    "qwen2_5_vl": (1, dict(QWEN_PIXELS, mm_token_type_ids=IMAGE)),
    "qwen3_vl": (1, dict(QWEN_PIXELS, mm_token_type_ids=IMAGE)),
    "qwen3_5 sees": (1, dict(QWEN_PIXELS, mm_token_type_ids=IMAGE)),
}


def build(name, seed=0, **changes):
    """The row's model, its norms' weights random, or None if the installed transformers has no such class."""
    class_name, options = MODELS[name]
    cls = getattr(transformers, class_name, None)
    if cls is None:
        return None
    torch.manual_seed(seed)
    whole = {**({} if "text_config" in options else TEXT), **options, **changes}
    model = cls(cls.config_class(**copy.deepcopy(whole)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _module_name, module in model.named_modules():
            if "norm" in type(module).__name__.lower():
                for parameter in module.parameters(recurse=False):
                    parameter.add_(0.5 * torch.rand(parameter.shape, generator=generator) - 0.25)
    return model.train()


def images(name, inputs, seed):
    """`inputs` with an image in each of its two rows, after the first token."""
    count, described = SEES[name]
    generator = torch.Generator().manual_seed(seed)
    inputs["input_ids"][:, 1 : 1 + count] = IMAGE
    if "labels" in inputs:
        inputs["labels"][:, 1 : 1 + count] = -100
    takes = inspect.signature(getattr(transformers, MODELS[name][0]).forward).parameters
    for key, value in described.items():
        if key not in takes:
            continue  # releases differ
        if value == IMAGE:
            inputs[key] = (inputs["input_ids"] == IMAGE).long()
        elif isinstance(value, tuple):
            inputs[key] = torch.randn(value, generator=generator)
        else:
            inputs[key] = torch.tensor(value)
    return inputs


def inputs_of(name, seed=1, labels=True, length=9):
    """The inputs of a step of the row's model."""
    if name == "pixtral":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))}
    inputs = batch(seed=seed, length=length)
    if not labels:
        del inputs["labels"]
    return images(name, inputs, seed) if name in SEES else inputs


def batch(rows=2, length=9, seed=1, ignored=2):
    """As tiny_llama's, of tokens that have no meaning of their own."""
    ids, labels = tiny_llama.batch("cpu", rows, length, seed, ignored, tokens=(3, IMAGE))
    return {"input_ids": ids, "labels": labels}
