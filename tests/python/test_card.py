# SPDX-License-Identifier: MIT
"""The model card: what files know of themselves, what was measured, and commands that are understood."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import commands
import numpy as np
import pytest
import yaml
from cli_runner import assert_error, lutra
from gguf import GGUFValueType as T
from gguf.gguf_writer import GGUFValue
from gguf_samples import F16, cb_tensor, write_gguf
from test_compare import results

from gguf_tools.formats.family import CB_FORMATS
from lutra.measure.comparison import describe
from lutra.measure.model_card import model_card

MATRIX = np.zeros((64, 256), np.float16)
KEYS = {
    "general.architecture": GGUFValue("llama", T.STRING),
    "general.name": GGUFValue("Sample", T.STRING),
    "general.source.repo_url": GGUFValue("https://huggingface.co/org/sample", T.STRING),
    "general.license": GGUFValue("other", T.STRING),
    "general.license.name": GGUFValue("sample licence", T.STRING),
    "general.license.link": GGUFValue("LICENSE", T.STRING),
    "general.languages": GGUFValue(["en", "no"], T.ARRAY, T.STRING),
    "tokenizer.chat_template": GGUFValue("{{ messages }}", T.STRING),
    "lutra.layout.version": GGUFValue(1, T.UINT32),
    "lutra.convert.options": GGUFValue("--type cb3 --seed 0 --calibration default", T.STRING),
    "lutra.convert.calibration_tokens": GGUFValue(16384, T.UINT32),
}
TENSORS = {
    "token_embd.weight": (F16, MATRIX.shape, MATRIX),
    "blk.0.ffn_up.weight": cb_tensor(next(iter(CB_FORMATS)), 192, 256),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m-cb3.gguf", TENSORS, KEYS)


def head(card: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)---\n", card, re.DOTALL)[1])


def test_the_hub_is_told_what_the_file_knows(file: Path) -> None:
    assert head(model_card([file])) == {
        "base_model": "org/sample",
        "base_model_relation": "quantized",
        "license": "other",
        "license_name": "sample licence",
        "license_link": "https://huggingface.co/org/sample/blob/main/LICENSE",
        "language": ["en", "no"],
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "lutra", "conversational"],
    }
    assert head(model_card([file], base_model="org/other"))["base_model"] == "org/other"


def test_it_says_how_files_were_made_and_used(file: Path, tmp_path: Path) -> None:
    plain = write_gguf(tmp_path / "m-f16.gguf", {"token_embd.weight": (F16, MATRIX.shape, MATRIX)}, KEYS)
    card = model_card([file, plain], repository="me/m-GGUF")
    name = CB_FORMATS[next(iter(CB_FORMATS))].name
    assert f"`m-cb3.gguf`: {name} 75%, F16 25% of the weights; calibrated with the text that comes" in card
    assert "(16384 tokens); `lutra convert org/sample --type cb3 --seed 0 --calibration default`" in card
    assert "lutra chat me/m-GGUF:cb3\n" in card
    assert "# m-GGUF\n" in card
    assert re.search(r"\| m-cb3.gguf \| +0\.\d \| +\d+\.\d\d \|", card)
    for text in (card, model_card([file])):
        shown = [*commands.in_blocks(text), *commands.inline(text)]
        assert {words[1] for words in shown} == {"chat", "serve", "export", "convert"}
        assert not list(filter(None, map(commands.problem, shown)))
        ast.parse(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1])
    assert "lutra export" not in model_card([plain])


def test_parts_of_a_split_file_count_together(tmp_path: Path) -> None:
    for i, name in enumerate(TENSORS):
        split = {"split.no": GGUFValue(i, T.UINT16), "split.count": GGUFValue(2, T.UINT16)}
        part = tmp_path / f"m-cb3-{i + 1:05}-of-00002.gguf"
        write_gguf(part, {name: TENSORS[name]}, (KEYS if i == 0 else {}) | split)
    first = tmp_path / "m-cb3-00001-of-00002.gguf"
    card = model_card([first], repository="me/m-GGUF")
    assert "75%, F16 25%" in card
    assert describe(first)["bytes"] == sum(part.stat().st_size for part in tmp_path.glob("m-cb3-*"))
    assert "lutra chat me/m-GGUF:cb3\n" in card


def test_what_was_measured_is_in_the_table(file: Path, tmp_path: Path) -> None:
    measured = tmp_path / "results.json"
    measured.write_text(json.dumps(results(kld_mean=0.12345, kld_error=0.0021, same_top=81.27)))
    done = lutra("card", file, "--compare", measured)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (
        "| model           | size, MiB | bits per weight |   KL divergence | same top token |" in done.stdout
    )
    assert re.search(r"\| m-cb3.gguf      \|.*\| 0\.1235 ± 0\.0021 \|         81\.3 % \|", done.stdout)
    assert re.search(r"\| f16, to compare \| +16\.0 \|", done.stdout)
    assert "- machine: a CPU, 1 thread" in done.stdout
    for wrong in ("[]", "{}", "no", '{"files": [{}]}'):
        measured.write_text(wrong)
        assert_error(lutra("card", file, "--compare", measured), "is not what 'lutra compare --json' prints")


def test_a_card_that_is_there_stays(file: Path, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    assert lutra("card", file, "-o", card).returncode == 0
    assert card.read_text() == model_card([file])
    card.write_text("mine")
    assert_error(lutra("card", file, "-o", card), "README.md: is there already")
    assert card.read_text() == "mine"


def test_what_the_file_does_not_know_is_asked_for(tmp_path: Path) -> None:
    bare = write_gguf(
        tmp_path / "m.gguf", TENSORS, {key: KEYS[key] for key in list(KEYS)[:2] + list(KEYS)[8:9]}
    )
    done = lutra("card", bare)
    assert "--base-model ORG/MODEL" in done.stderr
    assert "licence" in done.stderr
    assert head(done.stdout) == {"pipeline_tag": "text-generation", "tags": ["gguf", "lutra"]}
    assert "model.chat" not in done.stdout
    assert_error(lutra("card", bare, "--base-model", "model"), "'model' is no ORG/MODEL")
