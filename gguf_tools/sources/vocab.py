# SPDX-License-Identifier: MIT
"""Tokenizers of Hugging Face directories as GGUF key/values, without torch, transformers or sentencepiece.

Special tokens, merges and chat templates come from ``gguf.SpecialVocab``. Three kinds of vocabulary:

    tokenizer.model                     SentencePiece              tokenizer.ggml.model = llama
    tokenizer.json, BPE, byte fallback  SentencePiece's, as BPE    tokenizer.ggml.model = llama
    tokenizer.json, byte-level BPE      GPT-2's                    tokenizer.ggml.model = gpt2
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from gguf import GGUFWriter, SpecialVocab, TokenType
from gguf.gguf_writer import GGUFValue

from gguf_tools.errors import LutraError, Unfamiliar, warn
from gguf_tools.formats.keys import END_TOKENS_KEY
from gguf_tools.sources.card import generation_config
from gguf_tools.sources.config import with_numbers
from gguf_tools.sources.safetensors import read_json

# gguf guesses at templates of sentence pairs, which no chat uses, and warns about its guesses.
logging.getLogger("gguf.vocab").setLevel(logging.ERROR)

# Byte-level BPE: llama.cpp wants the name of a pre-tokenizer it has built in. The converter upstream
# recognises a tokenizer by the hash of what it makes of a test text, which needs transformers and
# knows no vocabulary but the listed ones; here the splitting rules themselves are recognised. Keys
# are the regular expressions (or Digits) in front of the ByteLevel step of tokenizer.json.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
_ENDING = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
_CASED_AND_CONTRACTED = _CASED.replace("+|", "+" + _ENDING).replace("*|", "*" + _ENDING)
_PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    (_CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST,): "llama-bpe",
    (_CONTRACTIONS + _WORDS + r"\p{N}" + _REST,): "qwen2",
    (_CASED + r"\p{N}" + _REST.replace(r"[\r\n]*", r"[\r\n/]*"),): "tekken",
    (_CASED_AND_CONTRACTED + r"\p{N}{1,3}" + _REST.replace(r"[\r\n]*", r"[\r\n/]*"),): "gpt-4o",
    ("gpt-2",): "gpt-2",
    ("digits", "gpt-2"): "smollm",
}

# What gguf reads of a directory for the special tokens.
_SPECIAL = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
# Files of tokenizers of other forms.
_OTHERS = ("vocab.json", "*.tiktoken", "spiece.model", "*vocab*.txt")

# Two ways of saying that what the expression matches are the words.
_SPLITS = (("Isolated", False), ("Removed", True))

# Types of pieces in SentencePiece's model file.
_USER_DEFINED = 4
_PIECE_TYPES = {
    1: TokenType.NORMAL,
    2: TokenType.UNKNOWN,
    3: TokenType.CONTROL,
    _USER_DEFINED: TokenType.NORMAL,  # as upstream's converter has it
    5: TokenType.UNUSED,
    6: TokenType.BYTE,
}

Piece = tuple[str, float, TokenType]  # text, score, type

# The ids at which llama.cpp ends a text.
_KINDS = ("eos", "eot", "eom")
# Texts at which llama.cpp ends a text whatever the keys say.
_ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<｜end▁of▁sentence｜>", "[e~[",
}  # fmt: skip


def add_vocabulary(
    writer: GGUFWriter, directory: Path, n_vocab: int, names: Mapping[str, str] | None = None
) -> None:
    """Add the keys ``tokenizer.*`` for ``n_vocab`` tokens to ``writer``.

    ``names``: what pre-tokenizers are called in this family, whose rules others have as well.

    Raises ``LutraError`` when there is no tokenizer, or none that llama.cpp knows.
    """
    model, path = directory / "tokenizer.model", directory / "tokenizer.json"
    if model.is_file() and (stored := _sentencepiece(model, path.is_file())):
        pieces = _fill(stored, n_vocab, -10000.0)
        _override(pieces, directory)
        _add_sentencepiece(writer, directory, pieces)
        return
    if not path.is_file():
        what = "no tokenizer (tokenizer.model or tokenizer.json)"
        if any(path.is_file() for form in _OTHERS for path in directory.glob(form)):
            raise Unfamiliar(f"{directory}: {what} of a form that is read")
        raise LutraError(f"{directory}: {what}; copy it there")
    tokenizer = read_json(path)
    try:
        bpe = tokenizer["model"]
        if bpe["type"] != "BPE":
            raise Unfamiliar(f"{path}: is a {bpe['type']} tokenizer, not BPE")
        if bpe.get("byte_fallback"):
            _add_sentencepiece(writer, directory, _fill(_pieces_of_bpe(tokenizer), n_vocab, -1000.0))
        else:
            _add_byte_level(writer, directory, tokenizer, n_vocab, names or {})
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise LutraError(f"{path}: damaged or of an unknown form ({error!r}); download it again") from None


def _looks_special(token: str) -> bool:
    """Added tokens that some models forgot to mark as special."""
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<｜") and token.endswith("｜>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def _added_token(token: str, special: bool) -> tuple[str, TokenType]:
    if special or _looks_special(token):
        return token, TokenType.CONTROL
    return token.replace("▁", " "), TokenType.USER_DEFINED


def _added_tokens(directory: Path) -> dict[int, dict[str, Any]]:
    """The tokens that tokenizer_config.json adds or redefines, by id."""
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        return {
            int(i): {**t, "id": int(i)} for i, t in read_json(path).get("added_tokens_decoder", {}).items()
        }
    except (TypeError, ValueError, AttributeError):
        raise LutraError(f"{path}: damaged added_tokens_decoder; download it again") from None


class _Special(SpecialVocab):
    """gguf's, which ends over the ids that stand for none: -1 for padding was common."""

    def _set_special_token(self, typ: str, tid: Any) -> None:
        tid = with_numbers(tid)
        if isinstance(tid, int) and tid >= 0:
            super()._set_special_token(typ, tid)


@contextlib.contextmanager
def _without_marks(directory: Path) -> Iterator[Path]:
    """``directory``, or where its files of the tokenizer begin with byte order marks, copies without."""
    files = {path: path.read_bytes() for path in map(directory.joinpath, _SPECIAL) if path.is_file()}
    if not any(data.startswith(codecs.BOM_UTF8) for data in files.values()):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="lutra-tokenizer-") as copies:
        for path, data in files.items():
            Path(copies, path.name).write_bytes(data.removeprefix(codecs.BOM_UTF8))
        yield Path(copies)


def _special_vocab(directory: Path, *, load_merges: bool = False, n_vocab: int | None = None) -> SpecialVocab:
    """gguf's special tokens; whether bos and eos are added is what the tokenizer's post-processor does,
    where tokenizer_config.json says otherwise (newer versions of the gguf package agree)."""
    with _without_marks(directory) as clean:
        special = _Special(clean, load_merges=load_merges, n_vocab=n_vocab)
    if not (directory / "tokenizer.json").is_file():
        return special
    outer = read_json(directory / "tokenizer.json").get("post_processor") or {}
    ids = special.special_token_ids
    for step in outer.get("processors", [outer]):
        if step.get("type") == "ByteLevel":
            for kind in ("bos", "eos"):
                special.add_special_token[kind] = False
        elif step.get("type") == "TemplateProcessing" and len(step["single"]) > 1:
            for kind, end in (("bos", step["single"][0]), ("eos", step["single"][-1])):
                if name := end.get("SpecialToken", {}).get("id"):
                    added = step["special_tokens"][name]["ids"]
                    special.add_special_token[kind] = added == [ids.get(kind)]
    return special


def with_ends(metadata: Mapping[str, GGUFValue], directory: Path) -> dict[str, GGUFValue]:
    """The ``metadata`` that llama.cpp's converter makes of a model, with all ends; see ``_add_ends``."""
    found = {key.removeprefix("tokenizer.ggml."): value.value for key, value in metadata.items()}
    writer = GGUFWriter(None, "")  # only collects key/values
    if found.get("add_eos_token"):
        writer.add_add_eos_token(False)
    if isinstance(stored := found.get("tokens"), list):
        tokens = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in stored]
        known = {kind: found[f"{kind}_token_id"] for kind in _KINDS if f"{kind}_token_id" in found}
        _add_ends(writer, directory, known, tokens)
    added = {key: value for key, value in writer.kv_data[0].items() if not key.startswith("general.")}
    return {**metadata, **added}


def _add_special(writer: GGUFWriter, directory: Path, special: SpecialVocab, tokens: list[str]) -> None:
    """Special tokens and what ends a text."""
    if special.add_special_token.get("eos"):
        # It is for training. llama.cpp would end every prompt with it, chats included.
        special.add_special_token["eos"] = False
    template = directory / "chat_template.jinja"
    if template.is_file() and not isinstance(
        special.chat_template, list
    ):  # the file counts, as in transformers
        special.chat_template = template.read_text("utf-8-sig")
    special.add_to_gguf(writer, quiet=True)
    _add_ends(writer, directory, special.special_token_ids, tokens)


def _add_ends(writer: GGUFWriter, directory: Path, known: Mapping[str, int], tokens: list[str]) -> None:
    """Add what ends a text beside the ids that are ``known`` by their kinds.

    transformers ends at any eos_token_id of generation_config.json. llama.cpp ends at its eos, eot and eom,
    and at the texts that it knows; what is left goes to a key that lutra reads.
    """
    ends: dict[int, None] = {}  # a set in order
    for said in (generation_config(directory), read_json(directory / "config.json")):
        ids = with_numbers(said.get("eos_token_id"))
        ends |= dict.fromkeys(i for i in (ids if isinstance(ids, list) else [ids]) if _is_token(i, tokens))
    if not _is_token(known.get("eos"), tokens) and ends:
        writer.add_eos_token_id(next(iter(ends)))
        del ends[next(iter(ends))]
    left = [i for i in ends if i not in map(known.get, _KINDS) and tokens[i] not in _ENDS]
    for kind, add in (("eot", writer.add_eot_token_id), ("eom", writer.add_eom_token_id)):
        if left and kind not in known:
            add(left.pop(0))
    if left:
        writer.add_string(END_TOKENS_KEY, " ".join(map(str, left)))


def _is_token(i: Any, tokens: list[str]) -> TypeGuard[int]:
    return isinstance(i, int) and not isinstance(i, bool) and 0 <= i < len(tokens)


def _rename_duplicates(directory: Path, tokens: list[str], kinds: list[TokenType]) -> None:
    """Give each text to one token, the first that is in use: llama.cpp ends the process over a second one."""
    owners: dict[str, int] = {}
    for i in sorted(range(len(tokens)), key=lambda i: kinds[i] == TokenType.UNUSED):
        if not tokens[i] or owners.setdefault(tokens[i], i) == i:  # llama.cpp names those without a text
            continue
        name = f"[DUPLICATE{i}]"
        if kinds[i] != TokenType.UNUSED:
            warn(
                f"{directory}: token {i} is {tokens[i]!r} as {owners[tokens[i]]} is; it is called {name} now"
            )
        tokens[i], kinds[i] = name, TokenType.UNUSED
        owners[name] = i


# ---- SentencePiece ---------------------------------------------------------------------------


def _add_sentencepiece(writer: GGUFWriter, directory: Path, pieces: list[Piece]) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    tokens, kinds = [text for text, _, _ in pieces], [kind for _, _, kind in pieces]
    _rename_duplicates(directory, tokens, kinds)
    writer.add_token_list(tokens)
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types(kinds)
    _add_special(writer, directory, _special_vocab(directory, n_vocab=len(pieces)), tokens)


def _fill(pieces: dict[int, Piece], n_vocab: int, score: float) -> list[Piece]:
    """A list of ``n_vocab`` pieces: ids without one are unused, ids beyond it have no embedding."""
    return [pieces.get(i, (f"[PAD{i}]", score, TokenType.UNUSED)) for i in range(n_vocab)]


def _override(pieces: list[Piece], directory: Path) -> None:
    """Apply the added tokens of added_tokens.json, tokenizer.json and tokenizer_config.json to ``pieces``.

    Of tokenizer.json only what is news: others keep the scores and types that they have in tokenizer.model.
    """
    path = directory / "added_tokens.json"
    if path.is_file():
        for text, i in read_json(path).items():
            if isinstance(i, int) and 0 <= i < len(pieces):
                pieces[i] = (text, -1000.0, TokenType.USER_DEFINED)
    added = _added_tokens(directory)
    if (directory / "tokenizer.json").is_file():
        for token in read_json(directory / "tokenizer.json").get("added_tokens") or ():
            i = token.get("id")
            if isinstance(i, int) and 0 <= i < len(pieces):
                text, _, kind = pieces[i]
                if token.get("content") != text or kind in (TokenType.NORMAL, TokenType.UNUSED):
                    added.setdefault(i, token)
    for i, token in added.items():
        if 0 <= i < len(pieces):
            text, kind = _added_token(str(token.get("content", "")), bool(token.get("special")))
            pieces[i] = (text, -1000.0, kind)


def _sentencepiece(path: Path, is_spare: bool) -> dict[int, Piece]:
    """The pieces of tokenizer.model, SentencePiece's protobuf: field 1 of the model, repeated, is
    a piece of text (1), score (2) and type (3, absent: normal).

    Files of this name may be something else, such as tiktoken's. If it ``is_spare``, as there is a
    tokenizer.json that says the same, there are no pieces then.
    """
    pieces: dict[int, Piece] = {}
    data = path.read_bytes()
    try:
        for number, message in _protobuf(data):
            if number == 1:
                piece = dict(_protobuf(message))
                (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
                form, text = piece.get(3, 1), piece.get(1, b"").decode()
                kind = _PIECE_TYPES[form]
                if form == _USER_DEFINED and _looks_special(text):  # a marker: it is found in any text
                    kind = TokenType.CONTROL
                pieces[len(pieces)] = (text, score, kind)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error):
        pieces.clear()
    if not pieces:
        if not is_spare:
            raise LutraError(f"{path}: not a SentencePiece model; copy the model's tokenizer.json there")
        if not re.match(rb"[A-Za-z0-9+/=]+ \d+\s", data):  # tiktoken's, which nobody misses
            warn(f"{path}: not a SentencePiece model; tokenizer.json is used instead")
    return pieces


def _protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field number and value (int or bytes) of each field of a protobuf message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("varint too long")

    while at < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        length = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        if length > len(data) - at:
            raise ValueError("field beyond the end")
        yield number, data[at : at + length]
        at += length


def _pieces_of_bpe(tokenizer: dict[str, Any]) -> dict[int, Piece]:
    """SentencePiece's pieces back from the BPE form that Hugging Face gives them.

    llama.cpp merges by score, so a token's score is the rank of its first merge, negated: the order
    that SentencePiece's own scores have.
    """
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    rank: dict[str, int] = {}
    for i, merge in enumerate(tokenizer["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        rank.setdefault(left + right, i)
    pieces: dict[int, Piece] = {}
    for text, i in vocab.items():
        kind = TokenType.BYTE if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text) else TokenType.NORMAL
        pieces[i] = (text, -float(rank.get(text, 0)), kind)
    for token in tokenizer.get("added_tokens", ()):
        text, kind = _added_token(token["content"], bool(token["special"]))
        pieces[token["id"]] = (text, -1000.0, kind)
    return pieces


# ---- byte-level BPE --------------------------------------------------------------------------


def _add_byte_level(
    writer: GGUFWriter, directory: Path, tokenizer: dict[str, Any], n_vocab: int, names: Mapping[str, str]
) -> None:
    path = directory / "tokenizer.json"
    texts: dict[int, str] = {i: text for text, i in tokenizer["model"]["vocab"].items()}
    added = {token["id"]: token for token in tokenizer.get("added_tokens", ())} | _added_tokens(directory)
    texts |= {i: token["content"] for i, token in added.items()}
    if max(texts) >= n_vocab:
        raise LutraError(f"{path}: has token {max(texts)}, but the model's vocab_size is {n_vocab}")
    tokens, kinds = [], []
    for i in range(n_vocab):
        text, kind = texts.get(i, f"[PAD{i}]"), TokenType.NORMAL if i in texts else TokenType.UNUSED
        if i in added:
            text, kind = _added_token(text, bool(added[i].get("special")))
        tokens.append(text)
        kinds.append(kind)
    writer.add_tokenizer_model("gpt2")
    pre = pre_tokenizer(path, tokenizer)
    writer.add_tokenizer_pre(names.get(pre, pre))
    _rename_duplicates(directory, tokens, kinds)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = _special_vocab(directory, load_merges=True)
    if not special.merges:
        raise LutraError(f"{path}: has no merges, nor has merges.txt; download the tokenizer again")
    _add_special(writer, directory, special, tokens)


def pre_tokenizer(path: Path, tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of tokenizer.json. Raises ``Unfamiliar``."""
    outer = tokenizer.get("pre_tokenizer") or {}
    rules: list[str] = []
    for step in outer.get("pretokenizers", [outer]):
        kind = step.get("type")
        if kind == "Split" and (step.get("behavior"), bool(step.get("invert"))) in _SPLITS:
            rules.append(step["pattern"].get("Regex", ""))
        elif kind == "Digits" and step.get("individual_digits"):
            rules.append("digits")
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            if step.get("use_regex", True):
                rules.append("gpt-2")
        else:
            rules.append(str(kind))
    name = _PRE_TOKENIZERS.get(tuple(rules))
    if name is None:
        known = ", ".join(_PRE_TOKENIZERS.values())
        raise Unfamiliar(f"{path}: its pre-tokenizer ({' + '.join(rules)[:80] or 'none'}) is none of {known}")
    return name
