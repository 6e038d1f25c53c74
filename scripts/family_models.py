# SPDX-License-Identifier: MIT
"""Small random models of many families, as transformers saves them: what scripts/family_table measures."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/python"))

COMMON = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 320,
    "bos_token_id": None,
    "eos_token_id": 259,
    "pad_token_id": 258,
    "tie_word_embeddings": False,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "head_dim": 64,
    "num_hidden_layers": 4,
}
LATENT = {
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "first_k_dense_replace": 1,
}
GEMMA = {
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "sliding_window": 128,
    "tie_word_embeddings": True,
    "vocab_size": 261,
}
SLIDING = ["sliding_attention", "full_attention"]
GRANITE = {
    "attention_multiplier": 0.125,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 0.5,
}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 64,
    "mamba_d_state": 64,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 64,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.0 + i / 4 for i in range(32)],
    "short_factor": [1.0 + i / 9 for i in range(32)],
    "original_max_position_embeddings": 128,
}


@dataclass(frozen=True)
class Model:
    """A family's model: the class of its configuration, and what differs from COMMON there."""

    config: str
    values: Mapping[str, Any] = field(default_factory=dict)
    sentencepiece: bool = False  # what its converter takes no other tokenizer for
    tokens: tuple[str, ...] = ()  # that its converter looks for
    key_norm: float = 1.0  # weights of keys' norms, where attention has no other scale
    architecture: str | None = None  # in config.json as published, where transformers writes another

    def save(self, directory: Path) -> None:
        """Write the model, bfloat16, with matrices that keep the size of activations."""
        import torch
        import transformers

        torch.manual_seed(0)
        values = COMMON | ({"vocab_size": 4096} if self.sentencepiece else {}) | dict(self.values)
        config = getattr(transformers, self.config)(**values)
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
        for name, weights in model.named_parameters():
            if weights.dim() > 1 and not name.endswith(("A_log", "scale")):
                torch.nn.init.normal_(weights, std=1 / math.sqrt(weights.shape[-1]))
            if name.endswith("k_norm.weight"):
                weights.data *= self.key_norm
        model.save_pretrained(directory)
        if self.architecture:
            path = directory / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [self.architecture]}))
        add_tokenizer(directory, self.sentencepiece, self.tokens)


def add_tokenizer(directory: Path, sentencepiece: bool, tokens: Sequence[str]) -> None:
    """tiny-chat's, or a byte-level BPE with ``tokens`` besides."""
    from gguf_samples import LLAMA3_WORDS, byte_level_tokenizer

    if sentencepiece:
        for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(ROOT / "models/tiny-chat" / name, directory / name)
        return
    tokenizer, config = byte_level_tokenizer(LLAMA3_WORDS)
    added = tokenizer["added_tokens"]
    added += [added[0] | {"id": len(added) + 258 + i, "content": token} for i, token in enumerate(tokens)]
    config["chat_template"] = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


GLM = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|system|>")

MODELS: dict[str, Model] = {
    "Llama 3": Model("LlamaConfig", {"rope_parameters": LLAMA3}),
    "Mistral": Model("MistralConfig", {"sliding_window": None}),
    "Ministral 3": Model(
        "Ministral3Config",
        {
            "head_dim": 64,
            "sliding_window": None,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "llama_4_scaling_beta": 0.1,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
    ),
    "Mixtral": Model("MixtralConfig", {"num_local_experts": 8, "sliding_window": None}),
    "Qwen2": Model("Qwen2Config"),
    "Qwen2-MoE": Model("Qwen2MoeConfig", EXPERTS | {"shared_expert_intermediate_size": 256}),
    "Qwen3": Model("Qwen3Config", {"head_dim": 64}),
    "Qwen3-MoE": Model("Qwen3MoeConfig", EXPERTS | {"head_dim": 64, "norm_topk_prob": True}),
    "Qwen3-Next": Model(
        "Qwen3NextConfig", LINEAR | EXPERTS | {"shared_expert_intermediate_size": 128, "norm_topk_prob": True}
    ),
    "Qwen3.5": Model("Qwen3_5TextConfig", LINEAR),
    "Qwen3.5-MoE": Model("Qwen3_5MoeTextConfig", LINEAR | EXPERTS | {"shared_expert_intermediate_size": 128}),
    "Gemma": Model("GemmaConfig", {"head_dim": 64, "tie_word_embeddings": True}, sentencepiece=True),
    "Gemma 2": Model("Gemma2Config", GEMMA),
    "Gemma 3": Model("Gemma3TextConfig", GEMMA | {"num_hidden_layers": 6}),
    "Gemma 3n": Model(
        "Gemma3nTextConfig",
        GEMMA
        | {
            "num_hidden_layers": 4,
            "intermediate_size": [512] * 4,
            "activation_sparsity_pattern": [0.95] * 4,  # llama.cpp: of the first ten
            "layer_types": SLIDING * 2,
            "num_kv_shared_layers": 0,  # llama.cpp: those from the 21st on
            "hidden_size_per_layer_input": 256,
            "vocab_size": 4096,
            "vocab_size_per_layer_input": 4096,
        },
        sentencepiece=True,
        key_norm=1 / 8,
    ),
    "Gemma 4, embeddings per layer": Model(
        "Gemma4TextConfig",
        GEMMA
        | {
            "num_hidden_layers": 4,
            "layer_types": SLIDING * 2,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 64,
            "vocab_size": 4096,
            "final_logit_softcapping": 30.0,
            "vocab_size_per_layer_input": 4096,
            "global_head_dim": 128,
        },
        sentencepiece=True,
        key_norm=1 / 8,
    ),
    "Gemma 4": Model(
        "Gemma4TextConfig",
        GEMMA
        | {
            "layer_types": SLIDING,
            "hidden_size_per_layer_input": 0,
            "vocab_size": 4096,
            "final_logit_softcapping": 30.0,
            "global_head_dim": 128,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
        },
        sentencepiece=True,
        key_norm=1 / 8,
    ),
    "Phi-3": Model(
        "Phi3Config",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 128, "sliding_window": None},
    ),
    "PhiMoE": Model(
        "PhimoeConfig",
        {
            "num_local_experts": 8,
            "sliding_window": None,
            "original_max_position_embeddings": 512,
            "lm_head_bias": True,
            "attention_bias": True,
        },
        sentencepiece=True,
        architecture="PhiMoEForCausalLM",
    ),
    "BitNet": Model("BitNetConfig", {"tie_word_embeddings": True}),
    "SmolLM3": Model("SmolLM3Config", {"num_hidden_layers": 4}),
    "LFM2": Model(
        "Lfm2Config", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    ),
    "LFM2-MoE": Model(
        "Lfm2MoeConfig",
        EXPERTS
        | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "tie_word_embeddings": True},
    ),
    "Granite 3": Model("GraniteConfig", GRANITE),
    "GraniteMoe": Model("GraniteMoeConfig", GRANITE | {"num_local_experts": 8}),
    "Granite 4, dense": Model(
        "GraniteMoeHybridConfig",
        GRANITE
        | {
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 512,
            "layer_types": ["attention"] * 2,
            "position_embedding_type": "rope",
        },
    ),
    "Granite 4 H": Model(
        "GraniteMoeHybridConfig",
        GRANITE
        | MAMBA2
        | {
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 256,
            "layer_types": ["mamba", "attention"],
        },
    ),
    "OLMo 2": Model("Olmo2Config"),
    "OLMo 3": Model("Olmo3Config", {"num_hidden_layers": 4, "sliding_window": 64}),
    "OLMoE": Model("OlmoeConfig", {"num_experts": 8, "num_experts_per_tok": 2, "num_key_value_heads": 4}),
    "gpt-oss": Model(
        "GptOssConfig",
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "head_dim": 64,
            "sliding_window": 64,
            "layer_types": SLIDING,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        },
    ),
    "DeepSeek-V2": Model("DeepseekV2Config", LATENT | {"topk_method": "greedy"}),
    "DeepSeek-V3": Model("DeepseekV3Config", LATENT | {"n_group": 2, "topk_group": 1}),
    "GLM-4": Model("Glm4Config", {"head_dim": 64}, tokens=GLM),
    "GLM-4-MoE": Model(
        "Glm4MoeConfig",
        {
            "head_dim": 64,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 128,
            "first_k_dense_replace": 1,
        },
        tokens=GLM,
    ),
    "GLM-4-MoE-Lite": Model("Glm4MoeLiteConfig", LATENT, tokens=GLM),
    "Mamba": Model("MambaConfig", {"num_hidden_layers": 3}),
    "Mamba 2": Model(
        "Mamba2Config", {"num_heads": 8, "head_dim": 64, "state_size": 64, "n_groups": 1, "chunk_size": 64}
    ),
    "Falcon-H1": Model("FalconH1Config", MAMBA2 | {"mamba_d_ssm": 512, "head_dim": 64}),
    "Nemotron-H": Model(
        "NemotronHConfig",
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 128,
            "moe_shared_expert_intermediate_size": 128,
            "num_hidden_layers": 4,
            "head_dim": 64,
            "mamba_num_heads": 8,
            "mamba_head_dim": 64,
            "ssm_state_size": 64,
            "n_groups": 1,
            "chunk_size": 64,
        },
    ),
    "Jamba": Model(
        "JambaConfig",
        {
            "num_experts": 8,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_dt_rank": 16,
            "mamba_d_state": 16,
            "use_mamba_kernels": False,
        },
        sentencepiece=True,
    ),
    "Command R": Model("CohereConfig", {"logit_scale": 1.0, "tie_word_embeddings": True}),
    "Command R7B (Cohere 2)": Model(
        "Cohere2Config",
        {"tie_word_embeddings": True, "logit_scale": 1.0, "sliding_window": 64, "num_hidden_layers": 4},
    ),
    "EXAONE 4": Model("Exaone4Config", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "Ernie 4.5": Model("Ernie4_5Config", {"head_dim": 64}, sentencepiece=True),
    "Ernie 4.5 MoE": Model(
        "Ernie4_5_MoeConfig",
        {
            "moe_num_experts": 8,
            "moe_k": 2,
            "moe_intermediate_size": 128,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 1,
            "moe_num_shared_experts": 2,
        },
        sentencepiece=True,
    ),
    "Hunyuan dense": Model("HunYuanDenseV1Config", {"head_dim": 64}),
    "StableLM": Model("StableLmConfig"),
    "StarCoder 2": Model("Starcoder2Config", {"sliding_window": None}),
    "Arcee": Model("ArceeConfig"),
    "Seed-OSS": Model("SeedOssConfig", {"head_dim": 64}),
    "Apertus": Model("ApertusConfig"),
    "Nemotron": Model("NemotronConfig", sentencepiece=True),
    "GPT-2": Model("GPT2Config", {"tie_word_embeddings": True}),
    "Phi-2": Model("PhiConfig", {"num_key_value_heads": 4, "intermediate_size": 1024}),
    "GPT-NeoX": Model("GPTNeoXConfig"),
    "Falcon": Model("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2}),
}
