# SPDX-License-Identifier: MIT
"""The networks of all families that are read directly, by transformers' modules."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import threading
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_tools.errors import LutraError
from gguf_tools.sources.config import with_numbers
from gguf_tools.sources.huggingface import architecture_of
from gguf_tools.sources.in_memory import Origin, origins
from gguf_tools.sources.llama_converter import INSTALL
from gguf_tools.sources.safetensors import read_json
from gguf_tools.sources.tensors import OUTPUT, Source

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lutra.conversion.network import Predict, See, Weights

_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class TransformersNetwork:
    """A model of transformers without weights of its own."""

    def __init__(self, source: Source) -> None:
        """Raises LutraError without transformers, and for tensors that the model has not or lacks."""
        if importlib.util.find_spec("transformers") is None:
            raise LutraError(
                f"{source.path}: --tune of the architecture {source.architecture!r} needs transformers: "
                f"run {INSTALL}, or convert without it"
            )
        import torch
        import transformers

        raw = with_numbers(read_json(source.path / "config.json"))
        raw.pop("quantization_config", None)  # the weights come dequantized
        kind = getattr(transformers, architecture_of(raw)).config_class
        config = kind.from_dict(raw).get_text_config()
        names = {tensor.name for tensor in source.tensors}
        config.tie_word_embeddings = OUTPUT not in names
        with torch.device("meta"):
            self._model = transformers.AutoModelForCausalLM.from_config(
                config,
                dtype=torch.float32,
                attn_implementation="eager",  # sums in one order
                experts_implementation="eager",
            ).requires_grad_(False)
        self._model.tie_weights()
        self._shapes = {name: parameter.shape for name, parameter in self._model.named_parameters()}
        self._origins = origins(source.path, self._shapes)
        self._of_thread = threading.local()
        needed = {part for origin in self._origins.values() for part in origin.parts}
        if odd := sorted(needed ^ names.difference(_FACTORS)):
            raise LutraError(
                f"{source.path}: the tensor {odd[0]!r} is not in both the model and transformers' "
                f"{type(self._model).__name__}, which --tune would compute; convert without it"
            )

    def bound(self, weights: Weights) -> Predict:
        """See ``Network``."""
        return self._bound(weights, None)

    def watched(self, weights: Weights, see: See) -> Predict:
        """See ``Network``."""
        return self._bound(weights, see)

    def _bound(self, weights: Weights, see: See | None) -> Predict:
        from torch.func import functional_call

        parameters = {
            name: _computed(origin, weights).view(self._shapes[name])
            for name, origin in self._origins.items()
        }

        def predict(tokens: Tensor, cache: Any = None) -> Tensor:
            arguments = tokens, None, None, cache  # masks and positions are those of plain text
            keywords = {"use_cache": cache is not None}
            module = self._module(tokens.device)
            with self._watching(module, weights, see) if see else contextlib.nullcontext():
                logits: Tensor = functional_call(module, parameters, arguments, keywords).logits
            return logits

        return predict

    @contextlib.contextmanager
    def _watching(self, model: Any, weights: Weights, see: See) -> Iterator[None]:
        """Within, products of linear modules tell ``see`` their gradients when these are computed."""
        import torch

        handles = []
        for name, origin in self._origins.items():
            module = model.get_submodule(name.rpartition(".")[0])
            is_matrix = isinstance(module, torch.nn.Linear) and name.endswith(".weight")
            if is_matrix and origin.parts[0].startswith("blk."):
                told = partial(_tell, see, origin, [len(weights[part]) for part in origin.parts])
                handles.append(module.register_forward_hook(told))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def cache(self, n: int, length: int, device: torch.device) -> Any:
        """See ``Network``."""
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)

    def cache_bytes(self, length: int) -> int:
        """See ``Network``."""
        config = self._model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        # Single precision; of a layer a copy, to which the next token's are added.
        return 4 * 2 * (int(config.num_hidden_layers) + 1) * length * int(heads) * int(width)

    def _module(self, device: torch.device) -> Any:
        """This thread's model: a call gives it weights for a while. Its constants are on ``device``."""
        import torch

        if not hasattr(self._of_thread, "module"):
            model = copy.deepcopy(self._model)
            with torch.no_grad():
                for module in model.modules():
                    constants = dict(module.named_buffers(recurse=False))
                    for name, constant in constants.items():
                        setattr(module, name, torch.empty_like(constant, device=device))
                    if constants:
                        model._init_weights(module)
            self._of_thread.module = model.eval()
        return self._of_thread.module


def _tell(see: See, origin: Origin, sizes: list[int], module: Any, inputs: Any, products: Tensor) -> None:
    """Tell ``see`` the gradient of ``products``, part by part."""

    def told(gradient: Tensor) -> None:
        if origin.rows is not None:
            gradient = gradient[..., np.argsort(origin.rows)]
        for part, own in zip(origin.parts, gradient.split(sizes, -1), strict=True):
            see(part, own)

    if products.requires_grad:
        products.register_hook(told)


def _computed(origin: Origin, weights: Weights) -> Tensor:
    """A parameter of transformers in single precision."""
    import torch

    tensors = [weights[part].float() for part in origin.parts]
    if len(tensors) > 1 or origin.rows is not None:
        rows = [t.flatten(0, -2) if t.dim() > 2 else t for t in tensors]
        whole = torch.cat(rows) if len(rows) > 1 else rows[0]
        if origin.rows is not None:
            whole = whole.index_select(0, torch.from_numpy(origin.rows).to(whole.device))
        tensors = [whole]
    return tensors[0] - origin.offset if origin.offset else tensors[0]
