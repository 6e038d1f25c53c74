# SPDX-License-Identifier: MIT
"""``python -m ....llama_converter_child SCRIPT DIRECTORY ...``: run llama.cpp's converter.

It is unmodified, but does not see what it would stumble over: config.json as transformers 5 writes it,
tokenizers that are not on its list, the lack of layers that predict several tokens, and quantized weights.
All that ends a text is in its file.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

# Whose experts are chosen in one way only, which config.json need not name.
_SIGMOID = ("DeepseekV3ForCausalLM", "Dots1ForCausalLM", "Glm4MoeLiteForCausalLM", "MiniMaxM2ForCausalLM")


def main() -> None:
    """Run the converter in this process."""
    script, directory = map(Path, sys.argv[1:3])
    sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]  # its gguf, not the installed one
    sys.argv = sys.argv[1:]
    if (script.parent / "conversion").is_dir():
        _adapt(directory)
    runpy.run_path(str(script), run_name="__main__")


def _adapt(directory: Path) -> None:
    from conversion.base import ModelBase, TextModel
    from gguf import GGUFWriter

    from gguf_tools.sources.dequantize import method_of
    from gguf_tools.sources.llama_converter import ONLY_HERE
    from gguf_tools.sources.safetensors import read_json
    from gguf_tools.sources.vocab import pre_tokenizer, with_ends

    init, listed, dequant = ModelBase.__init__, TextModel.get_vocab_base_pre, ModelBase.dequant_model
    write_header = GGUFWriter.write_header_to_file
    raw = read_json(directory / "config.json")

    def __init__(
        self: Any, path: Path, *args: Any, hparams: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        hparams = ModelBase.load_hparams(path, self.is_mistral_format) if hparams is None else hparams
        init(self, path, *args, hparams=completed(hparams, raw), **kwargs)

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        """By what it makes of a text if it is on the list, else by its rules."""
        path = directory / "tokenizer.json"
        try:
            return str(listed(self, tokenizer))
        except NotImplementedError:
            if not path.is_file():
                raise
        return pre_tokenizer(path, read_json(path))

    def write_header_to_file(self: GGUFWriter, path: Path | None = None) -> None:
        """Once all keys are known."""
        self.kv_data[0] = with_ends(self.kv_data[0], directory)
        write_header(self, path)

    def dequant_model(self: Any) -> None:
        """What the weights stand for as we read it; NVFP4 is written as it is."""
        settings = self.hparams.get("quantization_config")
        if not settings or method_of(settings) in ONLY_HERE or self._is_nvfp4:
            dequant(self)
        else:
            self.model_tensors = dict(_dequantized(self, directory, settings))

    ModelBase.__init__, TextModel.get_vocab_base_pre = __init__, get_vocab_base_pre
    GGUFWriter.write_header_to_file = write_header_to_file  # type: ignore[method-assign]
    ModelBase.dequant_model = dequant_model
    ModelBase.no_mtp = not has_mtp(directory, raw)


def _dequantized(model: Any, directory: Path, settings: object) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The tensors of a quantized model as the converter wants them: by name, read when they are written."""
    import numpy as np
    import torch
    from conversion.base import LazyTorchTensor

    from gguf_tools.sources.dequantize import restored
    from gguf_tools.sources.safetensors import open_safetensors
    from gguf_tools.sources.weights import Weights

    def read(weights: Weights) -> Any:
        return torch.from_numpy(weights.load(np.arange(weights.rows)).reshape(weights.shape))

    def lazy(weights: Weights) -> Any:
        meta = LazyTorchTensor.meta_with_dtype_and_shape(torch.float32, weights.shape)
        return LazyTorchTensor(meta=meta, args=(weights,), func=read)

    stored = open_safetensors(directory, ExitStack()).values()  # open as long as this process lives
    for weights in restored(stored, directory / "config.json", settings):
        if tensor := model.filter_tensors((weights.name, partial(lazy, weights))):
            yield tensor


def completed(hparams: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """``hparams``, what transformers makes of ``raw``, with what the converter asks for and it leaves out.

    Both are config.json, or the text_config in it of a model that sees or hears, too.
    """
    from gguf_tools.sources.config import with_numbers

    found: dict[str, Any] = with_numbers(
        {**{key: value for key, value in raw.items() if value is not None}, **hparams}
    )
    names = found.get("architectures") or [""]
    rope = found.get("rope_parameters") or {}
    if names[0] in _SIGMOID:
        found.setdefault("scoring_func", "sigmoid")
    if names[0] in ("Cohere2ForCausalLM", "GPTNeoXForCausalLM"):
        found.setdefault("rotary_pct", rope.get("partial_rotary_factor", 1.0))
    elif names[0] == "GPT2LMHeadModel":
        found.setdefault("n_ctx", found.get("n_positions"))
    elif names[0] == "MiniMaxM2ForCausalLM" and "head_dim" in found:
        found.setdefault("rotary_dim", int(found["head_dim"] * rope.get("partial_rotary_factor", 1.0)))
    elif names[0] == "FalconH1ForCausalLM":
        found.setdefault("head_dim", found["hidden_size"] // found["num_attention_heads"])
    elif names[0] in ("GraniteMoeHybridForCausalLM", "BambaForCausalLM") and "layer_types" in found:
        former = {"full_attention": "attention", "linear_attention": "mamba"}
        found["layer_types"] = [former.get(kind, kind) for kind in found["layer_types"]]
    if isinstance(text := found.get("text_config"), dict):
        within = raw.get("text_config")
        found["text_config"] = completed(text, within if isinstance(within, dict) else {})
    return found


def has_mtp(directory: Path, raw: Mapping[str, Any]) -> bool:
    """Whether the layers that predict several tokens were saved with the model; transformers drops them."""
    from gguf_tools.sources.safetensors import read_header

    layers = {**raw, **(raw.get("text_config") or {})}.get("num_hidden_layers", 1 << 31)
    names = [name for path in directory.glob("model*.safetensors") for name in read_header(path)]
    numbers = [int(found[1]) for name in names if (found := re.search(r"\.layers\.(\d+)\.", name))]
    return not names or max(numbers, default=0) >= layers or any("mtp." in name for name in names)


if __name__ == "__main__":
    main()
