# SPDX-License-Identifier: MIT
"""Tuning: torch computes what the model computes, only what is continuous changes, and for the better."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import re
import shutil
import sys
import weakref
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from cli_runner import ROOT, TINY_CHAT, assert_error, lutra, require_built
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf_samples import BLOCKS, cb_tensor, hf_model, write_gguf

from gguf_tools.errors import LutraError
from gguf_tools.formats import codebook
from gguf_tools.formats.catalog import TYPES
from gguf_tools.formats.family import CB_FORMATS, LAYOUT_VERSION, LAYOUT_VERSION_KEY
from gguf_tools.reader import GGUFFile
from gguf_tools.sources.families import BY_ARCHITECTURE
from gguf_tools.sources.open import open_source
from lutra.conversion import slabs, tunable, tune, tuning_memory
from lutra.conversion.codes import Sorted
from lutra.conversion.llama_network import Cache, LlamaNetwork
from lutra.conversion.network import NetworkSampling, network_of
from lutra.conversion.options import ConversionOptions
from lutra.conversion.pipeline import convert
from lutra.conversion.transformers_network import TransformersNetwork
from lutra.conversion.tunable import open_tensor
from lutra.conversion.tuning_memory import at_once
from lutra.runtime.model import Model

sys.path.insert(0, str(ROOT / "scripts"))
from tuning_cost import random_file, random_source

try:
    import torch
except ImportError:
    torch = None

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "qwen2": ("Qwen2ForCausalLM", {}),
    "llama, tied": ("LlamaForCausalLM", {}),
    "llama 3": ("LlamaForCausalLM", {"rope_scaling": LLAMA3, "head_dim": 32}),
}


def pieces(n: int, length: int, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, 256, (n, length)).tolist()


@pytest.fixture
def source(tmp_path):
    return open_source(hf_model(tmp_path / "model", dtype="F32"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The old man said to the boy that the sea was calm. " * 400)
    return path


@pytest.fixture
def quantized(tmp_path, source):
    return quantize(source, tmp_path / "quantized.gguf")


def quantize(source, path, kind="cb2", worse=0):
    """``source`` in ``kind``, its embeddings in CB4, its output unchanged; entries off by up to ``worse``."""
    require_built()
    rng = np.random.default_rng(0)
    from pyquant import encode, learn

    tensors = {}
    for t in source.tensors:
        w = t.read()
        kept = t.keeps_f32 or t.name == "output.weight"
        fmt = (
            None
            if kept
            else CB_FORMATS.get(TYPES["cb4" if t.name == "token_embd.weight" else kind].id_for(t.shape))
        )
        if not fmt:
            tensors[t.name] = (0, t.shape, w)
        elif fmt.second:
            tensors[t.name] = (fmt.type, t.shape, in_layers(w, fmt))
        else:
            library = learn(w, fmt)
            off = rng.integers(-worse, worse + 1, library.shape)
            given = (library + off).clip(-127, 127).astype(np.int8)
            data = np.concatenate([encode(w, library, fmt), given.view(np.uint8).reshape(-1)])
            tensors[t.name] = (fmt.type, t.shape, data)
    version = {LAYOUT_VERSION_KEY: GGUFValue(LAYOUT_VERSION, GGUFValueType.UINT32)}
    return write_gguf(path, tensors, source.metadata | version)


def in_layers(w, fmt):
    """The bytes of ``w`` in a type of two layers."""
    from pyquant import encode_layers, learn, learn_second

    libraries = [learn(w, fmt)]
    libraries.append(learn_second(w, libraries[0], fmt))
    strips, second = encode_layers(w, libraries, fmt)
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in (strips, *libraries, second)])


@contextlib.contextmanager
def peak():
    """``most``: the bytes of all tensors of torch that are alive at once, within."""
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    class Peak(TorchDispatchMode):
        alive = most = 0
        known: ClassVar[set[int]] = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            pytree.tree_map_only(torch.Tensor, self.add, result)
            return result

        def add(self, tensor):
            storage = tensor.untyped_storage()
            if (key := storage._cdata) not in self.known:
                self.known.add(key)
                self.alive += storage.nbytes()
                self.most = max(self.most, self.alive)
                weakref.finalize(storage, self.drop, key, storage.nbytes())

        def drop(self, key, nbytes):
            self.known.remove(key)
            self.alive -= nbytes

    with Peak() as counted:
        yield counted


def weights_of(source, frugal=False):
    return tune.load(source, torch.device("cpu"), frugal=frugal)


def tuned(quantized, source, output, pieces, threads=1, checkpoint=None, frugal=False):
    tune.tune(
        quantized, source, weights_of(source, frugal), output, pieces,
        seed=0, threads=threads, checkpoint=checkpoint,
    )  # fmt: skip


def stored(path):
    """What a file's tensors stand for."""
    file, weights = GGUFFile(path), {}
    for name, info in file.tensors.items():
        fmt, data = CB_FORMATS.get(info.type), file.data(info)
        rows = math.prod(info.shape[:-1])
        w = codebook.dequantize(data, rows, info.shape[-1], fmt) if fmt else data.view(np.float32)
        weights[name] = torch.from_numpy(w.reshape(info.shape).copy())
    return weights


def divergence(source, path) -> float:
    """On tokens that nothing was tuned with."""
    network, tokens = network_of(source), torch.tensor(pieces(4, 32, seed=1))
    with torch.no_grad():
        p, q = (network.bound(w)(tokens).log_softmax(-1) for w in (weights_of(source), stored(path)))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.torch
@pytest.mark.parametrize("model", MODELS)
def test_network_computes_what_transformers_does(tmp_path, model):
    transformers = pytest.importorskip("transformers", reason="the reference is not installed")
    architecture, config = MODELS[model]
    directory = hf_model(tmp_path / "model", architecture, dtype="F32", **config)
    source = open_source(directory)
    weights = weights_of(source)
    tokens = torch.tensor(pieces(2, 100))
    kind = getattr(transformers, architecture)
    reference = kind.from_pretrained(directory, dtype=torch.float32)
    if "tied" in model:
        source = replace(source, tensors=[t for t in source.tensors if t.name != "output.weight"])
        reference.lm_head.weight = reference.model.embed_tokens.weight
    with torch.no_grad():
        expected = reference(tokens).logits
    logits = LlamaNetwork.of(source).forward(weights, tokens)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


# Of the same kind, but smaller than those that are compared with llama.cpp.
SMALL = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 192}
GRANITE = {"attention_multiplier": 0.7, "residual_multiplier": 1.1, "embedding_multiplier": 2.0}
OTHERS = {
    "GraniteForCausalLM": GRANITE,
    "GraniteMoeHybridForCausalLM": GRANITE | {"shared_intermediate_size": 192, "mamba_d_head": 2},
    "MixtralForCausalLM": {"num_hidden_layers": 1},
    "OlmoeForCausalLM": {"num_key_value_heads": 4},
    "Phi3ForCausalLM": {
        "original_max_position_embeddings": 256,  # up to which it has the short factors
        "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 12, "short_factor": [1.1] * 12},
    },
}


@pytest.mark.torch
@pytest.mark.parametrize("architecture", BLOCKS)
def test_every_family_is_tuned_as_it_is_run(tmp_path, monkeypatch, architecture):
    pytest.importorskip("transformers", reason="the networks are not installed")
    monkeypatch.setitem(tune.BATCH, "cpu", 64)
    monkeypatch.setattr(tunable, "TABLE_RATE", 0.6)
    # Of norms around 1, or what comes out does not depend on where a token is.
    gain = 1 - BY_ARCHITECTURE[architecture].norm_offset
    config = SMALL | OTHERS.get(architecture, {})
    source = open_source(hf_model(tmp_path / "model", architecture, dtype="F32", gain=gain, **config))
    before = quantize(source, tmp_path / "quantized.gguf", "cb3", worse=24)
    after = tmp_path / "tuned.gguf"
    tuned(before, source, after, pieces(48, 32), threads=2)
    assert divergence(source, after) < 0.97 * divergence(source, before)
    assert network_of(source).cache_bytes(60) > 0
    tokens = pieces(1, 60)[0]
    with torch.no_grad():
        expected = TransformersNetwork(source).bound(stored(after))(torch.tensor([tokens]))[0].numpy()
    with Model(after, threads=1, n_ctx=256) as model:
        found = np.ctypeslib.as_array(model.logits(tokens), expected.shape).copy()
    # The runtime has activations of 8 bits.
    difference = np.abs(found - expected).max(axis=1) / expected.std(axis=1)
    assert np.median(difference) < 0.1, difference


@pytest.mark.torch
def test_gradients_are_those_of_the_weights(quantized):
    file = GGUFFile(quantized)
    codebook = open_tensor(file, file.tensors["blk.0.ffn_up.weight"], torch.device("cpu"))
    entries, ratio = (p for p, _ in codebook.parameters())
    direction = torch.randn(file.tensors["blk.0.ffn_up.weight"].shape, generator=torch.manual_seed(0))
    for parameter, gradient in zip((entries, ratio), codebook.reduce(direction), strict=True):
        change = torch.randn(parameter.shape, generator=torch.manual_seed(1)) * 1e-3
        before = codebook.weights()
        parameter += change
        difference = float(((codebook.weights() - before) * direction).sum())
        parameter -= change
        assert difference == pytest.approx(float((gradient * change).sum()), rel=2e-2)


@pytest.mark.torch
@pytest.mark.parametrize("frugal", [False, True])
def test_only_what_is_continuous_changes_and_divergence_falls(
    tmp_path, source, quantized, monkeypatch, frugal
):
    monkeypatch.setitem(tune.BATCH, "cpu", 64)
    monkeypatch.setattr(tunable, "TABLE_RATE", 1.0)  # in few steps far enough for another int8
    outputs = [tmp_path / f"tuned-{threads}.gguf" for threads in (1, 3)]
    for threads, output in zip((1, 3), outputs, strict=True):
        tuned(quantized, source, output, pieces(16, 32), threads, frugal=frugal)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert divergence(source, outputs[0]) < 0.95 * divergence(source, quantized)
    before, after = GGUFFile(quantized), GGUFFile(outputs[0])
    assert list(before.tensors) == list(after.tensors)
    changed = []
    for name, info in before.tensors.items():
        old, new = before.data(info), after.data(after.tensors[name])
        if fmt := CB_FORMATS.get(info.type):
            codes, selectors, d, library = codebook.unpack(old, *info.shape, fmt)
            now = codebook.unpack(new, *info.shape, fmt)
            assert np.array_equal(codes, now[0]), name
            assert np.array_equal(selectors, now[1]), name
            changed += [not np.array_equal(d, now[2]), not np.array_equal(library, now[3])]
        else:
            assert np.array_equal(old, new) == (not name.endswith("_norm.weight")), name
    assert any(changed[::2])
    assert any(changed[1::2])


@pytest.mark.torch
@pytest.mark.parametrize(("moment", "frugal"), [(1, False), (5, False), (3, True)])
def test_a_stopped_tuning_goes_on_to_the_same_file(tmp_path, source, quantized, monkeypatch, moment, frugal):
    monkeypatch.setitem(tune.BATCH, "cpu", 64)
    whole, stopped, checkpoint = (tmp_path / name for name in ("whole.gguf", "stopped.gguf", "tuning.pt"))
    tuned(quantized, source, whole, pieces(16, 32), frugal=frugal)
    monkeypatch.setattr(tune, "SAVED_EVERY", 0)
    descend, steps = tune._Tuning._descend, []

    def stops(self, batch):
        if len(steps) == moment:
            raise KeyboardInterrupt
        steps.append(batch)
        return descend(self, batch)

    monkeypatch.setattr(tune._Tuning, "_descend", stops)
    with pytest.raises(KeyboardInterrupt):
        tuned(quantized, source, stopped, pieces(16, 32), checkpoint=checkpoint, frugal=frugal)
    assert not stopped.exists()
    counted = []
    monkeypatch.setattr(tune._Tuning, "_descend", lambda self, b: counted.append(b) or descend(self, b))
    tuned(quantized, source, stopped, pieces(16, 32), checkpoint=checkpoint, frugal=frugal)
    assert len(counted) == 7 - moment  # 14 sequences are tuned with, two at a time
    assert stopped.read_bytes() == whole.read_bytes()


@pytest.mark.torch
def test_a_slower_day_does_not_change_how_many_tokens(tmp_path, text, monkeypatch):
    require_built()
    model = hf_model(tmp_path / "model", intermediate_size=448)
    options = ConversionOptions(type="cb2", calibration=text, tune=True, device="cpu", threads=1)
    asked, numbers = [], []

    def stops(path, source, original, output, pieces, known, **_):
        numbers.append(len(pieces))
        raise KeyboardInterrupt

    def per_token(self, tokens):
        asked.append(tokens.size)
        return 1e-3 * len(asked)

    monkeypatch.setattr(tune._Tuning, "seconds_per_token", per_token)
    monkeypatch.setattr(tune, "tune", stops)
    monkeypatch.setattr(tune, "LOOKS", 1)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            convert(model, options, tmp_path / "out.gguf")
    assert asked == [tune.BATCH["cpu"]]
    assert numbers[0] == numbers[1] > 0


@pytest.mark.torch
def test_as_many_tokens_as_there_is_time_for(source, quantized, monkeypatch):
    monkeypatch.setattr(tune._Tuning, "seconds_per_token", lambda self, tokens: 0.01)
    original = weights_of(source)

    def budget(seconds, writing):
        return tune.affordable(quantized, source, original, seconds, length=256, writing=writing, threads=1)

    assert budget(1000, 0) == 1024 * int(1000 / 10.24)
    assert budget(1000, 0.005) == 1024 * int(1000 / 15.36)
    assert budget(0, 0) == 1024 * 2 * tune.LOOKS
    assert budget(1e9, 0) == tune.MOST


@pytest.mark.torch
def test_a_checkpoint_of_another_text_is_not_used(tmp_path, source, quantized, monkeypatch, capsys):
    monkeypatch.setattr(tune, "SAVED_EVERY", 0)
    checkpoint, output = tmp_path / "tuning.pt", tmp_path / "tuned.gguf"
    tuned(quantized, source, output, pieces(16, 32, seed=3), checkpoint=checkpoint)
    tuned(quantized, source, output, pieces(16, 32), checkpoint=checkpoint)
    assert "not of this tuning; it starts anew" in capsys.readouterr().err
    alone = tmp_path / "alone.gguf"
    tuned(quantized, source, alone, pieces(16, 32))
    assert output.read_bytes() == alone.read_bytes()


@pytest.mark.torch
def test_what_is_known_is_tuned_with_and_tells_nothing(tmp_path, source, quantized, monkeypatch):
    own, known = pieces(16, 32), pieces(5, 32, seed=1)
    looked, tuned_with = [], []

    def descend(self, batch):
        tuned_with.extend(batch.tolist())
        self._adam.step()
        return 1.0

    monkeypatch.setattr(tune._Tuning, "_divergence", lambda self, held: looked.extend(held.tolist()) or 1.0)
    monkeypatch.setattr(tune._Tuning, "_descend", descend)
    original = weights_of(source)
    tune.tune(quantized, source, original, tmp_path / "tuned.gguf", own, known, seed=0, threads=1)
    assert all(piece in tuned_with for piece in known)
    assert all(piece in own and piece not in tuned_with for piece in looked)
    assert len(tuned_with) + len({tuple(piece) for piece in looked}) == 21
    assert tuned_with[-5:] != known  # they come in between


@pytest.mark.torch
def test_many_steps_are_smaller_ones(tmp_path, source, quantized, monkeypatch):
    monkeypatch.setitem(tune.BATCH, "cpu", 8)
    assert [tune.pace(steps) for steps in (1, 64)] == [1, 1]
    assert tune.pace(2048) == pytest.approx(0.5)
    most = []
    for few in (tune.FEW, 16):  # 112 steps
        monkeypatch.setattr(tune, "FEW", few)
        rates = []

        def descend(self, batch, rates=rates):
            rates.append(max(group["lr"] for group in self._adam.param_groups))
            self._adam.step()
            return 1.0

        monkeypatch.setattr(tune._Tuning, "_descend", descend)
        tuned(quantized, source, tmp_path / "tuned.gguf", pieces(128, 8))
        most.append(max(rates))
    assert most[0] / most[1] == pytest.approx(4**0.2)


@pytest.mark.torch
def test_steps_that_lead_away_change_nothing(tmp_path, source, quantized, monkeypatch):
    monkeypatch.setitem(tune.BATCH, "cpu", 64)
    monkeypatch.setattr(tunable, "TABLE_RATE", 1000.0)
    tuned(quantized, source, tmp_path / "tuned.gguf", pieces(16, 32))
    before, after = GGUFFile(quantized), GGUFFile(tmp_path / "tuned.gguf")
    for name, info in before.tensors.items():
        assert np.array_equal(before.data(info), after.data(after.tensors[name])), name


@pytest.mark.torch
@pytest.mark.parametrize("name", ["CB5", "CB6_64"])
def test_two_layers_are_tuned_together(name):
    """Gradients are those of the sum, and what is written adds up to an int8 wherever entries went."""
    require_built()
    fmt = {f.name: f for f in CB_FORMATS.values()}[name]
    w = np.random.default_rng(0).standard_normal((32, 512), dtype=np.float32)
    data = in_layers(w, fmt)
    tensor = tunable.Codebook(data, w.shape, fmt, torch.device("cpu"))
    assert np.array_equal(tensor.data(), data)
    assert np.array_equal(tensor.weights(), codebook.dequantize(data, *w.shape, fmt))

    direction = torch.randn(w.shape, generator=torch.manual_seed(0))
    change = torch.randn(tensor.entries.shape, generator=torch.manual_seed(1))
    before = tensor.weights()
    tensor.entries += change
    difference = float(((tensor.weights() - before) * direction).sum())
    assert difference == pytest.approx(float((tensor.reduce(direction)[0] * change).sum()), rel=1e-3)

    tensor.entries += 60 * change
    rounded, written = tensor.weights(rounded=True), tensor.data()
    assert np.array_equal(rounded, codebook.dequantize(written, *w.shape, fmt))
    codes, selectors, _, library = codebook.unpack(written, *w.shape, fmt)
    codes2, library2 = codebook.unpack_second(written, *w.shape, fmt)
    sums = codebook.entries(codes, selectors, library).astype(int)
    assert np.abs(sums + codebook.entries(codes2, selectors, library2)).max() == 127


# Codes of one and two weights, one and two layers; 40 rows of 192 in a slab, and the last one shorter.
FRUGAL = {
    "cb2": ("Qwen2ForCausalLM", {}),
    "cb3": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "cb25": ("LlamaForCausalLM", {"num_hidden_layers": 2}),
    "cb5": ("LlamaForCausalLM", {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}),
    "cb6": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
}


@pytest.mark.torch
@pytest.mark.parametrize("kind", FRUGAL)
def test_the_frugal_way_computes_what_the_usual_does(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(slabs.SLAB, "cpu", 192 * 40)
    architecture, config = FRUGAL[kind]
    source = open_source(hf_model(tmp_path / "model", architecture, dtype="F32", gain=1.0, **config))
    tokens = torch.tensor(pieces(2, 32))
    found, written = [], []
    with GGUFFile(quantize(source, tmp_path / "quantized.gguf", kind)) as file:
        for frugal in (False, True):
            tuning = tune.tuning_of(file, source, weights_of(source, frugal), 0, 1)
            assert tuning.is_frugal == frugal
            random = torch.Generator().manual_seed(0)
            for tensor in tuning._tuned.values():  # away from what is in the file, ratios less than entries
                for parameter, rate in tensor.parameters():
                    parameter += 8 * rate * torch.randn(parameter.shape, generator=random)
            with tuning._computing():
                loss, gradients = tuning._of_shard()(tokens)
            with torch.no_grad():
                rounded = tuning._loss(tuning._weights(rounded=True), tokens)
            found.append((loss, rounded, *gradients))
            written.append(np.concatenate([tensor.data() for tensor in tuning._tuned.values()]))
    assert np.array_equal(*written)
    for usual, frugal in zip(*found, strict=True):
        assert float((frugal - usual).norm()) <= 1e-4 * float(usual.norm()) > 0


@pytest.mark.torch
@pytest.mark.parametrize("name", ["CB2", "CB3_64", "CB25", "CB6"])
def test_sums_within_groups_and_then_of_groups_are_those_by_place(name):
    """What a GPU does with packed codes."""
    fmt = {f.name: f for f in CB_FORMATS.values()}[name]
    _, (rows, k), data = cb_tensor(fmt.type, 64, 512)
    tensor = tunable.Codebook(data, (rows, k), fmt, torch.device("cpu"), packed=True)
    values, first = torch.randn(3 * k, generator=torch.manual_seed(0)), 0
    for layer, codes in zip(fmt.layers, tensor.codes, strict=True):
        some = codes.some(torch.tensor([5, 63, 5]))
        expected = some.sums(values)[first : first + layer.library_bytes]
        assert expected.count_nonzero() > 100
        torch.testing.assert_close(some.by_table(values).flatten(), expected)
        first += layer.library_bytes


@pytest.mark.torch
def test_memory_is_as_reckoned_and_little_in_the_frugal_way(tmp_path, monkeypatch):
    monkeypatch.setitem(tune.BATCH, "cpu", 256)
    monkeypatch.setitem(slabs.SLAB, "cpu", 1 << 18)
    monkeypatch.setattr(tune, "SHARDS", 1)
    monkeypatch.setattr(tuning_memory, "PROGRAM", 0)
    monkeypatch.setattr(tuning_memory, "FREED", 1)
    model = argparse.Namespace(
        hidden=512, layers=4, inner=1024, heads=8, kv_heads=2, vocabulary=4096, type="cb2", untied=False
    )
    source = random_source(model)
    path = random_file(model, tmp_path / "random.gguf")
    tokens = torch.from_numpy(np.random.default_rng(0).integers(model.vocabulary, size=(1, 256)))
    most = {}
    for frugal in (False, True):
        with GGUFFile(path) as file, peak() as bytes_:
            types = {name: CB_FORMATS.get(tensor.type) for name, tensor in file.tensors.items()}
            tuning = tune.tuning_of(file, source, weights_of(source, frugal), 0, 1)
            with tuning._computing():
                tuning._of_shard()(tokens)
            most[frugal] = bytes_.most
    needed = tune.needs(source, types, torch.device("cpu"))
    assert 0.85 * needed.usual() < most[False] < 1.05 * needed.usual()
    assert 0.4 * needed.frugal() < most[True] < needed.frugal()
    assert 4 * most[True] < most[False]


def llama(hidden, inner, layers, heads, vocabulary, untied):
    """A model's shapes; nothing of it is read."""
    return random_source(argparse.Namespace(kv_heads=8, **locals()))


def types_of(source, kind="cb4"):
    matrices = [t for t in source.tensors if not t.keeps_f32]
    return {t.name: CB_FORMATS.get(TYPES[kind].id_for(t.shape) or 0) for t in matrices}


@pytest.mark.torch
def test_the_frugal_way_is_taken_where_the_usual_does_not_fit(monkeypatch, capsys):
    cuda, source = torch.device("cuda"), llama(4096, 14336, 32, 32, 128256, untied=True)
    types = types_of(source)
    total = 24 * 2**30
    monkeypatch.setattr(tuning_memory, "available", lambda device: int(0.95 * total))
    monkeypatch.setattr(tune, "available", lambda device: int(0.95 * total))
    assert tune.is_frugal(source, types, cuda, aloud=True)
    assert re.search(r"frugally, in 2\d\.\d GB: the usual way.* takes 1\d\d\.", capsys.readouterr().err)
    small = llama(768, 2048, 12, 12, 16384, untied=False)
    assert not tune.is_frugal(small, types_of(small), cuda, aloud=True)
    assert capsys.readouterr().err == ""
    network = network_of(source)
    assert at_once(network_of(small), small.tensors, cuda, 256, most=1024, frugal=False) == 1024
    assert at_once(network, source.tensors, cuda, 256, most=1024, frugal=True) == 128
    total = 16 * 2**30
    with pytest.raises(LutraError, match=r"--tune: needs 2\d\.\d GB, a GPU has 16\.3 GB.*take --device cpu"):
        tune.is_frugal(source, types, cuda)
    with pytest.raises(LutraError, match=r"this machine has 16\.3 GB for it; convert without it"):
        tune.is_frugal(source, types, torch.device("cpu"))
    monkeypatch.setattr(tune, "device_of", lambda name: cuda)
    with pytest.raises(LutraError, match="--tune: needs"):
        tune.require(source)


@pytest.mark.torch
def test_a_conversion_tunes_frugally_where_memory_is_little(tmp_path, text, monkeypatch, capsys):
    require_built()
    model = hf_model(tmp_path / "model", intermediate_size=448)
    options = ConversionOptions(
        type="cb2", calibration=text, tune=True, tune_tokens=4096, device="cpu", threads=1
    )
    source = open_source(model)
    monkeypatch.setitem(slabs.SLAB, "cpu", 1 << 13)
    monkeypatch.setattr(tune, "available", lambda device: 1 << 28)
    with pytest.raises(LutraError, match="--tune: needs"):
        convert(model, options, tmp_path / "out.gguf")
    needed = tune.needs(source, types_of(source, "cb2"), torch.device("cpu"))
    frugal, usual = needed.frugal(), needed.usual()
    assert frugal < usual
    monkeypatch.setattr(tune, "available", lambda device: usual - (1 << 20))
    taken = []
    tuning_of = tune.tuning_of
    monkeypatch.setattr(tune, "tuning_of", lambda *given: taken.append(tuning_of(*given)) or taken[-1])
    convert(model, options, tmp_path / "out.gguf")
    assert [tuning.is_frugal for tuning in taken] == [True]
    assert "tuning frugally" in capsys.readouterr().err


@pytest.mark.torch
def test_sums_in_the_order_of_places_are_those_in_any():
    place = torch.randint(0, 50, (4096,), generator=torch.manual_seed(0))
    values = torch.randn(4096, generator=torch.manual_seed(1))
    expected = torch.zeros(60).index_add_(0, place, values)
    torch.testing.assert_close(Sorted(place, 60).sums(values), expected)


@pytest.mark.torch
def test_a_cache_predicts_what_the_whole_sequence_does(source):
    network, weights = LlamaNetwork.of(source), weights_of(source)
    tokens = torch.tensor(pieces(2, 12))
    whole = network.forward(weights, tokens)
    cache = Cache(network, 2, 12, torch.device("cpu"))
    parts = [network.forward(weights, part, cache) for part in tokens.split([5, 1, 6], 1)]
    # It holds keys and values in bfloat16.
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=0.05 * float(whole.std()))
    assert network.cache_bytes(12) == (cache._memory.nbytes + 2 * cache._memory[:, 0].nbytes) / 2


@pytest.mark.torch
def test_a_cache_of_transformers_does_so_beyond_a_window(tmp_path):
    pytest.importorskip("transformers", reason="the networks are not installed")
    source = open_source(hf_model(tmp_path / "model", "Gemma3ForCausalLM", dtype="F32", **SMALL))
    network, tokens = network_of(source), torch.tensor(pieces(2, 80))
    predict = network.bound(weights_of(source))
    cache = network.cache(2, 80, torch.device("cpu"))
    with torch.no_grad():
        parts = [predict(part, cache) for part in tokens.split([70, 1, 9], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), predict(tokens))
    held = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    assert held / 2 < network.cache_bytes(80) < 3 * held / 2  # of a window less is held; a copy of one layer


@pytest.mark.torch
@pytest.mark.parametrize("frugal", [False, True])
def test_a_network_writes_what_it_predicts(source, frugal):
    network, weights = LlamaNetwork.of(source), weights_of(source, frugal)

    def anything():
        token = yield 7
        while True:
            token = yield token

    samples = NetworkSampling(network, weights, length=4)
    cold, again, hot = (
        samples.write([anything() for _ in range(3)], [temperature] * 3, 0, lambda n: None)
        for temperature in (1e-4, 1e-4, 1e4)
    )
    expected = [7]
    for _ in range(3):
        expected.append(int(network.forward(weights, torch.tensor([expected]))[0, -1].argmax()))
    assert cold == again == [expected] * 3
    assert len({tuple(tokens) for tokens in hot}) == 3


@pytest.mark.torch
def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        assert tune.device_of("auto").type == "cuda"
        return
    assert tune.device_of("auto").type == "cpu"
    with pytest.raises(LutraError, match=r"no GPU; take --device cpu"):
        tune.device_of("cuda")


@pytest.mark.torch
def test_nothing_is_left_of_a_tuning_that_fails(tmp_path, source, quantized):
    output = tmp_path / "out" / "tuned.gguf"
    output.parent.mkdir()
    with pytest.raises(IndexError):
        tuned(quantized, source, output, [[264] * 8])  # no such token
    assert list(output.parent.iterdir()) == []


@pytest.mark.torch
def test_what_it_cannot_compute_is_refused(source):
    tune.require(source)
    with pytest.raises(LutraError, match=r"'gemma3'.*convert without"):
        tune.require(replace(source, architecture="gemma3", gguf=source.path))
    extra = replace(source.tensors[0], name="blk.0.attn_q_norm.weight")
    with pytest.raises(LutraError, match=r"blk\.0\.attn_q_norm\.weight"):
        tune.require(replace(source, tensors=[*source.tensors, extra]))


@pytest.mark.torch
def test_families_that_need_transformers_say_so(tmp_path, monkeypatch):
    source = open_source(hf_model(tmp_path / "model", "Qwen3ForCausalLM"))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name)
    )
    with pytest.raises(LutraError, match=r"'qwen3' needs transformers: run pip install \"lutra-llm\[hf\]\""):
        tune.require(source)


def test_without_torch_it_says_what_to_install(source, monkeypatch):
    monkeypatch.setattr(tune.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LutraError, match="pip install torch"):
        tune.require(source)


@pytest.mark.parametrize(
    ("options", "what", "advice"),
    [
        (["--type", "q4_k"], "--tune needs codebooks and a text", "--calibration default"),
        (["--type", "cb2", "--no-calibration"], "--no-calibration and --tune contradict", "drop one of them"),
    ],
)
def test_it_needs_codebooks_and_a_text(tmp_path, options, what, advice):
    done = lutra("convert", TINY_CHAT, *options, "--tune", "-o", tmp_path / "out.gguf")
    assert_error(done, what, advice)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torch
def test_room_for_all_of_it_is_asked_for_before_any_work(tmp_path, text, monkeypatch):
    require_built()
    model = hf_model(tmp_path / "model", intermediate_size=448)
    options = ConversionOptions(
        type="cb2",
        calibration=text,
        calibration_tokens=512,
        tune=True,
        tune_tokens=1024,
        device="cpu",
        threads=1,
    )
    convert(model, options, tmp_path / "out.gguf")
    size = (tmp_path / "out.gguf").stat().st_size
    (tmp_path / "out.gguf").unlink()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * size))
    with pytest.raises(LutraError, match=r"out.gguf: needs .* MiB, .* free; make room"):
        convert(model, options, tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.txt"]


@pytest.mark.torch
def test_where_there_are_no_codebooks_it_says_so(tmp_path, text, capsys):
    require_built()
    options = ConversionOptions(
        type="cb2", tensor_types=[".*=q8_0"], embedding_type="q8_0", output_type="q8_0",
        calibration=text, tune=True, device="cpu", threads=1,
    )  # fmt: skip
    convert(hf_model(tmp_path / "model"), options, tmp_path / "out.gguf")
    assert "nothing to tune" in capsys.readouterr().err
