# SPDX-License-Identifier: MIT
"""The README.md of GGUF files on a hub of models: what they are, how they were made, how to use them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from gguf import Keys

from gguf_tools.errors import LutraError
from gguf_tools.sources.hub_cache import gguf_types
from gguf_tools.sources.open import HUB
from lutra.conversion.options import DEFAULT, OPTIONS_KEY, TOKENS_KEY
from lutra.measure.comparison import require_one_model
from lutra.measure.model_file import ModelFile
from lutra.measure.tables import conditions, table


def model_card(
    paths: Sequence[Path],
    *,
    base_model: str | None = None,
    repository: str | None = None,
    compared: dict[str, Any] | None = None,
) -> str:
    """The card of ``paths``, GGUF files of one model, as Markdown with YAML before it.

    ``base_model``: ORG/MODEL that they were made from, if the files do not say it. ``repository``: ORG/MODEL
    that they will be in, for the commands. ``compared``: what ``lutra compare --json`` prints; files of the
    same names get its columns. Raises LutraError.
    """
    require_one_model(paths)
    files = [ModelFile.read(path) for path in paths]
    values = files[0].values
    base = base_model or origin(values)
    name = values.get(Keys.General.NAME) or files[0].path.stem
    title = repository.split("/")[1] if repository else f"{name}, GGUF"
    parts = [
        f"---\n{yaml.safe_dump(_head(values, base), sort_keys=False, allow_unicode=True)}---",
        f"# {title}",
        _about(name, base, files),
        "## Files",
        _table(files, compared),
        "\n".join(f"- `{file.path.name}`: {_made(file, base)}" for file in files),
        "## Use",
        _use(files, repository),
    ]
    if compared is not None:
        parts[6:6] = ["How it was measured:", _checked(conditions, compared)]
    return "\n\n".join(parts) + "\n"


def origin(values: dict[str, Any]) -> str | None:
    """ORG/MODEL of the hub that a file was made from, if its key/values say so."""
    url = values.get(Keys.General.SOURCE_REPO_URL)
    return url.removeprefix(HUB).strip("/") if isinstance(url, str) and url.startswith(HUB) else None


# ---- parts ---------------------------------------------------------------------------------


def _head(values: dict[str, Any], base: str | None) -> dict[str, Any]:
    """What the hub shows and searches by."""
    head: dict[str, Any] = {}
    if base:
        head |= {"base_model": base, "base_model_relation": "quantized"}
    if isinstance(license := values.get(Keys.General.LICENSE), str):
        head["license"] = license.split(",") if "," in license else license
    if named := values.get(Keys.General.LICENSE_NAME):
        head["license_name"] = named
    if link := values.get(Keys.General.LICENSE_LINK):
        head["license_link"] = f"{HUB}{base}/blob/main/{link}" if base and "://" not in link else link
    if languages := values.get(Keys.General.LANGUAGES):
        head["language"] = list(languages)
    head["pipeline_tag"] = "text-generation"
    chats = "tokenizer.chat_template" in values
    head["tags"] = ["gguf", "lutra", *(["conversational"] if chats else [])]
    return head


def _about(name: str, base: str | None, files: Sequence[ModelFile]) -> str:
    of = f"[{base}]({HUB}{base})" if base else name
    if not any(file.has_codebooks for file in files):
        return f"{of} in GGUF files for llama.cpp and what is built on it."
    example = next(file.path.name for file in files if file.has_codebooks)
    return f"""\
{of} in GGUF files with *codebooks*: each weight is a small index into tables learned for its tensor.
Lutra (llama.cpp with kernels for them) runs them on Arm and x86-64 CPUs, straight from the file. llama.cpp
alone does not load codebooks; `lutra export {example} --type q8_0` makes a file that it loads."""


def _table(files: Sequence[ModelFile], compared: dict[str, Any] | None) -> str:
    rows = [{"label": file.path.name, "bytes": file.bytes, "bpw": file.bpw} for file in files]
    if compared is None:
        return table({"files": rows})
    return _checked(_measured_table, compared, rows)


def _measured_table(compared: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The files with what was measured of them, and what else was measured with them."""
    measured = {Path(row["file"]).name: row for row in compared["files"]}
    rows = [measured.pop(row["label"], {}) | row for row in rows]
    others = [row | {"label": f"{row['label']}, to compare"} for row in measured.values()]
    return table({"files": [*rows, *others]})


def _checked(show: Any, compared: dict[str, Any], *more: Any) -> str:
    try:
        return str(show(compared, *more))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):
        raise LutraError("--compare: is not what 'lutra compare --json' prints; make it again") from None


def _made(file: ModelFile, base: str | None) -> str:
    """Types, calibration, and the command."""
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in file.types.items() if share >= 0.005)
    said = [f"{shares} of the weights"]
    record = str(file.values.get(OPTIONS_KEY, ""))
    words = shlex.split(record)
    if file.has_codebooks and words:
        said.append(_calibrated(words, file.values.get(TOKENS_KEY)))
    if words:
        said.append(f"`lutra convert {base or 'MODEL'} {record}`")
    return "; ".join(said)


def _calibrated(words: Sequence[str], tokens: int | None) -> str:
    """With what, of the words of a conversion's options."""
    options = dict(zip(words, [*words[1:], ""], strict=True))
    if text := options.get("--calibration"):
        which = "the text that comes with Lutra" if text == str(DEFAULT) else text
        return f"calibrated with {which}" + (f" ({tokens} tokens)" if tokens else "")
    if matrix := options.get("--imatrix"):
        return f"weighted by the importance matrix {matrix}"
    return "not calibrated"


def _use(files: Sequence[ModelFile], repository: str | None) -> str:
    """The commands, of the first file."""
    file = files[0].path.name
    if repository:
        types = gguf_types([each.path.name for each in files])
        file = f"{repository}:{next(kind for kind, names in types.items() if file in names)}"
    serve = f"lutra serve {file}    # a page to chat in; OpenAI's and Anthropic's protocols for programs"
    parts = ["With Lutra (`pip install lutra-llm`):"]
    if "tokenizer.chat_template" not in files[0].values:
        return f"{parts[0]}\n\n```sh\n{serve}\n```"
    parts.append(f"```sh\nlutra chat {file}\n{serve}\n```")
    parts.append(
        f"""\
```python
import lutra_llm

with lutra_llm.Model("{file}") as model:
    print(model.chat("What is the capital of France?"))
```"""
    )
    return "\n\n".join(parts)
