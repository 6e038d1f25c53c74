# SPDX-License-Identifier: MIT
"""Small models made by hand for the gguf_tools tests: GGUF files and Hugging Face directories."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np
from gguf import GGUFValueType as T
from gguf.gguf_writer import GGUFValue

from gguf_tools.formats import codebook
from gguf_tools.formats.family import CB_FORMATS
from gguf_tools.writer import GGUFWriter, TensorSpec

F32, F16, Q8_0, Q4_0, BF16 = 0, 1, 8, 2, 30
METADATA = {
    "general.architecture": GGUFValue("llama", T.STRING),
    "general.name": GGUFValue("sample é \udcff", T.STRING),  # \udcff: a byte that is not UTF-8
    "u8": GGUFValue(255, T.UINT8),
    "i8": GGUFValue(-1, T.INT8),
    "u16": GGUFValue(65535, T.UINT16),
    "i16": GGUFValue(-2, T.INT16),
    "u32": GGUFValue(1 << 31, T.UINT32),
    "i32": GGUFValue(-3, T.INT32),
    "f32": GGUFValue(0.5, T.FLOAT32),
    "bool": GGUFValue(True, T.BOOL),
    "u64": GGUFValue(1 << 63, T.UINT64),
    "i64": GGUFValue(-4, T.INT64),
    "f64": GGUFValue(0.1, T.FLOAT64),
    "strings": GGUFValue(["a", "", "ü"], T.ARRAY, T.STRING),
    "floats": GGUFValue([0.25, -1.5], T.ARRAY, T.FLOAT32),
    "bools": GGUFValue([True, False], T.ARRAY, T.BOOL),
    "empty": GGUFValue([], T.ARRAY, T.INT32),
}


def to_bf16(x: np.ndarray) -> np.ndarray:
    """float32 cut to bfloat16, as uint16."""
    return (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write_gguf(
    path: Path, tensors: dict[str, tuple[int, tuple[int, ...], np.ndarray]], metadata=None
) -> Path:
    """A GGUF of ``tensors`` (name -> type id, shape, data)."""
    data = {
        name: np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        for name, (_, _, array) in tensors.items()
    }
    specs = [TensorSpec(name, kind, shape, len(data[name])) for name, (kind, shape, _) in tensors.items()]
    with GGUFWriter(path, METADATA if metadata is None else metadata, specs) as writer:
        for array in data.values():
            writer.write(array)
    return path


def u32(value: int) -> GGUFValue:
    return GGUFValue(value, T.UINT32)


def random_model(path, metadata, shapes, given=None):
    """An F32 GGUF whose activations keep their size from layer to layer: gains of 1, weights 1/sqrt(k).

    ``given``: tensors that are not random, by name.
    """
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        w = np.ones(shape) if len(shape) == 1 else rng.standard_normal(shape) / np.sqrt(shape[-1])
        tensors[name] = (F32, shape, (given or {}).get(name, w).astype(np.float32))
    return write_gguf(path, tensors, metadata)


def cb_tensor(type_id: int, rows: int, k: int, seed: int = 0) -> tuple[int, tuple[int, ...], np.ndarray]:
    """A valid CB tensor for ``write_gguf``."""
    fmt, rng = CB_FORMATS[type_id], np.random.default_rng(seed)
    data = codebook.pack(
        rng.integers(0, 1 << fmt.bits, (rows, k // fmt.pair), np.uint8),
        rng.integers(0, 256, (rows, k // 32), np.uint8),
        rng.uniform(0.001, 0.01, (rows, k // fmt.sb)).astype(np.float16),
        rng.integers(-127, 128, fmt.library_shape).astype(np.int8),
        fmt,
        fmt.second
        and (
            rng.integers(0, 1 << fmt.second.bits, (rows, k // fmt.second.pair), np.uint8),
            rng.integers(-20, 21, fmt.second.library_shape).astype(np.int8),
        ),
    )
    return type_id, (rows, k), data


def sample_gguf(path: Path) -> Path:
    """Every readable float type, one of them three-dimensional."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((2, 4, 64)).astype(np.float32)
    q8 = np.zeros((4, 2), np.dtype([("d", "<f2"), ("q", "i1", 32)]))
    q8["d"], q8["q"] = 0.5, rng.integers(-127, 128, (4, 2, 32))
    return write_gguf(
        path,
        {
            "token_embd.weight": (F16, (2, 4, 64), w.astype(np.float16)),
            "output_norm.weight": (F32, (64,), w[0, 0]),
            "blk.0.ffn_up.weight": (BF16, (4, 64), to_bf16(w[0])),
            "blk.0.ffn_down.weight": (Q8_0, (4, 64), q8),
        },
    )


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "BF16") -> None:
    """A safetensors file; float32 arrays are stored as ``dtype``."""
    kinds = {"F32": "<f4", "F16": "<f2"}
    write_stored(path, {
        name: (dtype, to_bf16(array) if dtype == "BF16" else array.astype(kinds[dtype]))
        for name, array in tensors.items()
    })  # fmt: skip


def write_stored(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    """A safetensors file of tensors as they are stored: name -> type, numbers."""
    header, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, (dtype, array) in tensors.items():
        blob = array.tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = QWEN2_WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|")


def byte_level_tokenizer(pattern: str = QWEN2_WORDS) -> tuple[dict, dict]:
    """tokenizer.json and tokenizer_config.json of a byte-level BPE of 256 bytes, 2 merges, 3 added tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    bytes_ = [chr(b) if b in printable else None for b in range(256)]
    spare = iter(range(256, 512))
    vocab = {c or chr(next(spare)): i for i, c in enumerate(bytes_)} | {"th": 256, "the": 257}
    added = [("<|endoftext|>", True), ("<|im_end|>", True), ("<tool_call>", False)]
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokens = [
        {"id": 258 + i, "content": text, **plain, "special": special}
        for i, (text, special) in enumerate(added)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    steps = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        byte_level,
    ]
    tokenizer = {
        "version": "1.0",
        "added_tokens": tokens,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": ["t h", "th e"]},
    }
    config = {
        "added_tokens_decoder": {str(t["id"]): {k: t[k] for k in ("content", "special")} for t in tokens},
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": "{{ messages[0].content }}",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return tokenizer, config


def attention(c: dict, prefix: str = "self_attn.") -> dict:
    """Shapes of q, k, v and o in a block of a model with the config.json ``c``."""
    hidden, head_dim = c["hidden_size"], c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    q, kv = c["num_attention_heads"] * head_dim, c["num_key_value_heads"] * head_dim
    return {
        prefix + "q_proj.weight": (q, hidden),
        prefix + "k_proj.weight": (kv, hidden),
        prefix + "v_proj.weight": (kv, hidden),
        prefix + "o_proj.weight": (hidden, q),
    }


def gated(
    c: dict, prefix: str = "mlp.", ffn: str = "intermediate_size", names=("gate_proj", "up_proj", "down_proj")
) -> dict:
    """Shapes of the feed-forward part of a block, or of an expert in one."""
    hidden, ffn = c["hidden_size"], c[ffn]
    gate, up, down = (f"{prefix}{name}.weight" for name in names)
    return {gate: (ffn, hidden), up: (ffn, hidden), down: (hidden, ffn)}


def norms(c: dict, *names: str) -> dict:
    """Shapes of vectors of a block."""
    return {f"{name}.weight": (c["hidden_size"],) for name in names}


def head_norms(c: dict) -> dict:
    """Shapes of the norms of the heads of q and k."""
    head_dim = c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    return {f"self_attn.{x}_norm.weight": (head_dim,) for x in "qk"}


def llama_block(c: dict) -> dict:
    """Shapes of a block: two norms, a gated feed-forward part, attention."""
    return norms(c, "input_layernorm", "post_attention_layernorm") | gated(c) | attention(c)


def bitnet_block(c: dict) -> dict:
    """Llama's, with norms of what attention and the gated product give."""
    norms_within = {"self_attn.attn_sub_norm.weight": (c["hidden_size"],)}
    return llama_block(c) | norms_within | {"mlp.ffn_sub_norm.weight": (c["intermediate_size"],)}


def granite4_block(c: dict) -> dict:
    """Llama's, gate and up in one matrix."""
    ffn, hidden = c["shared_intermediate_size"], c["hidden_size"]
    return (
        norms(c, "input_layernorm", "post_attention_layernorm")
        | {
            "shared_mlp.input_linear.weight": (2 * ffn, hidden),
            "shared_mlp.output_linear.weight": (hidden, ffn),
        }
        | attention(c)
    )


def qwen2_block(c: dict) -> dict:
    """Llama's, with biases on q, k and v."""
    block = llama_block(c)
    return block | {f"self_attn.{x}_proj.bias": block[f"self_attn.{x}_proj.weight"][:1] for x in "qkv"}


def gemma_block(c: dict) -> dict:
    """Llama's, with norms after both parts."""
    return llama_block(c) | norms(c, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def experts(c: dict, part: str, count: str, ffn: str, names: tuple[str, str, str]) -> dict:
    """Shapes of a block's mixture of experts, called ``part``."""
    shapes = {f"{part}.gate.weight": (c[count], c["hidden_size"])}
    for i in range(c[count]):
        shapes |= gated(c, f"{part}.experts.{i}.", ffn, names)
    return shapes


def mixtral_block(c: dict) -> dict:
    """Llama's norms and attention, and a mixture of experts."""
    mixture = experts(c, "block_sparse_moe", "num_local_experts", "intermediate_size", ("w1", "w3", "w2"))
    return norms(c, "input_layernorm", "post_attention_layernorm") | attention(c) | mixture


def qwen3moe_block(c: dict) -> dict:
    """The same with norms of heads, and other names."""
    mixture = experts(c, "mlp", "num_experts", "moe_intermediate_size", ("gate_proj", "up_proj", "down_proj"))
    return norms(c, "input_layernorm", "post_attention_layernorm") | attention(c) | head_norms(c) | mixture


def olmo2_block(c: dict) -> dict:
    """Norms behind both parts, and over all of q and k."""
    shapes = norms(c, "post_attention_layernorm", "post_feedforward_layernorm") | gated(c) | attention(c)
    return shapes | {f"self_attn.{x}_norm.weight": shapes[f"self_attn.{x}_proj.weight"][:1] for x in "qk"}


def olmoe_block(c: dict) -> dict:
    """Norms over all of q and k, and a mixture of experts."""
    shapes = norms(c, "input_layernorm", "post_attention_layernorm") | attention(c)
    shapes |= {f"self_attn.{x}_norm.weight": shapes[f"self_attn.{x}_proj.weight"][:1] for x in "qk"}
    names = ("gate_proj", "up_proj", "down_proj")
    return shapes | experts(c, "mlp", "num_experts", "intermediate_size", names)


def phi3_block(c: dict) -> dict:
    """Llama's, with one matrix for q, k and v, and one for gate and up."""
    block = llama_block(c)
    rows = {
        name.split(".")[1]: block.pop(name)[0] for name in list(block) if re.search(r"[qkv]_|gate|up", name)
    }
    block["self_attn.qkv_proj.weight"] = rows["q_proj"] + rows["k_proj"] + rows["v_proj"], c["hidden_size"]
    block["mlp.gate_up_proj.weight"] = rows["gate_proj"] + rows["up_proj"], c["hidden_size"]
    return block


# Tied; the vocabulary has no more tokens than the tokenizer, as llama.cpp's converter cuts the others off.
GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 64,
    "vocab_size": 261,
    "tie_word_embeddings": True,
}

# By architecture: what its config.json has beside, and the shapes of a block.
BLOCKS = {
    "LlamaForCausalLM": ({"model_type": "llama"}, llama_block),
    "BitNetForCausalLM": (
        {"model_type": "bitnet", "hidden_act": "relu2", "tie_word_embeddings": True},
        bitnet_block,
    ),
    "MistralForCausalLM": ({"model_type": "mistral"}, llama_block),
    "Qwen2ForCausalLM": ({"model_type": "qwen2"}, qwen2_block),
    "Qwen3ForCausalLM": ({"model_type": "qwen3", "head_dim": 32}, lambda c: llama_block(c) | head_norms(c)),
    "Qwen3MoeForCausalLM": (
        {
            "model_type": "qwen3_moe",
            "num_experts": 11,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 128,
            "norm_topk_prob": True,
        },
        qwen3moe_block,
    ),
    "MixtralForCausalLM": (
        {
            "model_type": "mixtral",
            "num_hidden_layers": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 320,
        },
        mixtral_block,
    ),
    "Olmo2ForCausalLM": ({"model_type": "olmo2", "eos_token_id": 259, "pad_token_id": 258}, olmo2_block),
    "Olmo3ForCausalLM": (
        {
            "model_type": "olmo3",
            "rope_theta": 500000.0,
            "num_hidden_layers": 4,
            "sliding_window": 64,
            "eos_token_id": 259,
            "pad_token_id": 258,
        },
        olmo2_block,
    ),
    "OlmoeForCausalLM": (
        {
            "model_type": "olmoe",
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-5,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "intermediate_size": 128,
            "pad_token_id": 258,
            "eos_token_id": 259,
        },
        olmoe_block,
    ),
    "GraniteForCausalLM": (
        {
            "model_type": "granite",
            "attention_multiplier": 0.1,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
        llama_block,
    ),
    "GraniteMoeHybridForCausalLM": (
        {
            "model_type": "granitemoehybrid",
            "attention_multiplier": 0.1,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "intermediate_size": 320,
            "shared_intermediate_size": 320,
            "num_hidden_layers": 2,
            "layer_types": ["attention"] * 2,
            "position_embedding_type": "rope",
            "mamba_d_conv": 4,
            "mamba_d_head": 3,
            "mamba_d_state": 64,
            "mamba_expand": 2,
            "mamba_n_groups": 1,
            "mamba_n_heads": 128,
        },
        granite4_block,
    ),
    "Phi3ForCausalLM": (
        {
            "model_type": "phi3",
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 128,
            "bos_token_id": 258,
            "eos_token_id": 259,
            "pad_token_id": 258,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": [1.0 + i / 4 for i in range(24)],
                "short_factor": [1.0 + i / 9 for i in range(24)],
            },
        },
        phi3_block,
    ),
    "Gemma2ForCausalLM": (
        {**GEMMA, "model_type": "gemma2", "num_hidden_layers": 2, "rope_theta": 10000.0},
        gemma_block,
    ),
    "Gemma3ForCausalLM": (
        {**GEMMA, "model_type": "gemma3_text", "num_hidden_layers": 6},
        lambda c: gemma_block(c) | head_norms(c),
    ),
    "SmolLM3ForCausalLM": (
        {"model_type": "smollm3", "pad_token_id": 258, "tie_word_embeddings": True, "num_hidden_layers": 4},
        llama_block,
    ),
}


def hf_model(
    directory: Path, architecture: str = "Qwen2ForCausalLM", *, dtype="BF16", shards=1, gain=0.0, **config
) -> Path:
    """A random model in Hugging Face's form; ``config`` overrides config.json, ``gain`` is added to norms."""
    beside, block = BLOCKS[architecture]
    settings = {
        "architectures": [architecture],
        "hidden_size": 192,
        "intermediate_size": 320,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "vocab_size": 264,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        **beside,
        **config,
    }
    hidden, vocab = settings["hidden_size"], settings["vocab_size"]
    shapes = {} if settings["tie_word_embeddings"] else {"lm_head.weight": (vocab, hidden)}
    shapes |= {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(settings["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block(settings).items()}
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) * 0.05 for name, shape in shapes.items()}
    for name in filter(lambda name: name.endswith("norm.weight"), tensors):
        tensors[name] += np.float32(gain)
    directory.mkdir()
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, dtype)
    else:
        parts = {
            name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)
        }
        for part in set(parts.values()):
            write_safetensors(directory / part, {n: t for n, t in tensors.items() if parts[n] == part}, dtype)
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    tokenizer, tokenizer_config = byte_level_tokenizer(
        QWEN2_WORDS if "Qwen" in architecture else LLAMA3_WORDS
    )
    for file, value in (
        ("config.json", settings),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (directory / file).write_text(json.dumps(value))
    return directory


def stored_names(directory: Path) -> list[str]:
    """The names of the tensors in a model's file."""
    raw = (directory / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return [name for name in header if name != "__metadata__"]


def read_hf(directory: Path, name: str) -> np.ndarray:
    """A tensor of a single-file model as float32, by a few lines that share nothing with gguf_tools."""
    raw = (directory / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    entry = json.loads(raw[8 : 8 + length])[name]
    start, stop = (8 + length + offset for offset in entry["data_offsets"])
    bits = np.frombuffer(raw[start:stop], np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32).reshape(entry["shape"])
