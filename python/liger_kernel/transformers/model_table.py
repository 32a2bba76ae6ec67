"""Where each model family keeps what we replace: one row per family."""

from __future__ import annotations

from liger_kernel.transformers.geglu import LigerGEGLUMLP, LigerGEGLUMLPForGemma4
from liger_kernel.transformers.rms_norm import (
    LigerRMSNorm,
    LigerRMSNormForGemma,
    LigerRMSNormForGemma2,
    LigerRMSNormForGemma3,
    LigerRMSNormForGemma4,
    LigerRMSNormForGlm4,
    LigerRMSNormForOlmo2,
    LigerRMSNormForQwen3Next,
)
from liger_kernel.transformers.rows import (
    GEGLU_FLAGS,
    HALF_WIDTH,
    NO_ROPE,
    Head,
    Row,
    flags,
    geglu,
    norms,
    swiglu,
)
from liger_kernel.transformers.swiglu import (
    LigerBlockSparseTop2MLP,
    LigerFalconH1SwiGLUMLP,
    LigerHunyuanV1SwiGLUMLP,
    LigerPhi3SwiGLUMLP,
    LigerQwen3MoeSwiGLUMLP,
    LigerSwiGLUMLP,
)

# ---- what families share ---------------------------------------------------------------------------------------------

PRE_NORMS = ("norm", "layers.*.input_layernorm", "layers.*.post_attention_layernorm")
POST_NORMS = ("norm", "layers.*.post_attention_layernorm", "layers.*.post_feedforward_layernorm")
SANDWICH = (*PRE_NORMS, "layers.*.pre_feedforward_layernorm", "layers.*.post_feedforward_layernorm")
QK_NORMS = ("layers.*.self_attn.q_norm", "layers.*.self_attn.k_norm")
LOW_RANK_NORMS = ("layers.*.self_attn.q_a_layernorm", "layers.*.self_attn.kv_a_layernorm")
MLP = "layers.*.mlp"
EXPERTS = "layers.*.mlp.experts.*"  # a list of MLPs in transformers 4, one module over fused tensors in 5

CAPPED = Head(softcap="final_logit_softcapping")
ROUTED = Head(output="LigerMoeCausalLMOutputWithPast", router_loss=True)
ROUTED_WITHOUT_LOSS = Head(output="LigerMoeCausalLMOutputWithPast")

INTERLEAVED = "its rotary embedding pairs neighbouring elements"
ROUTER = "the router around its experts"
GATED_NORM = "a norm with a gate"
MAMBA = "its state-space layers"


# ---- language models -------------------------------------------------------------------------------------------------

LLAMA = Row(
    "llama",
    "llama.modeling_llama",
    (norms({"LlamaRMSNorm": LigerRMSNorm}, *PRE_NORMS), swiglu({"LlamaMLP": LigerSwiGLUMLP}, MLP)),
    {"LlamaForCausalLM": Head()},
)
MISTRAL = Row(
    "mistral",
    "mistral.modeling_mistral",
    (norms({"MistralRMSNorm": LigerRMSNorm}, *PRE_NORMS), swiglu({"MistralMLP": LigerSwiGLUMLP}, MLP)),
    {"MistralForCausalLM": Head()},
    cross_entropy="attribute",
)
MINISTRAL = Row(
    "ministral",
    "ministral.modeling_ministral",
    (norms({"MinistralRMSNorm": LigerRMSNorm}, *PRE_NORMS), swiglu({"MinistralMLP": LigerSwiGLUMLP}, MLP)),
    {"MinistralForCausalLM": Head()},
    cross_entropy="attribute",
)
MIXTRAL = Row(
    "mixtral",
    "mixtral.modeling_mixtral",
    (
        norms({"MixtralRMSNorm": LigerRMSNorm}, *PRE_NORMS),
        swiglu({"MixtralBlockSparseTop2MLP": LigerBlockSparseTop2MLP}, "layers.*.block_sparse_moe.experts.*"),
    ),
    {"MixtralForCausalLM": ROUTED},
    experts="MixtralExperts",
)
QWEN2 = Row(
    "qwen2",
    "qwen2.modeling_qwen2",
    (norms({"Qwen2RMSNorm": LigerRMSNorm}, *PRE_NORMS), swiglu({"Qwen2MLP": LigerSwiGLUMLP}, MLP)),
    {"Qwen2ForCausalLM": Head()},
)
QWEN3 = Row(
    "qwen3",
    "qwen3.modeling_qwen3",
    (norms({"Qwen3RMSNorm": LigerRMSNorm}, *PRE_NORMS, *QK_NORMS), swiglu({"Qwen3MLP": LigerSwiGLUMLP}, MLP)),
    {"Qwen3ForCausalLM": Head()},
)
QWEN3_MOE = Row(
    "qwen3_moe",
    "qwen3_moe.modeling_qwen3_moe",
    (
        norms({"Qwen3MoeRMSNorm": LigerRMSNorm}, *PRE_NORMS, *QK_NORMS),
        swiglu({"Qwen3MoeMLP": LigerQwen3MoeSwiGLUMLP}, MLP, EXPERTS),
    ),
    {"Qwen3MoeForCausalLM": ROUTED},
    alone={"Qwen3MoeSparseMoeBlock": ROUTER},
    experts="Qwen3MoeExperts",
)
QWEN3_NEXT = Row(
    "qwen3_next",
    "qwen3_next.modeling_qwen3_next",
    (
        norms({"Qwen3NextRMSNorm": LigerRMSNormForQwen3Next}, *PRE_NORMS, *QK_NORMS),
        swiglu({"Qwen3NextMLP": LigerQwen3MoeSwiGLUMLP}, MLP, "layers.*.mlp.shared_expert", EXPERTS),
    ),
    {"Qwen3NextForCausalLM": ROUTED},
    flags=flags(rope=False),
    accepts=("Qwen3NextForCausalLM",),
    alone={"Qwen3NextSparseMoeBlock": ROUTER, "Qwen3NextRMSNormGated": GATED_NORM},
    experts="Qwen3NextExperts",
)
QWEN3_5 = Row(
    "qwen3_5",
    "qwen3_5.modeling_qwen3_5",
    (
        norms({"Qwen3_5RMSNorm": LigerRMSNormForQwen3Next}, *PRE_NORMS, *QK_NORMS),
        swiglu({"Qwen3_5MLP": LigerQwen3MoeSwiGLUMLP}, MLP),
    ),
    {
        "Qwen3_5ForCausalLM": Head(),
        "Qwen3_5ForConditionalGeneration": Head(config="text_config", output="LigerQwen3_5CausalLMOutputWithPast"),
    },
    NO_ROPE,
    flags(rope=False),
    text="language_model",
    model_types=("qwen3_5", "qwen3_5_text"),
    accepts=("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration", "Qwen3_5Model", "Qwen3_5TextModel"),
    alone={"Qwen3_5RMSNormGated": GATED_NORM},
    refused={"rope": "rope is not available for Qwen3.5 models."},
)
PHI3 = Row(
    "phi3",
    "phi3.modeling_phi3",
    (norms({"Phi3RMSNorm": LigerRMSNorm}, *PRE_NORMS), swiglu({"Phi3MLP": LigerPhi3SwiGLUMLP}, MLP)),
    {"Phi3ForCausalLM": Head()},
)
GEMMA = Row(
    "gemma",
    "gemma.modeling_gemma",
    (
        norms({"GemmaRMSNorm": LigerRMSNormForGemma}, *PRE_NORMS),
        geglu({"GemmaMLP": LigerGEGLUMLP}, MLP, activation="hidden_act"),
    ),
    {"GemmaForCausalLM": Head()},
    flags=GEGLU_FLAGS,
)
GEMMA2 = Row(
    "gemma2",
    "gemma2.modeling_gemma2",
    (norms({"Gemma2RMSNorm": LigerRMSNormForGemma2}, *SANDWICH), geglu({"Gemma2MLP": LigerGEGLUMLP}, MLP)),
    {"Gemma2ForCausalLM": CAPPED},
    flags=GEGLU_FLAGS,
)
GEMMA3_TEXT = Row(
    "gemma3_text",
    "gemma3.modeling_gemma3",
    (norms({"Gemma3RMSNorm": LigerRMSNormForGemma3}, *SANDWICH, *QK_NORMS), geglu({"Gemma3MLP": LigerGEGLUMLP}, MLP)),
    {"Gemma3ForCausalLM": CAPPED},
    flags=GEGLU_FLAGS,
    accepts=("Gemma3ForCausalLM", "Gemma3TextModel", "Gemma3TextForSequenceClassification"),
)
GEMMA4_TEXT = Row(
    "gemma4_text",
    "gemma4.modeling_gemma4",
    (
        norms({"Gemma4RMSNorm": LigerRMSNormForGemma4}, *SANDWICH, *QK_NORMS),
        geglu({"Gemma4TextMLP": LigerGEGLUMLPForGemma4}, MLP),
    ),
    {"Gemma4ForCausalLM": CAPPED, "Gemma4TextForCausalLM": CAPPED},
    NO_ROPE,
    {**GEGLU_FLAGS, "rope": False},
    accepts=("Gemma4ForCausalLM", "Gemma4TextForCausalLM", "Gemma4TextModel"),
    alone={"rope": "it rotates queries and keys one at a time"},
)
GRANITE = Row(
    "granite",
    "granite.modeling_granite",
    (norms({"GraniteRMSNorm": LigerRMSNorm}, *PRE_NORMS), swiglu({"GraniteMLP": LigerSwiGLUMLP}, MLP)),
    flags=flags(cross_entropy=True, fused_linear_cross_entropy=False),
    refused={"fused_linear_cross_entropy": "fused_linear_cross_entropy is not available for Granite models."},
)
OLMO2 = Row(
    "olmo2",
    "olmo2.modeling_olmo2",
    (norms({"Olmo2RMSNorm": LigerRMSNormForOlmo2}, *POST_NORMS), swiglu({"Olmo2MLP": LigerSwiGLUMLP}, MLP)),
    {"Olmo2ForCausalLM": Head()},
)
OLMO3 = Row(
    "olmo3",
    "olmo3.modeling_olmo3",
    (norms({"Olmo3RMSNorm": LigerRMSNormForOlmo2}, *POST_NORMS), swiglu({"Olmo3MLP": LigerSwiGLUMLP}, MLP)),
    {"Olmo3ForCausalLM": Head()},
)
SMOLLM3 = Row(
    "smollm3",
    "smollm3.modeling_smollm3",
    (norms({"SmolLM3RMSNorm": LigerRMSNorm}, *PRE_NORMS), swiglu({"SmolLM3MLP": LigerSwiGLUMLP}, MLP)),
    {"SmolLM3ForCausalLM": Head()},
)
GLM4 = Row(
    "glm4",
    "glm4.modeling_glm4",
    (
        norms(
            {"Glm4RMSNorm": LigerRMSNormForGlm4},
            *PRE_NORMS,
            "layers.*.post_self_attn_layernorm",
            "layers.*.post_mlp_layernorm",
        ),
        swiglu({"Glm4MLP": LigerPhi3SwiGLUMLP}, MLP),
    ),
    {"Glm4ForCausalLM": Head()},
    NO_ROPE,
    flags(rope=False),
    refused={"rope": f"rope is not available for Glm4 models: {INTERLEAVED}."},
)
EXAONE4 = Row(
    "exaone4",
    "exaone4.modeling_exaone4",
    (
        norms({"Exaone4RMSNorm": LigerRMSNormForGlm4}, *POST_NORMS, *QK_NORMS),
        swiglu({"Exaone4MLP": LigerSwiGLUMLP}, MLP),
    ),
    {"Exaone4ForCausalLM": Head()},
)
HUNYUAN_V1_DENSE = Row(
    "hunyuan_v1_dense",
    "hunyuan_v1_dense.modeling_hunyuan_v1_dense",
    (
        norms({"HunYuanDenseV1RMSNorm": LigerRMSNorm}, *PRE_NORMS),
        swiglu({"HunYuanDenseV1MLP": LigerHunyuanV1SwiGLUMLP}, MLP),
    ),
    {"HunYuanDenseV1ForCausalLM": Head()},
)
FALCON_H1 = Row(
    "falcon_h1",
    "falcon_h1.modeling_falcon_h1",
    (
        norms(
            {"FalconH1RMSNorm": LigerRMSNorm},
            "final_layernorm",
            "layers.*.input_layernorm",
            "layers.*.pre_ff_layernorm",
        ),
        swiglu({"FalconH1MLP": LigerFalconH1SwiGLUMLP}, "layers.*.feed_forward"),
    ),
    {"FalconH1ForCausalLM": Head(multiplier="model.lm_head_multiplier")},
    alone={"FalconH1RMSNormGated": GATED_NORM, "FalconH1Mixer": MAMBA},
)
GPT_OSS = Row(
    "gpt_oss",
    "gpt_oss.modeling_gpt_oss",
    (norms({"GptOssRMSNorm": LigerRMSNormForOlmo2}, *PRE_NORMS),),
    {"GptOssForCausalLM": ROUTED},
    HALF_WIDTH,
    flags(swiglu=False),
    alone={"swiglu": "its experts clamp the gate and have biases"},
)
DEEPSEEK_V2 = Row(
    "deepseek_v2",
    "deepseek_v2.modeling_deepseek_v2",
    (
        norms({"DeepseekV2RMSNorm": LigerRMSNorm}, *PRE_NORMS, *LOW_RANK_NORMS),
        swiglu({"DeepseekV2MLP": LigerSwiGLUMLP}, MLP, "layers.*.mlp.shared_experts", EXPERTS),
    ),
    {"DeepseekV2ForCausalLM": ROUTED_WITHOUT_LOSS},
    NO_ROPE,
    flags(rope=False),
    alone={"rope": INTERLEAVED, "DeepseekV2Moe": ROUTER, "DeepseekV2MoE": ROUTER},
    experts="DeepseekV2Experts",
)
DEEPSEEK_V3 = Row(
    "deepseek_v3",
    "deepseek_v3.modeling_deepseek_v3",
    (
        norms({"DeepseekV3RMSNorm": LigerRMSNorm}, *PRE_NORMS, *LOW_RANK_NORMS),
        swiglu({"DeepseekV3MLP": LigerQwen3MoeSwiGLUMLP}, MLP, "layers.*.mlp.shared_experts", EXPERTS),
    ),
    {"DeepseekV3ForCausalLM": ROUTED_WITHOUT_LOSS},
    NO_ROPE,
    flags(rope=False),
    alone={"rope": INTERLEAVED, "DeepseekV3MoE": ROUTER},
    experts="DeepseekV3Experts",
)

ROWS = (
    LLAMA, MISTRAL, MINISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE, QWEN3_NEXT, QWEN3_5, PHI3, GEMMA, GEMMA2, GEMMA3_TEXT,
    GEMMA4_TEXT, GRANITE, OLMO2, OLMO3, SMOLLM3, GLM4, EXAONE4, HUNYUAN_V1_DENSE, FALCON_H1, GPT_OSS, DEEPSEEK_V2,
    DEEPSEEK_V3,
)  # fmt: skip
