"""Where each model family keeps what we replace: one row per family."""

from __future__ import annotations

from liger_kernel.transformers.geglu import LigerGEGLUMLP, LigerGEGLUMLPForGemma4
from liger_kernel.transformers.layer_norm import LigerLayerNorm
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
    HALF_SPLIT,
    HALF_WIDTH,
    IMAGES,
    NO_ROPE,
    SECTIONS,
    VISION,
    VISION_AND_GEGLU_FLAGS,
    VISION_FLAGS,
    Head,
    Kind,
    Row,
    flags,
    geglu,
    layer_norms,
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
    {"Gemma2ForCausalLM": Head(softcap="final_logit_softcapping", eager=True)},
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

# ---- vision towers, which have no function of their own --------------------------------------------------------------

TORCH_LAYER_NORM = {"torch.nn.modules.normalization.LayerNorm": LigerLayerNorm}
LAYER_NORM_OF_TORCH = Kind("layer_norm", TORCH_LAYER_NORM, replaced=("nn.LayerNorm",))  # for the whole process

SIGLIP_VISION = Row(
    "siglip_vision_model",
    "siglip.modeling_siglip",
    (
        layer_norms(
            TORCH_LAYER_NORM,
            *("post_layernorm", "encoder.layers.*.layer_norm1", "encoder.layers.*.layer_norm2"),
            *(f"vision_model.{path}" for path in ("post_layernorm", "encoder.layers.*.layer_norm1")),
            "vision_model.encoder.layers.*.layer_norm2",
        ),
    ),
    rope=NO_ROPE,
    flags={"layer_norm": True},
)
INTERNVL_VISION = Row(
    "internvl_vision",
    "internvl.modeling_internvl",
    (
        norms(
            {"InternVLVisionRMSNorm": LigerRMSNorm},
            "encoder.layer.*.attention.q_norm",
            "encoder.layer.*.attention.k_norm",
        ),
        layer_norms(
            {**TORCH_LAYER_NORM, "InternVLVisionRMSNorm": LigerRMSNorm},
            "layernorm",
            "encoder.layer.*.layernorm_before",
            "encoder.layer.*.layernorm_after",
        ),
    ),
    rope=NO_ROPE,
    flags={"rms_norm": True, "layer_norm": True},
    alone={"torch.nn.modules.linear.Identity": "no norm there"},
)
SMOLVLM_VISION = Row(
    "smolvlm_vision",
    "smolvlm.modeling_smolvlm",
    (layer_norms(TORCH_LAYER_NORM, "post_layernorm", "encoder.layers.*.layer_norm1", "encoder.layers.*.layer_norm2"),),
    rope=NO_ROPE,
    flags={"layer_norm": True},
)

# ---- models that see -------------------------------------------------------------------------------------------------

PIXTRAL = Row(
    "pixtral",
    "pixtral.modeling_pixtral",
    (
        norms(
            {"PixtralRMSNorm": LigerRMSNorm},
            "ln_pre",
            "transformer.layers.*.attention_norm",
            "transformer.layers.*.ffn_norm",
        ),
        swiglu({"PixtralMLP": LigerSwiGLUMLP}, "transformer.layers.*.feed_forward"),
    ),
    rope=IMAGES,
    flags={"rope": True, "rms_norm": True, "swiglu": True},
    accepts=("PixtralVisionModel",),
)
LLAVA = Row(
    "llava",
    "llava.modeling_llava",
    heads={"LlavaForConditionalGeneration": Head(config="text_config", output="LigerLlavaCausalLMOutputWithPast")},
    rope=NO_ROPE,
    flags={"cross_entropy": False, "fused_linear_cross_entropy": True},
    parts=("language_model", "vision_tower"),
    more_flags=True,
)
GEMMA3 = Row(
    "gemma3",
    "gemma3.modeling_gemma3",
    (
        norms({"Gemma3RMSNorm": LigerRMSNormForGemma3}, "multi_modal_projector.mm_soft_emb_norm"),
        LAYER_NORM_OF_TORCH,
    ),
    {
        "Gemma3ForConditionalGeneration": Head(
            config="text_config", softcap="final_logit_softcapping", output="LigerGemma3CausalLMOutputWithPast"
        )
    },
    flags=VISION_AND_GEGLU_FLAGS,
    cross_entropy="nn",
    parts=("language_model", "vision_tower"),
    class_rows=("gemma3_text",),
    accepts=("Gemma3ForConditionalGeneration", "Gemma3Model"),
)
PALIGEMMA = Row(
    "paligemma",
    "paligemma.modeling_paligemma",
    (LAYER_NORM_OF_TORCH,),
    {
        "PaliGemmaForConditionalGeneration": Head(
            config="text_config", softcap="final_logit_softcapping", output="LigerPaliGemmaCausalLMOutputWithPast"
        )
    },
    NO_ROPE,
    VISION_AND_GEGLU_FLAGS,
    cross_entropy="nn",
    parts=("language_model", "vision_tower"),
    class_rows=("gemma", "gemma2"),
    accepts=("PaliGemmaForConditionalGeneration", "PaliGemmaModel"),
)
INTERNVL = Row(
    "internvl",
    "internvl.modeling_internvl",
    (Kind("rms_norm", {"InternVLVisionRMSNorm": LigerRMSNorm}), LAYER_NORM_OF_TORCH),
    {"InternVLForConditionalGeneration": Head(config="text_config", output="LigerInternVLCausalLMOutputWithPast")},
    NO_ROPE,
    {"cross_entropy": False, "fused_linear_cross_entropy": True, "rms_norm": True, "layer_norm": True},
    parts=("language_model", "vision_tower"),
    accepts=("InternVLForConditionalGeneration", "InternVLModel"),
    more_flags=True,
)
SMOLVLM = Row(
    "smolvlm",
    "smolvlm.modeling_smolvlm",
    (Kind("rms_norm", {"SmolVLMRMSNorm": LigerRMSNorm}), LAYER_NORM_OF_TORCH),
    {"SmolVLMForConditionalGeneration": Head(config="text_config", output="LigerSmolVLMCausalLMOutputWithPast")},
    NO_ROPE,
    {"cross_entropy": False, "fused_linear_cross_entropy": True, "rms_norm": True, "layer_norm": True},
    parts=("text_model", "vision_model"),
    accepts=("SmolVLMForConditionalGeneration", "SmolVLMModel"),
    more_flags=True,
)
QWEN2_VL = Row(
    "qwen2_vl",
    "qwen2_vl.modeling_qwen2_vl",
    (
        norms({"Qwen2VLRMSNorm": LigerRMSNorm, "Qwen2RMSNorm": LigerRMSNorm}, *PRE_NORMS),
        Kind(
            "layer_norm", TORCH_LAYER_NORM, ("blocks.*.norm1", "blocks.*.norm2"), part="visual", replaced=("LayerNorm",)
        ),
        swiglu({"Qwen2MLP": LigerSwiGLUMLP}, MLP),
    ),
    {"Qwen2VLForConditionalGeneration": Head(config="text_config", output="LigerQwen2VLCausalLMOutputWithPast")},
    SECTIONS,
    VISION_FLAGS,
    cross_entropy="attribute",
    text="language_model",
    model_types=("qwen2_vl", "qwen2_vl_text"),
    accepts=("Qwen2VLForConditionalGeneration", "Qwen2VLModel", "Qwen2VLTextModel"),
)
QWEN2_5_VL = Row(
    "qwen2_5_vl",
    "qwen2_5_vl.modeling_qwen2_5_vl",
    (
        norms({"Qwen2_5_VLRMSNorm": LigerRMSNorm, "Qwen2RMSNorm": LigerRMSNorm}, *PRE_NORMS),
        norms(
            {"Qwen2_5_VLRMSNorm": LigerRMSNorm, "Qwen2RMSNorm": LigerRMSNorm},
            "blocks.*.norm1",
            "blocks.*.norm2",
            part="visual",
        ),
        swiglu({"Qwen2MLP": LigerSwiGLUMLP}, MLP),
    ),
    {"Qwen2_5_VLForConditionalGeneration": Head(config="text_config", output="LigerQwen2_5_VLCausalLMOutputWithPast")},
    SECTIONS,
    cross_entropy="attribute",
    text="language_model",
    model_types=("qwen2_5_vl", "qwen2_5_vl_text"),
    accepts=("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel", "Qwen2_5_VLTextModel"),
)
QWEN3_VL = Row(
    "qwen3_vl",
    "qwen3_vl.modeling_qwen3_vl",
    (norms({"Qwen3VLTextRMSNorm": LigerRMSNorm}, *PRE_NORMS, *QK_NORMS),),
    {"Qwen3VLForConditionalGeneration": Head(config="text_config", output="LigerQwen3VLCausalLMOutputWithPast")},
    (*HALF_SPLIT, VISION),
    flags(swiglu=False),
    text="language_model",
    model_types=("qwen3_vl", "qwen3_vl_text"),
    accepts=("Qwen3VLForConditionalGeneration", "Qwen3VLModel", "Qwen3VLTextModel"),
    alone={"swiglu": "not offered for its MLPs, as the interface has it"},
)

ROWS = (
    LLAMA, MISTRAL, MINISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE, QWEN3_NEXT, QWEN3_5, PHI3, GEMMA, GEMMA2, GEMMA3_TEXT,
    GEMMA4_TEXT, GRANITE, OLMO2, OLMO3, SMOLLM3, GLM4, EXAONE4, HUNYUAN_V1_DENSE, FALCON_H1, GPT_OSS, DEEPSEEK_V2,
    DEEPSEEK_V3, PIXTRAL, LLAVA, GEMMA3, PALIGEMMA, INTERNVL, SMOLVLM, QWEN2_VL, QWEN2_5_VL, QWEN3_VL,
)  # fmt: skip
TOWERS = (SIGLIP_VISION, INTERNVL_VISION, SMOLVLM_VISION)


def row_named(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def row_of_part(model_type: str | None) -> Row | None:
    """The row for a part of a model that sees."""
    return next((row for row in (*TOWERS, *ROWS) if model_type in row.types), None)
