# SPDX-License-Identifier: MIT
"""The page of ``lutra serve`` in a browser: what people do with it, and what no answer may do to it."""

from __future__ import annotations

import json
import re
import signal

import pytest
from browser import browser
from cli_runner import ROOT
from serving import serving

ANSWERED = "document.querySelector('#messages > :last-child .speed')?.innerText"
COPIED = "(() => { const all = []; navigator.clipboard.writeText = (t) => void all.push(t); return all; })()"

# A server that never stops to talk, until the reader does.
ENDLESS = """
window.fetch = async (path, {signal}) => new Response(new ReadableStream({
  start(stream) {
    const talk = setInterval(() => stream.enqueue(new TextEncoder().encode(
      'data: {"choices": [{"delta": {"content": "word "}}]}\\n\\n')), 5);
    signal.addEventListener("abort", () => { clearInterval(talk); stream.error(signal.reason); });
  }
}))
"""


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


@pytest.fixture(scope="module")
def url(tiny_chat_cb4, window):
    with serving(tiny_chat_cb4, "--", "--temp", "0") as server:
        yield f"{server.url}/"


@pytest.fixture
def page(window, url):
    """The page as somebody sees it for the first time; nothing may go wrong in it."""
    window.size(1000, 700)
    window.open(url)
    window.run("localStorage.clear()")
    fresh(window, url)
    window.problems.clear()
    yield window
    window.run("0")  # hears what has happened
    assert window.problems == []


def fresh(page, url):
    """Load it again, and wait until it knows the model."""
    page.run("window.onpagehide = null; window.old = true")
    page.call("Page.navigate", url=url)
    page.wait("!window.old && document.title === 'tiny-chat-cb4'")


def ask(page, text):
    page.run("document.getElementById('input').focus()")
    page.type(text)
    page.enter()


# ---- talking ------------------------------------------------------------------------------


def test_a_question_and_its_answer(page):
    assert "7.3 million parameters · CB4 · 512 tokens of context" in page.text("#welcome")
    ask(page, "What is the capital of France?")
    page.wait(ANSWERED)
    assert page.text(".assistant > .text") == "The capital of France is Paris."
    assert re.fullmatch(r"[\d,.]+ tokens/s · 8 tokens", page.text(".speed"))
    assert page.text("#room") == "25 of 512 tokens of context"
    assert page.run("document.getElementById('input').value") == ""
    assert page.run("document.activeElement.id") == "input"


def test_an_idea_is_a_question(page):
    page.click("#ideas button")
    page.wait(ANSWERED)
    assert page.text(".user .text") == "What is the capital of France?"
    assert not page.run("document.getElementById('welcome').checkVisibility()")


def test_shift_and_enter_begin_a_line(page):
    page.run("document.getElementById('input').focus()")
    page.type("one")
    page.press("Enter", 13, modifiers=8, text="\r")
    page.type("two")
    assert page.run("document.getElementById('input').value") == "one\ntwo"
    page.enter()
    page.wait(ANSWERED)
    assert page.text(".user .text") == "one\ntwo"


@pytest.mark.parametrize("way", ["button", "escape"])
def test_an_answer_can_be_stopped(page, way):
    page.run(ENDLESS)
    ask(page, "Talk!")
    page.wait("document.querySelector('.assistant > .text').innerText.length > 50")
    assert page.run("document.getElementById('send').ariaLabel") == "Stop"
    page.type("what comes next")
    page.enter()  # is neither sent nor lost
    if way == "button":
        page.click("#send")
    else:
        page.press("Escape", 27)
    page.wait("document.querySelector('.assistant .state').innerText === 'Stopped.'")
    assert page.run("document.getElementById('send').ariaLabel") == "Send"
    assert page.run("document.getElementById('input').value") == "what comes next"
    said = page.text(".assistant > .text")
    assert len(said) > 50
    assert set(said.split()) == {"word"}


def test_answer_again_and_change_a_question(page):
    ask(page, "What is the capital of France?")
    page.wait(ANSWERED)
    page.click(".again")
    page.wait(f"document.querySelectorAll('.assistant').length === 1 && {ANSWERED}")
    assert page.text(".assistant > .text") == "The capital of France is Paris."
    page.click(".user .acts [title^=Change]")
    page.run("document.querySelector('.user textarea').select()")
    page.type("What is the capital of Italy?")
    page.enter()
    page.wait(f"document.querySelector('.assistant > .text')?.innerText.includes('Rome') && {ANSWERED}")
    assert page.run("document.querySelectorAll('article').length") == 2
    assert page.text(".user .text") == "What is the capital of Italy?"


def test_system_prompt_and_sampling_are_sent_and_kept(page, url):
    page.click("#settings-open")
    assert page.run("document.querySelector('#sampling input').placeholder") == "0"  # --temp
    page.run("document.getElementById('system').select()")
    page.type("Be brief.")
    page.run("document.querySelector('#sampling label:last-child input').focus()")
    page.type("3")
    page.press("Escape", 27)
    fresh(page, url)
    page.run("window.sent = []; const f = fetch; window.fetch = (p, o) => (sent.push(o.body), f(p, o))")
    ask(page, "What is the capital of France?")
    page.wait(ANSWERED)
    sent = json.loads(page.run("sent[0]"))
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert sent["max_tokens"] == 3
    assert "temperature" not in sent
    assert page.text(".assistant > .text") == "The capital of"
    assert "is reached" in page.text(".assistant .state")


def test_a_chat_that_is_too_long_says_what_to_do(page):
    ask(page, "word " * 600)
    page.wait("document.querySelector('.state.error')?.innerText")
    assert re.search(
        r"is [\d,]+ tokens long, and the context has 512. Start a new chat", page.text(".state.error")
    )
    page.problems[:] = [text for text in page.problems if "400" not in text]


def test_thoughts_are_apart(page):
    page.run(
        "window.fetch = async () => new Response('data: ' + JSON.stringify({choices: [{delta:"
        "{reasoning_content: 'Hmm.'}}]}) + '\\n\\ndata: ' + JSON.stringify({choices: [{delta:"
        "{content: 'Yes.'}}], timings: {predicted_n: 2, predicted_per_second: 11.04}})"
        "+ '\\n\\ndata: [DONE]\\n\\n')"
    )
    ask(page, "Well?")
    page.wait(ANSWERED)
    assert page.text(".speed") == "11.0 tokens/s · 2 tokens"
    assert page.text(".assistant > .text") == "Yes."
    assert page.run("document.querySelector('details .text').textContent") == "Hmm."
    assert not page.run("document.querySelector('details').open")


# ---- chats --------------------------------------------------------------------------------


def test_chats_are_kept_and_can_be_deleted(page, url):
    ask(page, "What is the capital of France?")
    page.wait(ANSWERED)
    page.click("#new")
    assert page.run("document.getElementById('welcome').checkVisibility()")
    ask(page, "What is the capital of Italy?")
    page.wait(ANSWERED)
    fresh(page, url)
    titles = "[...document.querySelectorAll('.entry .title')].map((e) => e.innerText).join()"
    assert page.run(titles) == "What is the capital of Italy?,What is the capital of France?"
    assert page.text(".assistant > .text") == "The capital of Italy is Rome."
    page.click(".entry:last-child .title")
    assert page.text(".assistant > .text") == "The capital of France is Paris."
    page.click(".entry:last-child .icon")
    assert page.run(titles) == "What is the capital of Italy?"
    page.click("#notice button")
    assert page.run(titles) == "What is the capital of Italy?,What is the capital of France?"


def test_what_was_said_is_kept_when_the_page_goes_away(page, url):
    page.run(ENDLESS)
    ask(page, "Talk!")
    page.wait("document.querySelector('.assistant > .text').innerText.length > 50")
    page.run("window.old = true")
    page.call("Page.navigate", url=url)
    page.wait("!window.old && document.title === 'tiny-chat-cb4'")
    assert len(page.text(".assistant > .text")) > 50


def test_the_oldest_chats_make_room(page, url):
    page.run(
        "for (let i = 0; i < 5; i++) localStorage.setItem(`lutra.chat.${i}`, JSON.stringify("
        "{id: `${i}`, changed: i, messages: [{role: 'user', content: `old ${i}` + 'x'.repeat(1e6)}]}))"
    )
    ask(page, "What is the capital of France?")
    page.wait(ANSWERED)
    page.run("chat.messages[0].content += 'y'.repeat(1e6); save()")
    kept = page.run("store.chats().map((chat) => chat.messages[0].content.slice(0, 5))")
    assert kept[0] == "What "
    assert "old 4" in kept
    assert "old 0" not in kept


# ---- markdown -----------------------------------------------------------------------------

MARKDOWN = {
    "a\nb\n\nc": "<p>a<br>b</p><p>c</p>",
    "# A\n### B *c*": "<h3>A</h3><h5>B <em>c</em></h5>",
    "**a** __b__ *c* _d_ ~~e~~ `f*g*`": "<p><strong>a</strong> <strong>b</strong> <em>c</em> <em>d</em>"
    " <s>e</s> <code>f*g*</code></p>",
    "a_b_c 2 * 3 * 4 \\*d\\*": "<p>a_b_c 2 * 3 * 4 *d*</p>",
    "**a *b* c**": "<p><strong>a <em>b</em> c</strong></p>",
    "- a\n- b\n  - c\n    - d\n- e": "<ul><li>a</li><li>b<ul><li>c<ul><li>d</li></ul></li></ul></li>"
    "<li>e</li></ul>",
    "3. a\n4. b\n   - c": '<ol start="3"><li>a</li><li>b<ul><li>c</li></ul></li></ol>',
    "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "1. a\n   ```\n   x\n   ```\n2. b": "<ol><li>aCODE(text)[x]</li><li>b</li></ol>",
    "- [ ] a\n- [x] b": "<ul><li>☐ a</li><li>☑ b</li></ul>",
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "a\n***\nb": "<p>a</p><hr><p>b</p>",
    "|a|b|\n|-|-:|\n|`c\\|d`|2|": "<table><thead><tr><th>a</th><th class=\"right\">b</th></tr></thead>"
    '<tbody><tr><td><code>c|d</code></td><td class="right">2</td></tr></tbody></table>',
    "```c++\nint x;\n\n# y\n```\nz": "CODE(c++)[int x;\n\n# y]<p>z</p>",
    "```\nnot closed": "CODE(text)[not closed]",
    "~~~\n```\n~~~": "CODE(text)[```]",
    "a\n```\nb\n```": "<p>a</p>CODE(text)[b]",
    "[a](https://b.example/c_(d)) ![e](http://f.example)":
    "<p>LINK(https://b.example/c_(d))[a] LINK(http://f.example/)[e]</p>",
    "See http://a.example/b_c.": "<p>See <span>LINK(http://a.example/b_c)[http://a.example/b_c].</span></p>",
    "<b>x</b> &amp; <script>y": "<p>&lt;b&gt;x&lt;/b&gt; &amp;amp; &lt;script&gt;y</p>",
    "[a](javascript:alert(1)) [b](data:text/html,x)": "<p>[a](javascript:alert(1)) [b](data:text/html,x)</p>",
    "a<br>b": "<p>a<br>b</p>",
    "": "",
}  # fmt: skip


def test_markdown(page):
    page.run("window.place = document.createElement('div')")
    for text, expected in MARKDOWN.items():
        got = page.run(f"Markdown.show(place, {json.dumps(text)}); place.innerHTML")
        got = re.sub(
            r'<div class="code"><div><span>(.*?)</span><button.*?</button></div><pre tabindex="0"><code>(.*?)'
            r"</code></pre></div>",
            r"CODE(\1)[\2]",
            got,
            flags=re.DOTALL,
        )
        got = re.sub(
            r'<a href="([^"]*)" target="_blank" rel="[^"]*noopener[^"]*">(.*?)</a>', r"LINK(\1)[\2]", got
        )
        got = re.sub(r'<div class="table" tabindex="0">(.*?)</div>', r"\1", got)
        assert got == expected, text


def test_a_stream_shows_what_the_whole_text_shows(page):
    text = json.dumps("\n\n".join(MARKDOWN))
    assert page.run(
        f"(() => {{ const text = {text}, one = document.createElement('div'), two = one.cloneNode();"
        "for (let i = 0; i <= text.length; i++) Markdown.show(one, text.slice(0, i));"
        "Markdown.show(two, text); return one.innerHTML === two.innerHTML })()"
    )


def test_markdown_that_is_deep_or_long_is_no_trouble(page):
    for text in (
        "> " * 5000 + "x", "- " * 3000 + "x", "*" * 20000, "[" * 20000, "`" * 9999 + "x", "**a " * 3000,
        "|" * 5000 + "\n" + "|-" * 5000, "_a " * 5000, "\\" * 10000, "<" * 10000, "x\n|" * 3000,
    ):  # fmt: skip
        took = page.run(
            f"(() => {{ const at = performance.now(), text = {json.dumps(text)};"
            "Markdown.show(document.createElement('div'), text); return performance.now() - at })()"
        )
        assert took < 2000, text[:20]


def test_an_answer_cannot_do_anything(page):
    attack = (
        '<img src=x onerror="hacked = 1"><script>hacked = 1</script> [x](javascript:hacked=1) '
        '<svg onload="hacked=1"> ![x](https://a.example/leak) <iframe src="//a.example">\n'
        "```<img src=x onerror=hacked=1>\n</code><script>hacked = 1</script>\n```\n|<i>|\n|-|\n|<b>|"
    )
    page.run(
        f"chat.messages.push({{role: 'user', content: {json.dumps(attack)}}}, {{role: 'assistant',"
        f"content: {json.dumps(attack)}, thought: {json.dumps(attack)}, error: {json.dumps(attack)}}});"
        "save(); showChat()"
    )
    assert page.run("document.querySelectorAll('#messages :is(img, script, iframe, i, b)').length") == 0
    assert page.run("document.querySelectorAll('#chat-list img').length") == 0
    assert page.run("typeof hacked") == "undefined"
    # And if there were a hole: the policy.
    assert page.run("try { document.body.innerHTML = '<b>'; 'done' } catch { 'refused' }") == "refused"
    assert page.run("fetch('https://a.example/').then(() => 'done', () => 'refused')") == "refused"
    assert page.run(
        "(() => { const s = document.createElement('script');"
        "try { s.text = 'hacked = 1' } catch { return 'refused' }"
        "document.head.append(s); return typeof hacked })()"
    ) in ("refused", "undefined")
    page.run("0")
    page.problems.clear()  # the refusals


def test_code_and_answers_can_be_copied(page):
    page.run(f"window.copied = {COPIED}")
    page.run("chat.messages.push({role: 'assistant', content: 'A:\\n```\\nx = 1\\n```'}); showChat()")
    page.click(".code button")
    page.wait("document.querySelector('.code button').innerText === 'Copied'")
    page.click("article .acts [title=Copy]")
    assert page.run("copied") == ["x = 1", "A:\n```\nx = 1\n```"]


# ---- looks and access ---------------------------------------------------------------------


def test_everything_comes_from_the_server(page, url):
    loaded = page.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith((url, "data:")) for name in loaded), loaded
    for part in (ROOT / "lutra/page").iterdir():
        addresses = re.findall(r"https?://[\w.]+", part.read_text())
        assert set(addresses) <= {"http://www.w3.org"}, part  # the namespace of SVG


def test_light_dark_and_as_one_likes(page):
    ground = (
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
    )
    assert page.run(ground) > 700
    page.size(1000, 700, dark=True)
    assert page.run(ground) < 100
    page.click("#settings-open")
    page.run("theme.value = 'light'; theme.dispatchEvent(new Event('input'))")
    assert page.run(ground) > 700


def test_a_phone(page):
    page.size(320, 600, mobile=True)
    page.run(
        "chat.messages.push({role: 'user', content: 'x'.repeat(200)}, {role: 'assistant', content:"
        "'```\\n' + 'y'.repeat(200) + '\\n```\\n\\n|' + 'a|'.repeat(20) + '\\n|' + '-|'.repeat(20)});"
        "showChat()"
    )
    assert page.run("document.documentElement.scrollWidth") == 320
    assert page.run("document.getElementById('scroll').scrollWidth") <= 320
    page.wait("!document.getElementById('chats').checkVisibility({visibilityProperty: true})")
    page.click("#chats-open")
    page.wait("document.getElementById('chats').getBoundingClientRect().x === 0")
    page.press("Escape", 27)
    page.wait("!document.getElementById('chats').checkVisibility({visibilityProperty: true})")


def test_everything_has_a_name_and_takes_the_keyboard(page):
    ask(page, "What is the capital of France?")
    page.wait(ANSWERED)
    assert (
        page.run(
            "[...document.querySelectorAll('button, input, textarea, select')].filter((e) => !(e.ariaLabel ||"
            "e.innerText.trim() || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"
        )
        == []
    )
    seen = set()
    for _ in range(20):
        page.press("Tab", 9)
        seen.add(page.run("[document.activeElement].map((e) => e.id || e.title || e.className)[0]"))
    assert {"new", "title", "settings-open", "Copy", "Answer again", "input", "send"} <= seen


# ---- the server ---------------------------------------------------------------------------


def test_the_page_asks_for_the_key(tiny_chat_cb4, window):
    with serving(tiny_chat_cb4, "--api-key", "s3cret") as server:
        window.size(1000, 700)
        window.open(f"{server.url}/")
        window.run("localStorage.clear()")
        window.open(f"{server.url}/?")
        window.wait("document.getElementById('ask-key').open")
        for key in ("wrong", "s3cret"):
            window.run("document.getElementById('asked-key').focus()")
            window.type(key)
            window.enter()
            if key == "wrong":
                window.wait("document.getElementById('ask-why').innerText.includes('does not take')")
        window.wait("document.title === 'tiny-chat-cb4'")
        ask(window, "What is the capital of France?")
        window.wait(ANSWERED)
        assert window.text(".assistant > .text") == "The capital of France is Paris."
        server.end(signal.SIGTERM)
        ask(window, "What is the capital of Italy?")
        window.wait("document.querySelector('.state.error')?.innerText")
        assert window.text(".state.error") == "The connection to the server is lost."
        window.problems.clear()
