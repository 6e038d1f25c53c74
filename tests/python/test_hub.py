# SPDX-License-Identifier: MIT
"""Models by their names: what is fetched of a hub, gone on with, kept, listed and removed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cli_runner import TINY_CHAT, assert_error, environment, lutra, require_built
from hub_server import Hub, serve
from quantized_samples import FORMS, quantized_model
from serving import serving

from gguf_tools.errors import LutraError
from gguf_tools.mapped import MappedFile
from gguf_tools.reader import GGUFFile
from gguf_tools.sources import hub as hub_module
from gguf_tools.sources import hub_cache, hub_headers, safetensors
from gguf_tools.sources.hub import is_name
from gguf_tools.sources.hub_cache import gguf_types
from lutra.conversion.options import source_name

NEEDED = {path.name for path in TINY_CHAT.iterdir()}
GGUF = "org/tiny-chat-GGUF"


@pytest.fixture(scope="module")
def f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as F16, by its directory."""
    made = tmp_path_factory.mktemp("f16") / "tiny-chat-f16.gguf"
    assert lutra("convert", TINY_CHAT, "--type", "f16", "-o", made).returncode == 0
    return made


@pytest.fixture
def hub(tmp_path: Path, f16: Path) -> Iterator[Hub]:
    """A hub with the bundled model, as people save it, and with GGUF files of it."""
    model = tmp_path / "hub" / "model"
    shutil.copytree(TINY_CHAT, model)
    for name in (
        "consolidated.safetensors",
        "pytorch_model.bin",
        "onnx/model.onnx",
        "code.py",
        "picture.png",
    ):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"not needed")
    files = tmp_path / "hub" / "files"
    files.mkdir()
    for name in ("tiny-chat-f16.gguf", "tiny-chat.Q8_0.gguf", "mmproj-tiny-chat-f16.gguf"):
        shutil.copy(f16, files / name)
    with serve({"org/tiny-chat": model, GGUF: files}) as hub:
        yield hub


@pytest.fixture
def run(tmp_path: Path, hub: Hub):
    """``lutra`` with a cache of its own, in a directory of its own."""
    work = tmp_path / "work"
    work.mkdir()

    def run(*args: object, **extra: str) -> subprocess.CompletedProcess[str]:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
        return lutra(*args, cwd=work, env=env | extra)

    return run


# ---- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["org/model", "org/model-GGUF:q4_k_m", "Org_1/Model-1.5B.v2", Path("a/b")])
def test_names(text: str | Path) -> None:
    assert is_name(text)


@pytest.mark.parametrize(
    "text", ["model", "a/b/c", "./model", "../model", "/a", "dir/model.gguf", "a/b:", "a b/c"]
)
def test_no_names(text: str) -> None:
    assert not is_name(text)


def test_what_is_here_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_name("org/model")
    assert is_name("org/other")


def test_output_is_named_after_the_model() -> None:
    assert source_name("org/Model-1.5B") == "Model-1.5B"
    assert source_name("org/Model-1.5B-GGUF:bf16") == "Model-1.5B"


def test_types_of_files() -> None:
    names = [
        "Model-1.5B-Q4_K_M.gguf", "Model-1.5B.IQ3_XXS.gguf", "Model-UD-Q4_K_XL.gguf", "model-cb4_m.gguf",
        "model-cb25.gguf",
        "big/Model-BF16-00002-of-00002.gguf", "big/Model-BF16-00001-of-00002.gguf", "model-3.5bpw.gguf",
        "mmproj-F16.gguf", "model.imatrix.gguf", "README.md", "plain.gguf", "one-q8_0.gguf", "two-q8_0.gguf",
    ]  # fmt: skip
    assert gguf_types(names) == {
        "q4_k_m": ["Model-1.5B-Q4_K_M.gguf"],
        "iq3_xxs": ["Model-1.5B.IQ3_XXS.gguf"],
        "ud-q4_k_xl": ["Model-UD-Q4_K_XL.gguf"],
        "bf16": ["big/Model-BF16-00001-of-00002.gguf", "big/Model-BF16-00002-of-00002.gguf"],
        "3.5bpw": ["model-3.5bpw.gguf"],
        "cb4_m": ["model-cb4_m.gguf"],
        "cb25": ["model-cb25.gguf"],
        "one-q8_0": ["one-q8_0.gguf"],
        "plain": ["plain.gguf"],
        "two-q8_0": ["two-q8_0.gguf"],
    }


def assert_same_model(made: Path, of_a_directory: Path) -> None:
    """The files differ in one thing: one of them knows which model of the hub it is."""
    with GGUFFile(made) as a, GGUFFile(of_a_directory) as b:
        metadata = dict(a.metadata)
        assert metadata.pop("general.source.repo_url").value == "https://huggingface.co/org/tiny-chat"
        assert metadata == b.metadata
        assert list(a.tensors) == list(b.tensors)
        for name in a.tensors:
            assert a.data(a.tensors[name]).tobytes() == b.data(b.tensors[name]).tobytes()


# ---- fetching ------------------------------------------------------------------------------


def test_convert_fetches_what_it_needs_and_makes_the_same_file(
    hub: Hub, run, tmp_path: Path, f16: Path
) -> None:
    done = run("convert", "org/tiny-chat", "--type", "f16")
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == NEEDED
    assert_same_model(tmp_path / "work" / "tiny-chat-f16.gguf", f16)
    hub.sent.clear()
    assert run("convert", "org/tiny-chat", "--type", "q8_0", "--dry-run").returncode == 0
    assert not hub.fetched()


def test_only_the_parts_of_the_index_are_fetched(hub: Hub, run, tmp_path: Path) -> None:
    model = hub.models["org/tiny-chat"]
    weights = (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    (model / "model-00009-of-00009.safetensors").write_bytes(b"left over")
    data = weights.read_bytes()
    names = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    names.pop("__metadata__", None)
    index = {"weight_map": dict.fromkeys(names, weights.name)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    done = run("convert", "org/tiny-chat", "--type", "f16")
    assert done.returncode == 0, done.stderr
    extra = {"model.safetensors.index.json", weights.name}
    assert hub.fetched() == NEEDED - {"model.safetensors"} | extra
    assert "safetensors" in run("ls").stdout
    next((tmp_path / "hf").rglob(weights.name)).unlink()  # as after Ctrl-C between two parts
    assert "unfinished" in run("ls").stdout


def test_interrupted_in_a_file_and_resumed(hub: Hub, run, tmp_path: Path, f16: Path) -> None:
    size = (TINY_CHAT / "model.safetensors").stat().st_size
    hub.breaks_after = 12_000_000
    assert_error(run("convert", "org/tiny-chat", "--type", "f16"), "the same command goes on")
    assert hub.sent["model.safetensors"] == 12_000_000
    assert "unfinished" in run("ls").stdout
    hub.breaks_after, hub.down = None, False
    done = run("convert", "org/tiny-chat", "--type", "f16")
    assert done.returncode == 0, done.stderr
    written = 10 * 2**20  # huggingface_hub writes in chunks of this size
    assert hub.sent["model.safetensors"] == 12_000_000 + size - written
    assert hub.sent["tokenizer.json"] == (TINY_CHAT / "tokenizer.json").stat().st_size
    assert_same_model(tmp_path / "work" / "tiny-chat-f16.gguf", f16)
    assert "unfinished" not in run("ls").stdout


def test_a_dry_run_fetches_headers_of_weights_only(hub: Hub, run, tmp_path: Path, f16: Path) -> None:
    require_built()
    dry = ("--type", "cb4", "--dry-run")
    done = run("convert", "org/tiny-chat", *dry)
    assert done.stdout == lutra("convert", TINY_CHAT, *dry).stdout, done.stderr
    assert "CB4" in done.stdout
    assert hub.fetched() == NEEDED
    assert hub.sent["model.safetensors"] == hub_headers.FIRST
    hub.sent.clear()
    done = run("convert", f"{GGUF}:f16", *dry)
    assert done.stdout == lutra("convert", f16, *dry).stdout, done.stderr
    assert hub.sent == {"tiny-chat-f16.gguf": hub_headers.FIRST}
    assert not list((tmp_path / "work").iterdir())
    hub.sent.clear()  # llama-quantize wants a whole file
    assert run("convert", "org/tiny-chat", "--type", "q4_k", "--dry-run").returncode == 0
    assert hub.sent["model.safetensors"] == (TINY_CHAT / "model.safetensors").stat().st_size


def test_a_dry_run_does_not_look_at_weights(hub: Hub, run, tmp_path: Path) -> None:
    """Those of files that are not there yet are zeros, by which a scale of BitLinear is no number."""
    require_built()
    form, size = FORMS["bitnet"], {"hidden_size": 768}  # so that matrices lie behind what is fetched
    model, _ = quantized_model(tmp_path, form.settings, form.make, "LlamaForCausalLM", **size)
    hub.models["org/bitnet"] = model
    done = run("convert", "org/bitnet", "--type", "cb4", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "CB4" in done.stdout


@pytest.mark.parametrize("first", [64, 5000])
def test_a_header_of_any_length_is_fetched(
    hub: Hub, f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(hub_headers, "FIRST", first)
    url = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name, file in (("org/tiny-chat", "model.safetensors"), (GGUF, "tiny-chat-f16.gguf")):
        whole = hub.models[name] / file
        made = tmp_path / file
        hub_headers.fetch_header(name, file, whole.stat().st_size, made)
        assert made.stat().st_size == whole.stat().st_size
        assert sum(file in asked for asked in hub.asked) > 1
        if made.suffix == ".gguf":
            with GGUFFile(made) as a, GGUFFile(whole) as b:
                assert (a.metadata, a.tensors) == (b.metadata, b.tensors)
        else:
            with ExitStack() as resources:
                assert len(safetensors._read_part(resources.enter_context(MappedFile(made)))) > 0


def test_a_gated_model(hub: Hub, run) -> None:
    hub.gated.add("org/tiny-chat")
    done = run("convert", "org/tiny-chat", "--type", "f16", "--dry-run")
    assert_error(done, "gated", f"{hub.url}/org/tiny-chat", "HF_TOKEN")
    assert run("convert", "org/tiny-chat", "--type", "f16", "--dry-run", HF_TOKEN="hf_x").returncode == 0


def test_a_token_stays_with_the_hub(hub: Hub, run) -> None:
    hub.storage = hub.url.replace("127.0.0.1", "localhost")
    done = run("convert", "org/tiny-chat", "--type", "f16", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == NEEDED
    assert hub.shown == {hub.url.removeprefix("http://"): {"Bearer hf_secret"}}


def test_what_cannot_be_read_is_refused_before_its_weights_are_fetched(hub: Hub, run) -> None:
    config = hub.models["org/tiny-chat"] / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "StrangeForCausalLM"))
    done = run("convert", "org/tiny-chat", "--type", "f16", LUTRA_CONVERTER_DIR="/nowhere")
    assert_error(done, "StrangeForCausalLM")
    assert hub.fetched() == NEEDED - {"model.safetensors"}
    config.unlink()
    assert_error(run("convert", "org/tiny-chat", "--type", "f16"), "has no config.json on the hub")


def test_a_disk_that_fills_up() -> None:
    with pytest.raises(LutraError, match=r"org/m: the disk of .* is full; 'lutra ls'"):
        hub_module._fail("org/m", OSError(errno.ENOSPC, "No space left on device"))


@pytest.mark.parametrize(
    "verb",
    [
        ["convert", "--type=cb4"],
        ["chat"],
        ["serve", "--port=0"],
        ["info"],
        ["verify"],
        ["bench"],
        ["compare"],
        ["export"],
        ["eval", "--questions=/dev/null"],
    ],
)
def test_a_model_that_is_nowhere(run, verb: list[str]) -> None:
    assert_error(run(*verb, "org/nowhere"), "org/nowhere: neither a file here nor a model at", "HF_TOKEN")


def test_without_a_network(hub: Hub, run) -> None:
    convert = ("convert", "org/tiny-chat", "--type", "f16")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert_error(run(*convert, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set")
    assert_error(run(*convert, **nowhere), "check the network")
    assert not hub.asked
    assert run(*convert).returncode == 0
    hub.asked.clear()
    assert run(*convert, HF_HUB_OFFLINE="1").returncode == 0
    assert run(*convert, **nowhere).returncode == 0
    assert not hub.asked


def test_a_model_without_safetensors(hub: Hub, run) -> None:
    (hub.models["org/tiny-chat"] / "model.safetensors").unlink()
    assert_error(run("convert", "org/tiny-chat", "--type", "f16"), "has no model.safetensors")
    assert hub.fetched() == NEEDED - {"model.safetensors"}


def test_a_disk_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 9 * 10**8, 10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LutraError, match=r"org/m: needs 0\.2 GB in .*0\.1 GB free; .*HF_HOME"):
        hub_cache.require_room("org/m", 2 * 10**8)
    hub_cache.require_room("org/m", 10**8)


def test_other_families_are_refused_before_their_weights_are_fetched(hub: Hub, run) -> None:
    config = hub.models["org/tiny-chat"] / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "ArceeForCausalLM"))
    done = run("convert", "org/tiny-chat", "--type", "f16", LUTRA_CONVERTER_DIR=str(hub.models[GGUF]))
    assert_error(done, "ArceeForCausalLM is not read directly", 'pip install "lutra-llm[hf]"')
    assert hub.fetched() == NEEDED - {"model.safetensors"}


# ---- GGUF files ----------------------------------------------------------------------------


def test_chat_fetches_the_file_of_the_type(hub: Hub, run) -> None:
    require_built()
    done = run("chat", f"{GGUF}:Q8_0", "-p", "What is the capital of France?")
    assert "Paris" in done.stdout, done.stderr
    assert hub.fetched() == {"tiny-chat.Q8_0.gguf"}


def test_serve_fetches_the_file_of_the_type(hub: Hub, tmp_path: Path) -> None:
    require_built("llama-server")
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    with serving(f"{GGUF}:q8_0", env=env) as server:
        assert "openai/tiny-chat.Q8_0 " in server.text
    assert hub.fetched() == {"tiny-chat.Q8_0.gguf"}


def test_a_model_in_python_is_found_by_its_name(hub: Hub, tmp_path: Path) -> None:
    require_built()
    program = f"""
import lutra
with lutra.Model("{GGUF}:q8_0", n_ctx=64) as model:
    print(model.path.name, model.chat("What is the capital of France?"))
try:
    lutra.Model("{GGUF}:cb3")
except lutra.LutraError as error:
    print(error)
"""
    env = environment({"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"})
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    answer, error = done.stdout.splitlines()
    assert answer.startswith("tiny-chat.Q8_0.gguf ")
    assert "Paris" in answer
    assert f"{GGUF}: no cb3 file on the hub" in error
    assert hub.fetched() == {"tiny-chat.Q8_0.gguf"}


def test_the_types_that_are_there_are_named(hub: Hub, run) -> None:
    assert_error(run("chat", f"{GGUF}:cb3"), "no cb3 file on the hub", f"{GGUF}:f16, {GGUF}:q8_0")
    assert_error(run("chat", GGUF), "several files on the hub", f"{GGUF}:f16, {GGUF}:q8_0")
    assert_error(run("chat", "org/tiny-chat"), "has no GGUF file", "lutra convert org/tiny-chat --type cb4")
    assert not hub.fetched()


def test_convert_takes_a_gguf_by_name(hub: Hub, run, tmp_path: Path) -> None:
    done = run("convert", GGUF, "--type", "cb4", "--no-calibration")
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == {"tiny-chat-f16.gguf"}
    assert (tmp_path / "work" / "tiny-chat-cb4.gguf").is_file()


def test_a_quantized_gguf_is_refused_before_it_is_fetched(hub: Hub, run) -> None:
    (hub.models[GGUF] / "tiny-chat-q4_k_m.gguf").write_bytes(b"GGUF, but no model")
    asked = "convert", f"{GGUF}:q4_k_m", "--type", "cb4"
    assert_error(run(*asked), "q4_k_m is already quantized", "--allow-requantize")
    assert not hub.fetched()
    assert "already quantized" not in run(*asked, "--allow-requantize").stderr
    assert hub.fetched() == {"tiny-chat-q4_k_m.gguf"}


def test_weights_that_nothing_here_reads_are_not_fetched(hub: Hub, run) -> None:
    """Unless what config.json says of them is left over."""
    path = hub.models["org/tiny-chat"] / "config.json"
    settings = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    asked = "convert", "org/tiny-chat", "--type", "f16", "--dry-run"
    hub.dtypes = {"U8": 1000, "BF16": 100}
    assert_error(run(*asked), "quantized by bitsandbytes, which is not read", "start from the model")
    assert hub.fetched() == NEEDED - {"model.safetensors"}
    hub.dtypes = {"BF16": 1100}
    assert run(*asked).returncode == 0


def test_all_parts_of_a_split_file_are_fetched(hub: Hub, run, f16: Path) -> None:
    files = hub.models[GGUF]
    for i in (1, 2, 3):
        (files / f"tiny-chat-cb2-{i:05}-of-00003.gguf").write_bytes(f16.read_bytes() + bytes(i))
    second = files / "tiny-chat-cb2-00002-of-00003.gguf"
    second.rename(second.with_suffix(".late"))
    assert_error(run("info", f"{GGUF}:cb2"), "2 of 3 parts of cb2 are on the hub")
    second.with_suffix(".late").rename(second)
    done = run("info", f"{GGUF}:cb2", "--json")
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == {f"tiny-chat-cb2-{i:05}-of-00003.gguf" for i in (1, 2, 3)}


def test_what_the_cache_has_is_not_asked_for(hub: Hub, run) -> None:
    assert run("info", f"{GGUF}:Q8_0").returncode == 0
    hub.asked.clear()
    assert run("info", f"{GGUF}:q8_0").returncode == 0
    assert hub.asked == []
    assert_error(run("info", GGUF), "several files on the hub")


# ---- ls and rm -----------------------------------------------------------------------------


def test_ls_and_rm(run, tmp_path: Path, f16: Path) -> None:
    assert "no models" in run("ls").stdout
    for fetch in (
        ("convert", "org/tiny-chat", "--type=f16", "-o", tmp_path / "f16.gguf"),
        ("info", f"{GGUF}:f16"),
        ("info", f"{GGUF}:q8_0"),
    ):
        assert run(*fetch).returncode == 0
    here = tmp_path / "work" / "mine-f16.gguf"
    shutil.copy(f16, here)

    def listed() -> dict[str, tuple[str, int]]:
        return {m["name"]: (m["type"], m["bytes"]) for m in json.loads(run("ls", "--json").stdout)}

    size = f16.stat().st_size
    needed = sum(path.stat().st_size for path in TINY_CHAT.iterdir())
    source = {"org/tiny-chat": ("safetensors", needed)}
    # Two names of one content: the cache keeps it once.
    assert listed() == source | {name: ("F16", size) for name in (f"{GGUF}:f16", f"{GGUF}:q8_0", here.name)}
    assert run("ls").stdout.splitlines()[0].split() == ["name", "type", "size"]

    assert_error(run("rm", "org/tiny-chat"), "--yes")
    assert_error(run("rm", "org/other", "--yes"), "neither a GGUF file nor a model in the hub's cache")
    assert_error(run("rm", TINY_CHAT / "README.md", "--yes"), "is no GGUF file")
    assert run("rm", "org/tiny-chat", "--yes").returncode == 0
    assert run("rm", here.name, "--yes").returncode == 0
    assert set(listed()) == {f"{GGUF}:f16", f"{GGUF}:q8_0"}
    assert run("rm", GGUF, "-y").returncode == 0
    assert listed() == {}
    assert not [path for path in (tmp_path / "hf" / "hub").glob("models--*")]


@pytest.mark.parametrize(("answer", "stays"), [("n", True), ("", True), ("y", False)])
def test_rm_asks_on_a_terminal(answer: str, stays: bool, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    ours, theirs = os.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = lutra("rm", file, stdin=theirs)
    os.close(ours), os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "[y/N]" in done.stdout
    assert file.exists() is stays


def test_rm_of_one_type_keeps_the_others(hub: Hub, run, tmp_path: Path) -> None:
    with open(hub.models[GGUF] / "tiny-chat.Q8_0.gguf", "ab") as file:
        file.write(b"\0")  # another content
    for kind in ("f16", "q8_0"):
        assert run("info", f"{GGUF}:{kind}").returncode == 0
    assert run("rm", f"{GGUF}:Q8_0", "--yes").returncode == 0
    assert [m["name"] for m in json.loads(run("ls", "--json").stdout)] == [f"{GGUF}:f16"]
    assert len(list((tmp_path / "hf" / "hub").glob("models--*/blobs/*"))) == 1
    assert run("info", f"{GGUF}:f16", HF_HUB_OFFLINE="1").returncode == 0


def test_rm_empties_the_store_of_shared_blobs_of_what_nothing_else_links_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_cache, "root", lambda: tmp_path)
    stored = tmp_path / "blobs" / "ab" / "abcd"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"weights")
    for name in ("one", "two"):
        model = tmp_path / f"models--org--{name}"
        (model / "blobs").mkdir(parents=True)
        (model / "blobs" / "etag").symlink_to("../../blobs/ab/abcd")
        (model / "snapshots" / "0").mkdir(parents=True)
        (model / "snapshots" / "0" / "model.safetensors").symlink_to("../../blobs/etag")
    one, two = hub_cache.kept()
    assert (one.name, one.bytes, one.whole) == ("org/one", 7, True)
    hub_cache.remove(one)
    assert stored.exists()
    hub_cache.remove(two)
    assert not stored.exists()
    assert list(hub_cache.kept()) == []


# ---- the first steps -----------------------------------------------------------------------


def test_lutra_alone_says_what_to_type_next() -> None:
    said = lutra().stdout
    assert "lutra convert ORG/MODEL --type cb4" in said
    assert "lutra chat" in said
    assert "--help" in said


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_and_options(shell: str) -> None:
    script = lutra("completion", shell).stdout
    for word in ("convert", "completion", "calibration", "target-bpw", "out-dir"):
        assert word in script


def test_bash_completes() -> None:
    script = lutra("completion", "bash").stdout
    ask = 'COMP_WORDS=(lutra convert --ta); COMP_CWORD=2; "$f"; printf "%s\\n" "${COMPREPLY[@]}"'
    find = "f=$(complete -p lutra | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{find}\n{ask}"],
        capture_output=True,
        text=True,
        env=os.environ | {"LC_ALL": "C"},
    )
    assert set(done.stdout.split()) == {"--target-bpw", "--target-size"}, done.stderr
