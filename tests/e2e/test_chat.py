# SPDX-License-Identifier: MIT
"""lutra chat as people keep it: terminals, commands, sessions, sampling, pipes."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import sys

import pytest
from cli_runner import assert_error, environment, lutra, signalled
from gguf import GGUFValueType as T
from gguf.gguf_writer import GGUFValue
from terminal import CTRL_C, CTRL_D, ENTER, READY, TAB, UP, Terminal, pasted
from test_people import FRANCE, PARIS, with_keys

from gguf_tools.errors import LutraError
from lutra.cli.chat_screen import _CONTROL, Screen
from lutra.cli.chat_talk import Talk
from lutra.runtime.conversation import Conversation
from lutra.runtime.model import Model
from lutra.runtime.sampling import Sampling
from lutra.runtime.session import Sessions, fingerprint

NORWAY = "What is the capital of Norway?"
CHAT = ("chat", "--threads", 1)  # the tests run beside others
GREEDY = Sampling(temp=0)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where what is kept goes."""
    for variable in ("XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    return tmp_path / "lutra"


def said(pieces):
    return "".join(text for text, _ in pieces)


# ---- terminals -------------------------------------------------------------------------------


def test_a_conversation_at_a_terminal(tiny_chat, home):
    with Terminal(*CHAT, tiny_chat("f16"), "--temp", 0) as terminal:
        terminal.until(READY)
        assert PARIS in terminal.say(FRANCE)
        for lines in (
            pasted("What is the\ncapital of\nNorway?"),
            '"""' + ENTER + "What is the capital of" + ENTER + 'Norway?"""',
        ):
            assert terminal.say(lines).count("tokens read") == 1  # not three messages
        terminal.type("What is the capital of Fr" + CTRL_C)
        assert PARIS not in terminal.until(READY)
        assert "caf\u00e9 \u6771\u4eac \U0001f980" in terminal.say("caf\u00e9 \u6771\u4eac \U0001f980")
        terminal.say("bytes that are no text: \udcff\udcfe")
        terminal.type(pasted("word " * 80) + ENTER)
        shown = terminal.until(READY)
        assert re.search(r"\(reading \d+ tokens\)\x1b\[0m\r\x1b\[2K", shown), shown
        assert "/help" in terminal.say("/he" + TAB)
        terminal.type(CTRL_C)
        assert "leaves" in terminal.until(READY)
        terminal.type(CTRL_C)
        assert terminal.end() == 0
    history = home / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    with Terminal(*CHAT, tiny_chat("f16"), "--temp", 0) as terminal:
        terminal.until(READY)
        assert "/help" in terminal.say(UP)
        terminal.type(CTRL_D)
        assert terminal.end() == 0


def test_history_that_is_not_wanted_or_cannot_be(tiny_chat, home):
    with Terminal(*CHAT, tiny_chat("f16"), "--no-history") as terminal:
        terminal.until(READY)
        terminal.say("/clear")
        terminal.type("/bye" + ENTER)
        assert terminal.end() == 0
    assert not home.exists()
    home.write_text("in the way")
    with Terminal(*CHAT, tiny_chat("f16"), "--temp", 0) as terminal:
        assert "what is typed is not kept" in terminal.until(READY)
        assert PARIS in terminal.say(FRANCE)


def test_ctrl_c_stops_an_answer(tiny_chat, home):
    endless = ("--temp", 1e6, "--seed", 1, "--top-k", 0, "--top-p", 1, "--min-p", 0)
    with Terminal(*CHAT, tiny_chat("f16"), "--ctx", 4096, *endless) as terminal:
        terminal.until(READY)
        terminal.type(FRANCE + ENTER)
        terminal.until("France?")
        terminal.until("\x1b[?2004l")
        terminal.until(" ")
        terminal.interrupt()
        assert "[stopped]" in terminal.until(READY)
        terminal.say("/clear")
        terminal.say("/set temp 0")
        assert "Oslo" in terminal.say(NORWAY)


READING = """
import os, signal, sys
from gguf_tools.interrupts import raise_signals
from lutra.runtime import loaded
from lutra.runtime.model import Model
from lutra.runtime.sampling import Sampling

calls, original = 0, loaded._is_interrupted

def interrupted(data):
    global calls
    calls += 1
    os.kill(os.getpid(), signal.SIGINT)
    return original(data)

loaded._is_interrupted = interrupted
signal.signal(signal.SIGINT, signal.default_int_handler)
raise_signals()
with Model(sys.argv[1], threads=1, n_ctx=512) as model, model.sampler(Sampling(temp=0)) as sampler:
    prompt = model.tokenize("word " * 100)
    try:
        next(model.generate(prompt, sampler))
    except KeyboardInterrupt:
        print(calls, len(model.computed), model.evaluated)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # and nobody is asked any more
    token = next(model.generate(prompt, sampler))
with Model(sys.argv[1], threads=1, n_ctx=512) as model, model.sampler(Sampling(temp=0)) as sampler:
    print(next(model.generate(prompt, sampler)) == token)
"""


def test_ctrl_c_ends_the_reading_of_a_message_at_once(tiny_chat):
    done = subprocess.run(
        [sys.executable, "-c", READING, tiny_chat("f16")], env=environment(), capture_output=True, text=True
    )
    assert done.stdout == "1 0 0\nTrue\n", done.stderr


@pytest.mark.parametrize("columns", [12, 1])
def test_a_window_that_is_narrow_and_then_another(tiny_chat, home, columns):
    with Terminal(*CHAT, tiny_chat("f16"), "--temp", 0, columns=columns) as terminal:
        terminal.until(READY)
        terminal.type("What is the capital ")
        terminal.resize(40)  # some time later the line is drawn again, as if a new one could be typed
        terminal.type("of France?" + ENTER)
        terminal.until(PARIS)
        terminal.until(READY)
        assert "Oslo" in terminal.say(NORWAY)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_edit(tiny_chat, home, term, locale):
    env = {"TERM": term, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with Terminal(*CHAT, tiny_chat("f16"), "--temp", 0, env=env) as terminal:
        terminal.until("> ")
        terminal.type(f"{FRANCE}\n")
        assert PARIS in (shown := terminal.until("> "))
        assert "\x1b" not in shown
        terminal.type('"""\nWhat is the capital of\nNorway?\n"""\n')
        assert terminal.until("\n> ").count("tokens read") == 1
        terminal.type("caf\u00e9\n")
        terminal.until("\n> ")
        terminal.type(CTRL_C)
        terminal.until("leaves")
        terminal.type(CTRL_D)
        assert terminal.end() == 0


def test_a_locale_without_utf8(tiny_chat, home):
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with Terminal(*CHAT, tiny_chat("f16"), "--temp", 0, env=env) as terminal:
        terminal.until(READY)
        terminal.say("caf\u00e9 \u6771\u4eac")
        assert PARIS in terminal.say(FRANCE)
        terminal.type(CTRL_D)
        assert terminal.end() == 0


def test_kill_leaves_a_usable_terminal_and_the_session(tiny_chat, home):
    with Terminal(*CHAT, tiny_chat("f16"), "--temp", 0, "--session", "kept") as terminal:
        terminal.until(READY)
        terminal.say(FRANCE)
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 128 + signal.SIGTERM
    with Terminal(*CHAT, tiny_chat("f16"), "--temp", 0, "--session", "kept") as terminal:
        assert "2 messages" in terminal.until(READY)


def test_what_a_model_writes_does_not_move_the_cursor():
    assert "a\x1b[2Jb\nc\td\x9b".translate(_CONTROL) == "a\ufffd[2Jb\nc\td\ufffd"


# ---- pipes -----------------------------------------------------------------------------------


def test_pipes(tiny_chat, tmp_path):
    chat = [*CHAT, tiny_chat("f16")]
    for options, piped in (
        (["-p", "-"], FRANCE),
        (["-p", "What is the capital"], " of France?"),
        (["-p", FRANCE], ""),
    ):
        done = lutra(*chat, *options, input=piped)
        assert done.returncode == 0
        assert "Paris" in done.stdout
        assert done.stdout.count("\n") == 1
        assert "\x1b" not in done.stdout + done.stderr
        assert "per second" not in done.stderr
    (tmp_path / "text").write_text("of France?")
    with open(tmp_path / "text") as file:
        assert "Paris" in lutra(*chat, "-p", "What is the capital", stdin=file).stdout
    assert_error(lutra(*chat, "-p", "-", input=" \n"), "the prompt is empty")


def test_commands_through_a_pipe(tiny_chat, tmp_path, home):
    (tmp_path / "notes.txt").write_text("What is the capital of")
    lines = [
        "/help",
        "/set",
        "/set temp 0",
        "/set heat 1",
        "/frob",
        f"/read {tmp_path / 'notes.txt'}",
        "France?",
        "/regen",
        "/clear",
        "/regen",
        "/system You are a pirate.",
        "/system",
        "/system -",
        "/system",
        "/load nothing",
        "/save ../out",
        "/read /no/such",
        " /usr/bin is a directory",
        '"""',
        "What is the capital",
        'of Norway?"""',
    ]
    done = lutra(*CHAT, tiny_chat("f16"), input="\n".join(lines), cwd=tmp_path)
    assert done.returncode == 0
    first, again, directory, quoted = done.stdout.splitlines()
    assert first == again
    assert directory
    assert quoted
    for fragment in (
        "/save NAME",
        "top_k               40",
        "no setting 'heat'",
        "no command /frob; /help lists them",
        "22 characters go with your next message",
        "the temperature is 0",
        "nothing was said yet",
        "You are a pirate.",
        "(no system message)",
        f"no session 'nothing' in {home / 'sessions'}; there are none yet",
        "no session can be called '../out'",
        "/no/such: No such file",
    ):
        assert fragment in done.stderr, fragment


# ---- sampling --------------------------------------------------------------------------------


def test_a_file_recommends_its_sampling(tiny_chat, tmp_path):
    chat = ["-p", "Tell me a story.", "-n", "20"]
    greedy = lutra(*CHAT, tiny_chat("f16"), *chat).stdout
    with_temp = tmp_path / "warm.gguf"
    with_keys(
        tiny_chat("f16"), with_temp, "general.sampling", temp=GGUFValue(5.0, T.FLOAT32),
        top_k=GGUFValue(0, T.INT32), top_p=GGUFValue(1.0, T.FLOAT32), min_p=GGUFValue(0.0, T.FLOAT32),
    )  # fmt: skip
    warm = lutra(*CHAT, with_temp, *chat).stdout
    assert warm != greedy
    assert lutra(*CHAT, with_temp, *chat).stdout == warm  # -p is the same every time
    assert lutra(*CHAT, with_temp, *chat, "--seed", "2").stdout != warm
    assert lutra(*CHAT, with_temp, *chat, "--temp", "0").stdout == greedy


def test_an_answer_that_repeats_itself_is_ended(tiny_chat, monkeypatch, capsys):
    monkeypatch.setattr(Model, "ends", lambda self, token: False)  # so that it goes on
    with Model(tiny_chat("f16"), n_ctx=512, threads=1) as model:
        talk = conversation(model)
        Talk(talk, Screen(True)).ask(FRANCE)
        assert 200 < talk.answer.tokens < 400
        assert "it only repeated its last 66 tokens" in (err := capsys.readouterr().err)
        assert "--stop-loop 0" in err
        talk = conversation(model)
        talk.sampling = Sampling(temp=0, stop_loop=0)
        Talk(talk, Screen(True)).ask(FRANCE)
        assert talk.answer.full
        assert "the context is full; see --ctx" in capsys.readouterr().err


def test_penalties_change_an_answer(tiny_chat):
    with Model(tiny_chat("f16"), n_ctx=512, threads=1) as model:
        answers = {
            settings: said(Conversation(model, settings, limit=60).say("Tell me about the sea and the sea."))
            for settings in (
                GREEDY,
                Sampling(temp=0, repeat_penalty=2.0),
                Sampling(temp=0, presence_penalty=20.0),
                Sampling(temp=0, dry_multiplier=20.0, dry_allowed_length=1),
            )
        }
    assert len(set(answers.values())) > 2, answers


# ---- cache types -----------------------------------------------------------------------------


def test_cache_types(tiny_chat):
    for types in (["--ctk", "q8_0"], ["--ctk", "q8_0", "--ctv", "q8_0"], ["--ctv", "q4_0"]):
        assert "Paris" in lutra(*CHAT, tiny_chat("f16"), "-p", FRANCE, *types).stdout
    assert_error(lutra(*CHAT, tiny_chat("f16"), "-p", "x", "--ctk", "q9"), "--ctk", "'q9'", "q8_0")
    with pytest.raises(LutraError, match="no cache type q9; choose one of f16, q8_0"):
        Model(tiny_chat("f16"), cache_types=("f16", "q9"))


def test_the_context_is_what_memory_has_room_for(tiny_chat, monkeypatch, caplog):
    file = tiny_chat("f16")
    with Model(file, threads=1, n_ctx=32) as model:
        a_token = model.state_size
        said(conversation(model, limit=1).say("Hi"))
        a_token = (model.state_size - a_token) // len(model.computed)
    room = 2 * 300 * a_token  # half of it for 300 tokens
    monkeypatch.setattr("lutra.runtime.context.free_memory", lambda: file.stat().st_size + room)
    contexts = {}
    for types in (("f16", "f16"), ("q8_0", "q8_0"), ("f32", "f32")):
        with Model(file, threads=1, cache_types=types) as model:
            contexts[types[0]] = model.n_ctx
    assert contexts == {"f16": 256, "q8_0": 512, "f32": 256}
    assert "a context of 256 tokens, as there is little memory; --ctx takes another" in caplog.text
    caplog.clear()
    with Model(file, threads=1, n_ctx=1000) as model:
        assert model.n_ctx == 1000
    assert caplog.text == ""


# ---- sessions --------------------------------------------------------------------------------


def conversation(model, **options):
    return Conversation(model, GREEDY, **options)


@pytest.mark.parametrize("types", [("f16", "f16"), ("q8_0", "q8_0")])
def test_a_session_goes_on_without_reading(tiny_chat, tmp_path, types):
    sessions = Sessions(tmp_path / "sessions")
    options = {"n_ctx": 512, "cache_types": types, "threads": 1}
    with Model(tiny_chat("f16"), **options) as model:
        talk = conversation(model)
        for question in (FRANCE, "Tell me a story.", NORWAY):
            said(talk.say(question))
        assert sessions.save("s", talk) == ""
        assert len(talk.script.tokens) > 60
        started, expected = talk.script.started, said(talk.say(FRANCE))
        read = talk.answer.read
    for name in ("s.json", "s.state"):
        assert stat.S_IMODE((tmp_path / "sessions" / name).stat().st_mode) == 0o600
    with Model(tiny_chat("f16"), **options) as model:
        talk = conversation(model)
        assert sessions.load("s", talk) == ""
        assert model.evaluated == 0
        assert talk.script.started == started
        assert said(talk.say(FRANCE)) == expected
        assert talk.answer.read == read
        assert read <= len(model.tokenize(f"<|end|>\n<|user|>\n{FRANCE}<|end|>\n<|assistant|>\n")) + 1


def test_what_was_written_as_no_tokenizer_would_is_not_read_again(tiny_chat, monkeypatch):
    with Model(tiny_chat("f16"), n_ctx=512, threads=1) as model:
        single = {model.piece(token): token for token in range(model.n_vocab)}
        letters = [single[bytes([letter])] for letter in b" It is Paris."]
        written = iter([*letters, *model.tokenize("<|end|>", start=False)])
        talk = conversation(model)
        with monkeypatch.context() as patch:
            patch.setattr("lutra.runtime.sampling.Sampler.sample", lambda *_: next(written))
            answer = said(talk.say(FRANCE))
        assert talk.script.tokens[-len(letters) :] == letters
        assert len(model.tokenize(answer, start=False)) < len(letters)
        said(talk.say(NORWAY))
        assert (
            talk.answer.read
            == len(model.tokenize(f"<|end|>\n<|user|>\n{NORWAY}<|end|>\n<|assistant|>\n")) - 1
        )


def test_a_state_of_no_use_is_read_again(tiny_chat, tmp_path):
    sessions = Sessions(tmp_path)
    state, described = tmp_path / "s.state", tmp_path / "s.json"
    with Model(tiny_chat("f16"), n_ctx=512, threads=1) as model:
        talk = conversation(model)
        said(talk.say("Tell me a story."))
        assert sessions.save("s", talk) == ""
        turns, expected = talk.script.turns[:2], said(talk.say(FRANCE))
        whole, told = state.read_bytes(), described.read_text()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 1
        for damage in (b"", whole[:-1], bytes(damaged)):
            state.write_bytes(damage)
            assert "missing or damaged" in sessions.load("s", talk)
            assert talk.script.turns == turns
            assert said(talk.say(FRANCE)) == expected
        state.write_bytes(whole)
        for change in ({"state": None}, {"for": None}, {"for": {**json.loads(told)["for"], "lutra": "0"}}):
            described.write_text(json.dumps(json.loads(told) | change))
            assert sessions.load("s", talk)
        described.write_text(told)
        assert sessions.load("s", talk) == ""
        for text in (
            "",
            "{}",
            told[:-9],
            json.dumps(json.loads(told) | {"turns": [{"role": 1, "content": 2}]}),
        ):
            described.write_text(text)
            with pytest.raises(LutraError, match=r"s\.json: damaged"):
                sessions.load("s", talk)
        described.write_text(told)
    for path, options, reason in (
        (tiny_chat("cb4"), {}, "another model file, f16.gguf"),
        (tiny_chat("f16"), {"cache_types": ("q8_0", "f16")}, "the cache types f16/f16"),
        (tiny_chat("f16"), {"n_ctx": 40}, "too many for a context of"),
    ):
        with Model(path, **{"n_ctx": 512, "threads": 1, **options}) as model:
            talk = conversation(model)
            assert reason in sessions.load("s", talk)
            assert talk.script.turns == turns
            assert "Oslo" in said(talk.say(NORWAY))


def test_a_full_disk_keeps_what_was_said(tiny_chat, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 1 << 16}))
    sessions = Sessions(tmp_path)
    with Model(tiny_chat("f16"), n_ctx=64, threads=1) as model:
        talk = conversation(model)
        said(talk.say(FRANCE))
        assert "MiB free" in sessions.save("s", talk)
        assert sessions.load("s", talk) == "its state was not saved"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["s.json"]
        assert len(talk.script.turns) == 2


def test_a_session_that_was_stopped_while_it_was_saved(tiny_chat, home):
    chat = [*CHAT, tiny_chat("f16"), "--session", "s", "-p"]
    assert lutra(*chat, FRANCE).returncode == 0
    before = (home / "sessions" / "s.json").read_bytes()
    done = signalled(signal.SIGTERM, "lutra.runtime.session:_check", *chat, NORWAY, nth=2)
    assert done.returncode != 0
    assert "Oslo" in done.stdout
    assert sorted(path.name for path in (home / "sessions").iterdir()) == ["s.json", "s.state"]
    assert (home / "sessions" / "s.json").read_bytes() == before


def test_sessions_of_the_command(tiny_chat, home):
    chat = [*CHAT, tiny_chat("f16"), "--temp", "0"]
    done = lutra(*chat, "--session", "letters", input=f"{FRANCE}\n/save copy\n")
    assert "copy: saved" in done.stderr
    assert "letters: saved" in done.stderr
    done = lutra(*chat, "--session", "letters", "-p", NORWAY)
    assert "letters: 2 messages" in done.stderr
    assert done.stdout.count("\n") == 1
    done = lutra(*chat, input=f"/load letters\n/regen\n/load copy\n{NORWAY}\n/load\n")
    assert "letters: 4 messages" in done.stderr
    assert "copy: 2 messages" in done.stderr
    assert done.stdout.splitlines()[0] == done.stdout.splitlines()[1]
    assert "there are: letters, copy" in done.stderr
    (home / "sessions" / "copy.state").unlink()
    done = lutra(*chat, input=f"/load copy\n{NORWAY}\n")
    assert "has to read again: " in done.stderr
    assert "Oslo" in done.stdout


def test_a_fingerprint_is_of_all_parts(tmp_path):
    parts = [tmp_path / f"m-{i:05}-of-00002.gguf" for i in (1, 2)]
    for part in parts:
        part.write_bytes(bytes(3 << 20))
    before = fingerprint(parts[0])
    with open(parts[1], "r+b") as file:
        file.seek(3 << 19)
        file.write(b"x")
    assert fingerprint(parts[0]) != before
    assert len({before, fingerprint(parts[0]), fingerprint(parts[1])}) == 2


# ---- what templates say ----------------------------------------------------------------------

THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "<|assistant|>\n{% if enable_thinking is false %}<think></think>{% else %}<think>{% endif %}"
)


def test_thinking_is_turned_off_where_a_template_can(tiny_chat, tmp_path):
    assert_error(lutra(*CHAT, tiny_chat("f16"), "-p", FRANCE, "--no-think"), "cannot turn thinking on or off")
    file = tmp_path / "thinks.gguf"
    with_keys(tiny_chat("f16"), file, chat_template=GGUFValue(THINKING, T.STRING))
    thought = lutra(*CHAT, file, "-p", FRANCE, "-n", 10)
    assert thought.stdout == "\n"
    assert "ended within its thought" in thought.stderr
    assert lutra(*CHAT, file, "-p", FRANCE, "-n", 10, "--no-think").stdout.strip()
    with Terminal(*CHAT, file, "--temp", 0, "-n", 10) as terminal:
        terminal.until(READY)
        terminal.type(FRANCE + ENTER)
        terminal.until("\x1b[2m")
        assert "ended within" in terminal.until(READY)
    with Terminal(*CHAT, file, "--temp", 0, "-n", 10, "--hide-thinking") as terminal:
        terminal.until(READY)
        assert "(thinking)\n" in terminal.say(FRANCE)
