"""Hugging Face directories of the Llama and Qwen2 families as a source of weights, without torch.

Names, key/values and the order of both are those of llama.cpp's converter (its F16 output), so that
a file made here and one made there differ in nothing. Other architectures go through that converter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import LutraError
from gguf_tools.formats.floats import to_float32
from gguf_tools.sources import llama_converter
from gguf_tools.sources.gguf import open_gguf
from gguf_tools.sources.safetensors import StoredTensor, open_safetensors, read_json
from gguf_tools.sources.tensors import Source, SourceTensor
from gguf_tools.sources.vocab import add_vocabulary

_ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
}
# What transformers assumes when config.json is silent: context length by architecture, the rest for all.
_CONTEXT = {"LlamaForCausalLM": 2048, "MistralForCausalLM": 131072, "Qwen2ForCausalLM": 32768}
_RMS_EPS = 1e-6
_ROPE_THETA = 10000.0
# Numbers that may describe rotary embeddings.
_ROPE_NUMBERS = (
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "extrapolation_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
)


@dataclass(frozen=True)
class _Config:
    """What config.json says, checked."""

    path: Path
    name: str  # "LlamaForCausalLM"
    arch: gguf.MODEL_ARCH
    layers: int
    context: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_given: bool
    vocab: int
    tied: bool
    rms_eps: float
    rope: dict[str, Any]

    @property
    def rope_theta(self) -> float:
        return float(self.rope.get("rope_theta", _ROPE_THETA))


def open_hf(directory: Path, name: str | None = None) -> Source:
    """The model in ``directory`` (config.json, safetensors, a tokenizer), ``name`` its title if known.

    Raises ``LutraError`` naming the file or tensor that is missing, damaged or of a wrong shape, and
    for architectures other than Llama, Mistral and Qwen2 when llama.cpp's converter cannot run.
    """
    config_path = directory / "config.json"
    if not config_path.is_file():
        raise LutraError(
            f"{directory}: has no config.json, so it is no Hugging Face model; give one or a GGUF"
        )
    raw = read_json(config_path)
    names = raw.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else "a model without architecture"
    if architecture not in _ARCHITECTURES:
        path, keep = llama_converter.convert(directory, architecture)
        source = open_gguf(path)
        return Source(directory, source.architecture, source.metadata, source.tensors, keep)
    config = _read_config(config_path, raw, architecture)
    tensors = list(_tensors(directory, config))
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[config.arch])  # only collects key/values
    try:
        _add_metadata(writer, directory.resolve(), name, config, tensors)
        add_vocabulary(writer, directory, config.vocab)
    except LutraError:
        raise
    except Exception as error:  # gguf and yaml on damaged files: there is no end to what they raise
        reason = (str(error).splitlines() or [""])[0][:200]
        raise LutraError(
            f"{directory}: its json files or README.md are damaged ({type(error).__name__}: {reason})"
        ) from None
    if config.arch == gguf.MODEL_ARCH.LLAMA and config.vocab == 49152:
        writer.kv_data[0].pop("tokenizer.ggml.add_bos_token", None)
        writer.add_add_bos_token(False)  # Granite's and SmolLM's vocabulary, whatever its json says
    return Source(directory, writer.arch, writer.kv_data[0], tensors)


# ---- config.json -----------------------------------------------------------------------------


def _read_config(path: Path, raw: dict[str, Any], architecture: str) -> _Config:
    def number(key: str, default: int | None = None) -> int:
        value = raw.get(key)
        value = default if value is None else value
        if value is None:
            raise LutraError(f"{path}: lacks {key!r}; download the model again")
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise LutraError(f"{path}: {key!r} is {value!r}, not a positive number")
        return value

    if method := raw.get("quantization_config"):
        kind = method.get("quant_method", "") if isinstance(method, dict) else method
        raise LutraError(f"{path}: the model is already quantized ({kind}); start from its original")
    heads, hidden = number("num_attention_heads"), number("hidden_size")
    kv_heads = number("num_key_value_heads", heads)
    if heads % kv_heads:
        raise LutraError(f"{path}: {heads} attention heads cannot share {kv_heads} key-value heads")
    arch = _ARCHITECTURES[architecture]
    # transformers fills in head_dim for Llama and Mistral, not for Qwen2; the keys follow from it
    given = raw.get("head_dim") is not None or arch == gguf.MODEL_ARCH.LLAMA
    head_dim = number("head_dim", hidden // heads)
    if head_dim % 2:
        raise LutraError(f"{path}: a head_dim of {head_dim} is odd, rotary embeddings need pairs")
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise LutraError(f"{path}: the scaling of rope is {scaling!r}; download the model again")
    silent = {key: raw.get(key) for key in ("rope_theta", "original_max_position_embeddings")}
    silent["rope_type"] = scaling.get("type")  # its former name
    rope = {k: v for k, v in (silent | scaling).items() if v is not None}
    eps = raw.get("rms_norm_eps", _RMS_EPS)
    for key, value in {**{k: rope[k] for k in _ROPE_NUMBERS if k in rope}, "rms_norm_eps": eps}.items():
        if not isinstance(value, int | float) or not 0 < value < 1e30:
            raise LutraError(f"{path}: {key!r} is {value!r}, not a positive number")
    return _Config(
        path=path,
        name=architecture,
        arch=arch,
        layers=number("num_hidden_layers"),
        context=number("max_position_embeddings", _CONTEXT[architecture]),
        hidden=hidden,
        ffn=number("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        head_dim_given=given,
        vocab=number("vocab_size"),
        tied=bool(raw.get("tie_word_embeddings", False)),
        rms_eps=float(eps),
        rope=rope,
    )


# ---- key/values ------------------------------------------------------------------------------


def _add_metadata(
    writer: gguf.GGUFWriter, directory: Path, name: str | None, config: _Config, tensors: list[SourceTensor]
) -> None:
    for t in tensors:
        writer.add_tensor_info(t.name, t.shape, np.dtype(np.float16), 0)
    counts = writer.get_total_parameter_count()
    meta = gguf.Metadata.load(None, directory, name, counts[0])
    meta.name = meta.name or directory.name
    meta.size_label = meta.size_label or gguf.size_label(*counts)
    if meta.sampling_penalty_repeat is None:  # the name that transformers uses
        meta.sampling_penalty_repeat = meta.load_generation_config(directory).get("repetition_penalty")
    writer.add_type(gguf.GGUFType.MODEL)
    meta.set_gguf_meta_model(writer)

    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    _add_rope_scaling(writer, config)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    if config.head_dim_given:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    if config.arch == gguf.MODEL_ARCH.LLAMA:
        writer.add_vocab_size(config.vocab)
        writer.add_rope_dimension_count(config.head_dim)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if config.arch == gguf.MODEL_ARCH.LLAMA and (directory / "tokenizer_config.json").is_file():
        prefix = read_json(directory / "tokenizer_config.json").get("add_prefix_space")
        if prefix is not None:
            writer.add_add_space_prefix(bool(prefix))


def _add_rope_scaling(writer: gguf.GGUFWriter, config: _Config) -> None:
    rope = config.rope
    kind = rope.get("rope_type")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope.get("original_max_position_embeddings", config.context))
            for key, add in (  # what is absent has its default in llama.cpp
                ("extrapolation_factor", writer.add_rope_scaling_yarn_ext_factor),
                ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
                ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
                ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
            ):
                if rope.get(key) is not None:
                    add(rope[key])
    elif kind not in (None, "default", "dynamic", "llama3"):  # dynamic: nothing changes within the context
        raise LutraError(f"{config.path}: rope type {kind!r} is not supported; convert to an F16 GGUF first")


def _rope_factors(config: _Config) -> NDArray[np.float32]:
    """Llama 3's frequency factors (head_dim / 2,): 1 for short wavelengths, ``factor`` for long ones,
    between them interpolated in frequency (arXiv 2407.21783 gives the recipe's constants)."""
    rope = config.rope
    factor = rope.get("factor", 8.0)
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    context = rope.get("original_max_position_embeddings", 8192)
    if low >= high:
        raise LutraError(f"{config.path}: low_freq_factor {low} is not below high_freq_factor {high}")
    wavelength = 2 * math.pi * config.rope_theta ** (np.arange(0, config.head_dim, 2) / config.head_dim)
    smooth = (context / wavelength - low) / (high - low)
    factors = np.where(wavelength > context / low, factor, 1 / ((1 - smooth) / factor + smooth))
    return np.where(wavelength < context / high, 1, factors).astype(np.float32)


# ---- tensors ---------------------------------------------------------------------------------


def _tensors(directory: Path, config: _Config) -> Iterator[SourceTensor]:
    stored = open_safetensors(directory)
    if config.layers > len(stored):
        raise LutraError(f"{config.path}: {config.layers} layers, but only {len(stored)} tensors are there")
    if config.rope.get("rope_type") == "llama3":
        factors = _rope_factors(config)[None, :]
        shape, path = (factors.shape[1],), config.path
        yield SourceTensor("rope_freqs.weight", shape, "F32", path, lambda start, stop: factors[start:stop])
    names = gguf.get_tensor_name_map(config.arch, config.layers)
    shapes = _shapes(config)
    seen: dict[str, str] = {}
    for tensor in stored.values():
        if tensor.name.endswith((".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")):
            continue
        what = f"{tensor.path}: tensor {tensor.name!r}"
        name = names.get_name(tensor.name, (".weight", ".bias"))
        if name not in shapes:
            raise LutraError(f"{what} is no part of a {config.name} of {config.layers} layers")
        if name in seen:
            raise LutraError(f"{what} and {seen[name]!r} are the same tensor {name}")
        if tensor.array.shape != shapes[name]:
            have, want = list(tensor.array.shape), list(shapes[name])
            raise LutraError(f"{what} has the shape {have}, but config.json makes it {want}")
        seen[name] = tensor.name
        yield _tensor(name, tensor, config)
    missing = next((n for n in shapes if n not in seen and not n.endswith(".bias")), None)
    if missing == "output.weight" and config.tied:
        missing = None
    if missing:
        raise LutraError(f"{directory}: no tensor for {missing}; the model is incomplete, download it again")


def _shapes(config: _Config) -> dict[str, tuple[int, ...]]:
    """GGUF name -> shape of every tensor that the model can have; output last."""
    c = config
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    matrices = {
        "attn_q": (q, c.hidden),
        "attn_k": (kv, c.hidden),
        "attn_v": (kv, c.hidden),
        "attn_output": (c.hidden, q),
        "ffn_gate": (c.ffn, c.hidden),
        "ffn_up": (c.ffn, c.hidden),
        "ffn_down": (c.hidden, c.ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (c.vocab, c.hidden)}
    for i in range(c.layers):
        for norm in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{i}.{norm}.weight"] = (c.hidden,)
        for name, shape in matrices.items():
            shapes[f"blk.{i}.{name}.weight"] = shape
            shapes[f"blk.{i}.{name}.bias"] = shape[:1]
    shapes["output_norm.weight"] = (c.hidden,)
    shapes["output.weight"] = (c.vocab, c.hidden)
    return shapes


def _tensor(name: str, tensor: StoredTensor, config: _Config) -> SourceTensor:
    shape, k = tensor.array.shape, tensor.array.shape[-1]
    matrix = tensor.array.reshape(-1, k)
    order: NDArray[np.intp] | None = None
    if config.arch == gguf.MODEL_ARCH.LLAMA and ".attn_q." in name:
        order = _rotary_order(config.heads, config.head_dim)
    elif config.arch == gguf.MODEL_ARCH.LLAMA and ".attn_k." in name:
        order = _rotary_order(config.kv_heads, config.head_dim)

    def load(start: int, stop: int) -> NDArray[np.float32]:
        if order is None:
            return to_float32(matrix[start:stop], tensor.dtype, k)
        if len(shape) == 1:  # a bias: its weights are reordered
            return to_float32(matrix[start:stop, order], tensor.dtype, k)
        return to_float32(matrix[order[start:stop]], tensor.dtype, k)

    return SourceTensor(name, shape, tensor.dtype, tensor.path, load)


def _rotary_order(heads: int, head_dim: int) -> NDArray[np.intp]:
    """Rows of q or k as llama.cpp's llama graph wants them: per head the two halves, which Hugging
    Face rotates against each other, interleaved: 0, half, 1, half + 1, ..."""
    rows = np.arange(heads * head_dim).reshape(heads, 2, head_dim // 2)
    return rows.swapaxes(1, 2).reshape(-1)
