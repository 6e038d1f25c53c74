# SPDX-License-Identifier: MIT
"""Models that llama.cpp's converter reads: when it is asked, what it leaves, what it says.

The converter is a stand-in, but in the tests with torch: those run it on small models of transformers.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from cli_runner import environment, lutra, require_built, signalled
from gguf import GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf_samples import F16, byte_level_tokenizer, hf_model, sample_gguf, u32, write_gguf

from gguf_tools.errors import LutraError
from gguf_tools.formats.keys import END_TOKENS_KEY
from gguf_tools.reader import GGUFFile
from gguf_tools.sources import llama_converter
from gguf_tools.sources.llama_converter_child import completed, has_mtp
from gguf_tools.sources.open import Scratch, open_source
from gguf_tools.sources.vocab import with_ends

SAMPLE = """import json, pathlib, shutil, sys
out = sys.argv[sys.argv.index('--outfile') + 1]
pathlib.Path(__file__).with_name("seen").write_text(json.dumps(sys.argv[1:]))
"""


class Converter:
    """A stand-in for llama.cpp's, with the packages that it needs; it copies a small GGUF."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "conversion").mkdir(parents=True)
        for name in llama_converter.PACKAGES:
            (directory / f"{name}.py").write_text("")
        self.sample = sample_gguf(directory / "sample.gguf")
        self.does(f"shutil.copyfile({str(self.sample)!r}, out)")

    def does(self, line: str) -> None:
        """Run ``line`` instead."""
        (self.directory / llama_converter.SCRIPT).write_text(SAMPLE + line)

    @property
    def arguments(self) -> list[str] | None:
        """What it was called with last; None if it was not."""
        seen = self.directory / "seen"
        return json.loads(seen.read_text()) if seen.exists() else None


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Converter:
    made = Converter(tmp_path / "converter")
    shutil.rmtree(made.directory / "conversion")
    monkeypatch.setenv("LUTRA_CONVERTER_DIR", str(made.directory))
    monkeypatch.setenv("PYTHONPATH", environment({})["PYTHONPATH"] + f":{made.directory}")
    monkeypatch.syspath_prepend(made.directory)
    return made


def other(directory: Path, architecture: str = "ArceeForCausalLM", **config) -> Path:
    """A model of an architecture that is not read directly."""
    return edited(hf_model(directory), "config.json", architectures=[architecture], **config)


def edited(model: Path, name: str, **changes) -> Path:
    """``model`` with keys of a JSON file set, or taken out if None."""
    path = model / name
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: entry for key, entry in value.items() if entry is not None}))
    return model


def refused(source: Path, *words: str) -> None:
    with pytest.raises(LutraError) as error:
        open_source(source, Scratch(source.parent / "scratch.gguf"))
    assert "\n" not in str(error.value)
    for word in (str(source), *words):
        assert word in str(error.value)


# ---- when ----------------------------------------------------------------------------------


def test_without_its_packages_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTRA_CONVERTER_DIR", str(tmp_path))
    refused(
        other(tmp_path / "m"),
        "ArceeForCausalLM is not read directly, as bitnet, gemma, granite, llama, ",
        'after pip install "lutra-llm[hf]" the same command converts it',
    )


def test_a_model_that_llama_cpp_computes_otherwise_says_so(tmp_path, converter, caplog):
    for name, warned in (("ArceeForCausalLM", False), ("PhiMoEForCausalLM", True)):
        with open_source(other(tmp_path / name, name), Scratch(tmp_path / "x.gguf")):
            pass
        assert (f"{name}: not the same model in llama.cpp" in caplog.text) is warned


def test_what_the_converter_does_not_know_either(tmp_path, converter):
    (converter.directory / "conversion").mkdir()
    names = converter.directory / "conversion" / "__init__.py"
    names.write_text('TEXT_MODEL_MAP: dict[str, str] = {"ArceeForCausalLM": "llama"}')
    refused(
        other(tmp_path / "n", "NewForCausalLM"), "llama.cpp's converter does not know NewForCausalLM either"
    )
    shutil.rmtree(names.parent)
    with open_source(other(tmp_path / "m"), Scratch(tmp_path / "x.gguf")):
        assert converter.arguments


def test_other_architectures(tmp_path, converter):
    """The source is what the converter wrote; its failure is reported."""
    model = other(tmp_path / "m")
    with open_source(model, Scratch(tmp_path / "x.gguf")) as source:
        assert [t.name for t in source.tensors] == list(GGUFFile(converter.sample).tensors)
        assert all(t.read().size for t in source.tensors)
        assert source.gguf == tmp_path / "x.gguf"
    assert not (tmp_path / "x.gguf").exists()
    converter.does("raise SystemExit('no such model')")
    refused(model, "ArceeForCausalLM", "no such model")


def test_what_a_family_does_not_read(tmp_path, converter):
    """Its converter reads it where it can run; otherwise the refusal says what is not read."""
    tokens = hf_model(tmp_path / "tokens")
    tokenizer, _ = byte_level_tokenizer(r"\w+|\W+")
    (tokens / "tokenizer.json").write_text(json.dumps(tokenizer))
    words = hf_model(tmp_path / "words")
    (words / "tokenizer.json").rename(words / "vocab.json")
    pickles = hf_model(tmp_path / "pickles")
    (pickles / "model.safetensors").rename(pickles / "pytorch_model.bin")
    models = {tokens: "pre-tokenizer", words: "no tokenizer", pickles: "pickles"}
    for model in models:
        with open_source(model, Scratch(tmp_path / "x.gguf")) as source:
            assert [t.name for t in source.tensors] == list(GGUFFile(converter.sample).tensors)
    converter.does("raise SystemExit('nor here')")
    for model, what in models.items():
        refused(model, what, "; llama.cpp's converter failed: nor here")
    (converter.directory / "torch.py").unlink()
    (converter.directory / llama_converter.SCRIPT).unlink()
    for model, what in models.items():
        refused(model, what, 'pip install "lutra-llm[hf]"')


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_the_code_of_a_model_is_not_run(tmp_path, converter, name):
    """The converter trusts the directory: transformers would import what auto_map names."""
    model = other(tmp_path / "m")
    edited(model, name, auto_map={"AutoTokenizer": ["tokenization.Evil", None]})
    refused(model, f"{name}: ArceeForCausalLM comes with Python code", "if you trust it")
    assert converter.arguments is None
    # Code of the network is not what the converter runs, if the tokenizer's class is known.
    edited(model, name, auto_map=None)
    edited(model, "config.json", auto_map={"AutoConfig": "configuration.Evil"})
    edited(model, "tokenizer_config.json", tokenizer_class=None)
    refused(model, "config.json: ArceeForCausalLM comes with Python code")
    assert converter.arguments is None
    edited(model, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    open_source(model, Scratch(tmp_path / "x.gguf")).close()
    assert converter.arguments


# ---- the file on the way -------------------------------------------------------------------


def test_the_file_lies_beside_the_output_and_goes(tmp_path, converter):
    model, out = other(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    options = ["convert", model, "--type", "f16", "-o", out / "x.gguf"]
    done = lutra(*options)
    assert done.returncode == 0, done.stderr
    made = out / ".x.gguf.converted.gguf"
    assert converter.arguments[:5] == [str(model), "--outtype", "f16", "--outfile", str(made)]
    assert f"llama.cpp's converter reads it, by way of {made} (" in done.stderr
    assert [path.name for path in out.iterdir()] == ["x.gguf"]
    (out / "x.gguf").unlink()
    converter.does("open(out, 'wb').write(b'half'); raise ValueError('of this')")
    done = lutra(*options)
    assert "converter failed: ValueError: of this" in done.stderr.splitlines()[-1]
    assert not list(out.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_converter_leaves_nothing(tmp_path, converter, number, code):
    out = tmp_path / "out"
    out.mkdir()
    converter.does(
        f"import os, signal, time; open(out, 'wb').write(b'half'); os.kill(os.getppid(), {int(number)}); "
        f"time.sleep(60)"
    )
    done = lutra("convert", other(tmp_path / "m"), "--type", "f16", "-o", out / "x.gguf")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.iterdir())


def test_a_stopped_conversion_goes_on(tmp_path, converter):
    """The converter runs again, the finished tensors are taken."""
    model, out = other(tmp_path / "m"), tmp_path / "out"
    w = np.random.default_rng(0).standard_normal((3, 256, 256)).astype(np.float16)
    write_gguf(converter.sample, {f"blk.{i}.ffn_up.weight": (F16, w[i].shape, w[i]) for i in range(3)})
    out.mkdir()
    options = ["convert", model, "--type", "cb4", "--no-calibration", "--threads", 1, "-o"]
    save = "lutra.conversion.workdir:WorkDirectory.save"
    assert signalled(signal.SIGINT, save, *options, out / "x.gguf", nth=3).returncode == 130
    assert [path.name for path in out.iterdir()] == [".x.gguf.lutra-work"]
    done = lutra(*options, out / "x.gguf")
    assert "going on: 2 tensors were finished before" in done.stderr
    assert [path.name for path in out.iterdir()] == ["x.gguf"]
    assert lutra(*options, tmp_path / "y.gguf").returncode == 0
    assert (tmp_path / "y.gguf").read_bytes() == (out / "x.gguf").read_bytes()


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3", "longrope"])
def test_rope_that_the_converter_leaves_out(tmp_path, converter, kind):
    """It only says that it does not know it, or nothing."""
    scaling = {"rope_type": kind, "factor": 2.0}
    model = other(tmp_path / "m", rope_scaling=scaling)
    refused(model, f"rope type '{kind}' is none that llama.cpp's converter writes for a llama")
    edited(model, "config.json", rope_scaling=scaling | {"rope_type": "dynamic"})
    open_source(model, Scratch(tmp_path / "x.gguf")).close()


def test_another_conversion_to_the_same_output(tmp_path, converter):
    scratch = Scratch(tmp_path / "x.gguf")
    with open_source(other(tmp_path / "m"), scratch) as source:
        with pytest.raises(LutraError, match=r"x\.gguf: another conversion to this output is running"):
            open_source(source.path, scratch)
        assert source.tensors[0].read().size


def test_room_is_checked_first(tmp_path, converter, monkeypatch):
    model = other(tmp_path / "m")
    weights = llama_converter._weights(model)
    assert 2 * weights == pytest.approx((model / "model.safetensors").stat().st_size, rel=0.01)  # BF16
    usage = namedtuple("usage", "total used free")
    for free, fits in ((2.5 * weights, True), (2.5 * weights - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(0, 0, free))
        if fits:
            open_source(model, Scratch(tmp_path / "x.gguf", lambda n: n // 2)).close()
            (converter.directory / "seen").unlink()
            continue
        with pytest.raises(LutraError, match=r"needs .* GB for an F16 file on the way, .*-o"):
            open_source(model, Scratch(tmp_path / "x.gguf", lambda n: n // 2))
        assert converter.arguments is None


def test_the_place_of_an_error(converter):
    own = converter.directory / "conversion" / "glm.py"
    log = f"""INFO:hf-to-gguf:loading
Traceback (most recent call last):
  File "{converter.directory / "convert_hf_to_gguf.py"}", line 300, in <module>
    main()
  File "{own}", line 42, in set_vocab
    self.x["y"]
  File "/lib/other.py", line 7, in __getitem__
    raise KeyError(
        y)
KeyError: 'y'
of several lines
"""
    assert llama_converter._reason(log, 1) == "KeyError: 'y' (conversion/glm.py, line 42)"
    assert llama_converter._reason("INFO:x\nERROR:hf-to-gguf:Model A is not supported\n", 1) == (
        "Model A is not supported"
    )
    assert llama_converter._reason("", 1) == "no message"
    assert "SIGKILL ended it, as happens when memory runs out" in llama_converter._reason("INFO:x\n", -9)


def test_compare_asks_the_converter_once(tmp_path, converter):
    """The other types are made of the base."""
    require_built()
    model = other(tmp_path / "m")
    w = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float16)
    write_gguf(converter.sample, {"blk.0.ffn_up.weight": (F16, w.shape, w)})
    done = lutra("compare", model, "--types", "cb4", "--no-calibration", "--out-dir", tmp_path / "out")
    assert done.stderr.count("llama.cpp's converter reads it") == 1
    path = tmp_path / "x.gguf"
    assert lutra("convert", model, "--type", "cb4", "--no-calibration", "-o", path).returncode == 0
    assert path.read_bytes() == (tmp_path / "out" / "m-cb4.gguf").read_bytes()


# ---- what the converter does not see -------------------------------------------------------


def test_config_as_transformers_5_writes_it():
    rope = {"rope_parameters": {"partial_rotary_factor": 0.25}}
    assert completed({"architectures": ["GPTNeoXForCausalLM"], **rope}, {})["rotary_pct"] == 0.25
    given = completed({"architectures": ["Cohere2ForCausalLM"]}, {"rotary_pct": 0.5, "head_dim": None})
    assert given["rotary_pct"] == 0.5
    assert "head_dim" not in given
    minimax = {"architectures": ["MiniMaxM2ForCausalLM"], "head_dim": 128, **rope}
    assert completed(minimax, {})["rotary_dim"] == 32
    falcon = {"architectures": ["FalconH1ForCausalLM"], "hidden_size": 96, "num_attention_heads": 4}
    assert completed(falcon, {})["head_dim"] == 24
    assert completed({"architectures": ["GPT2LMHeadModel"], "n_positions": 64}, {})["n_ctx"] == 64
    within = {"text_config": {"architectures": ["DeepseekV3ForCausalLM"]}}
    assert completed(within, {})["text_config"]["scoring_func"] == "sigmoid"
    granite = {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "layer_types": ["linear_attention", "full_attention"],
    }
    assert completed(granite, {})["layer_types"] == ["mamba", "attention"]
    qwen = {"architectures": ["Qwen3NextForCausalLM"], "layer_types": ["linear_attention"]}
    assert completed(qwen, {}) == qwen


def test_all_that_ends_a_text(tmp_path):
    """The converter does not read generation_config.json, and lets EOS follow every prompt."""
    t, tokens = GGUFValueType, [*"abcdef", b"g", b"</s>"]
    keys = {
        "general.architecture": GGUFValue("x", t.STRING),
        "tokenizer.ggml.tokens": GGUFValue(tokens, t.ARRAY, t.STRING),
        "tokenizer.ggml.eos_token_id": u32(1),
        "tokenizer.ggml.eot_token_id": u32(2),
        "tokenizer.ggml.add_eos_token": GGUFValue(True, t.BOOL),
    }
    model = hf_model(tmp_path / "m")
    ends = {"eos_token_id": [1, 2, 3, 4, "5", 7, 99]}
    (model / "generation_config.json").write_text(json.dumps(ends))
    found = {key: value.value for key, value in with_ends(keys, model).items()}
    assert found["tokenizer.ggml.add_eos_token"] is False
    assert [found[f"tokenizer.ggml.{kind}_token_id"] for kind in ("eos", "eot", "eom")] == [1, 2, 3]
    assert found[END_TOKENS_KEY] == "4 5"
    assert found["general.architecture"] == "x"


def test_layers_that_predict_several_tokens(tmp_path):
    model = hf_model(tmp_path / "m")
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    assert not has_mtp(model, {"num_hidden_layers": layers})
    assert has_mtp(model, {"text_config": {"num_hidden_layers": layers - 1}})
