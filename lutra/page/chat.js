// SPDX-License-Identifier: MIT
// The page to chat in: conversations, kept in this browser, with the model that llama-server serves.
"use strict";

const $ = (id) => document.getElementById(id);

const IDEAS = [
  "What is the capital of France?",
  "Explain how a river changes its course.",
  "Write a Python function that finds prime numbers.",
  "Plan a weekend by the sea.",
];

const SAMPLING = [ // name in a request, what it is called, step
  ["temperature", "Temperature", 0.05],
  ["top_p", "Top-p", 0.01],
  ["top_k", "Top-k", 1],
  ["min_p", "Min-p", 0.01],
  ["repeat_penalty", "Repeat penalty", 0.01],
  ["max_tokens", "Tokens at most", 1],
];

// ---- elements --------------------------------------------------------------------------------

function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

function iconButton(name, label, act) {
  const button = make("button", { type: "button", className: "icon", title: label, onclick: act }, icon(name));
  button.setAttribute("aria-label", label);
  return button;
}

// ---- what this browser keeps -----------------------------------------------------------------

const store = {
  get(name, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(`lutra.${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },

  // Where there is no room left, the oldest chats go.
  set(name, value) {
    for (;;) {
      try {
        localStorage.setItem(`lutra.${name}`, JSON.stringify(value));
        return;
      } catch {
        const oldest = this.chats().filter((other) => `chat.${other.id}` !== name).at(-1);
        if (!oldest) return notify("This browser keeps no more text; the chat is lost when the page closes.");
        this.drop(oldest);
      }
    }
  },

  drop: (chat) => localStorage.removeItem(`lutra.chat.${chat.id}`),

  // Every chat, the latest first. Each has an entry of its own, so that two tabs do not disturb each other.
  chats() {
    return Object.keys(window.localStorage ?? {}).filter((key) => key.startsWith("lutra.chat."))
      .map((key) => this.get(key.slice("lutra.".length), null))
      .filter((chat) => chat?.id && chat.messages?.length)
      .sort((a, b) => b.changed - a.changed);
  },
};

const settings = { system: "", sampling: {}, theme: "", key: "", ...store.get("settings", {}) };
let chat = blank();
let server = { context: 0 };
let answering = null; // the AbortController of the answer that is being written

function blank() {
  return { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), messages: [], changed: Date.now() };
}

function save() {
  if (chat.messages.length) store.set(`chat.${chat.id}`, chat);
  store.set("current", chat.id);
}

// ---- the server ------------------------------------------------------------------------------

// A request; asks for the key until the server takes it, and waits while the model is loaded.
async function ask(path, options = {}) {
  for (let waited = false; ; ) {
    const { key } = settings;
    const headers = { "Content-Type": "application/json" };
    if (key) headers.Authorization = `Bearer ${key}`;
    const answer = await fetch(path, { ...options, headers });
    if (answer.ok) {
      if (waited) notify("");
      return answer;
    }
    if (answer.status === 401) {
      if (key === settings.key) await askKey();
      continue;
    }
    const problem = (await answer.json().catch(() => ({}))).error ?? {};
    if (answer.status === 503 && problem.message === "Loading model") {
      notify("The model is being loaded…");
      waited = true;
      await new Promise((wake) => setTimeout(wake, 700));
      continue;
    }
    throw Object.assign(new Error(problem.message || `The server says ${answer.status}.`), problem);
  }
}

let asked = null; // all requests that are refused wait for the same key
function askKey() {
  asked ??= new Promise((done) => {
    const dialog = $("ask-key");
    $("asked-key").value = "";
    if (settings.key) $("ask-why").textContent = "The server does not take the key that it was given.";
    dialog.oncancel = (event) => event.preventDefault(); // nothing works without
    dialog.onclose = () => {
      settings.key = $("asked-key").value.trim();
      store.set("settings", settings);
      asked = null;
      done();
    };
    dialog.showModal();
  });
  return asked;
}

async function meet() {
  try {
    const [{ data: [model] }, props] = await Promise.all([
      ask("v1/models").then((answer) => answer.json()),
      ask("props").then((answer) => answer.json()),
    ]);
    const defaults = props.default_generation_settings;
    server = { model: model.id, context: defaults.n_ctx, sampling: defaults.params };
    notify("");
    $("model").textContent = document.title = model.id;
    $("about").textContent = [count(model.meta?.n_params), model.meta?.ftype,
      `${server.context.toLocaleString("en")} tokens of context`].filter(Boolean).join(" · ");
    showSampling();
    showRoom();
  } catch {
    notify("The server does not answer.", ["Try again", meet]);
  }
}

function count(parameters) {
  if (!parameters) return "";
  const [size, unit] = parameters >= 1e9 ? [1e9, "billion"] : [1e6, "million"];
  return `${+(parameters / size).toPrecision(2)} ${unit} parameters`;
}

// The data of a stream of server-sent events.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = done ? "" : lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:") && !line.includes("[DONE]")) yield JSON.parse(line.slice(5));
    }
    if (done) return;
  }
}

// What the model is to continue. Some templates want users and assistants in turn, so what was said before
// an answer that never came is one message with what was said after it.
function conversation() {
  const sent = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const { role, content } of chat.messages) {
    if (role === "assistant" && !content) continue;
    if (sent.at(-1)?.role === role) sent.at(-1).content += `\n\n${content}`;
    else sent.push({ role, content });
  }
  return sent;
}

async function answer() {
  const body = {
    messages: conversation(), stream: true, timings_per_token: true, return_progress: true,
    stream_options: { include_usage: true }, ...settings.sampling,
  };
  const own = chat; // another one may be looked at before it is finished
  const message = { role: "assistant", content: "" };
  own.messages.push(message);
  const view = show(message);
  const mine = answering = new AbortController();
  let drawn = 0;
  const draw = () => {
    drawn ||= requestAnimationFrame(() => {
      drawn = 0;
      view.update();
    });
  };
  busy(true);
  toLatest();
  try {
    const reply = await ask("v1/chat/completions",
      { method: "POST", body: JSON.stringify(body), signal: mine.signal });
    for await (const event of events(reply)) {
      if (event.error) throw Object.assign(new Error(event.error.message), event.error);
      const delta = event.choices?.[0]?.delta ?? {};
      message.content += delta.content ?? "";
      if (delta.reasoning_content) message.thought = (message.thought ?? "") + delta.reasoning_content;
      if (event.choices?.[0]?.finish_reason === "length") message.cut = true;
      if (event.timings) message.timings = event.timings;
      if (event.usage) message.tokens = event.usage.total_tokens;
      view.progress = event.prompt_progress;
      draw();
    }
  } catch (problem) {
    if (mine.signal.aborted) message.stopped = true;
    else message.error = explain(problem);
  } finally {
    cancelAnimationFrame(drawn);
    if (answering === mine) answering = null;
    view.update();
    own.changed = Date.now();
    if (!own.deleted) store.set(`chat.${own.id}`, own);
    if (!answering) busy(false);
    showChats();
  }
}

function explain(problem) {
  if (problem.type === "exceed_context_size_error") {
    return `The chat is ${problem.n_prompt_tokens?.toLocaleString("en")} tokens long, and the context has `
      + `${problem.n_ctx?.toLocaleString("en")}. Start a new chat, or the server with a larger --ctx.`;
  }
  if (problem instanceof TypeError) return "The connection to the server is lost.";
  return problem.message;
}

// ---- messages --------------------------------------------------------------------------------

// Puts a message at the end of the page; its `update` shows what it says now.
function show(message) {
  const text = make("div", { className: "text" });
  const acts = make("div", { className: "acts" });
  const view = make("article", { className: message.role }, text, acts);
  view.setAttribute("aria-label", message.role === "user" ? "You" : "The model");
  view.message = message;
  $("messages").append(view);
  if (message.role === "user") {
    text.textContent = message.content;
    acts.append(copyButton(message), iconButton("edit", "Change and send again", () => edit(view)));
    view.update = () => {};
    return view;
  }

  const thought = make("div", { className: "text" });
  const thinking = make("details", { hidden: true }, make("summary", {}, "Thinking"), thought);
  const state = make("p", { className: "state", hidden: true });
  const speed = make("span", { className: "speed" });
  const again = iconButton("again", "Answer again", () => regenerate(message));
  again.classList.add("again");
  acts.append(copyButton(message), again, speed);
  text.before(thinking);
  text.after(state);
  view.update = () => {
    const follow = atLatest();
    const live = answering && message === chat.messages.at(-1);
    Markdown.show(text, message.content);
    thinking.hidden = !message.thought;
    if (message.thought) Markdown.show(thought, message.thought);
    thinking.open = Boolean(live && message.thought && !message.content) || thinking.dataset.kept === "open";
    view.classList.toggle("live", Boolean(live));
    const waits = live && !message.content && !message.thought;
    const said = message.error || (waits ? reading(view.progress) : "")
      || (message.stopped ? "Stopped." : message.cut && !live ? "The end of the context, or of the tokens allowed, is reached." : "");
    state.textContent = said;
    state.hidden = !said;
    state.classList.toggle("error", Boolean(message.error));
    speed.textContent = live ? "" : spoken(message.timings);
    if (live) $("speed").textContent = spoken(message.timings);
    else $("speed").textContent = "";
    acts.hidden = Boolean(live);
    showRoom();
    if (follow) toLatest();
  };
  thinking.querySelector("summary").onclick = () => {
    thinking.dataset.kept = thinking.open ? "" : "open";
  };
  view.update();
  return view;
}

function reading(progress) {
  const left = progress ? progress.total - progress.cache : 0;
  if (left < 64) return "…";
  return `Reading the conversation: ${Math.round(100 * (progress.processed - progress.cache) / left)} %`;
}

function spoken(timings) {
  if (!timings?.predicted_n) return "";
  const rate = timings.predicted_per_second;
  return `${rate >= 100 ? Math.round(rate).toLocaleString("en") : rate.toFixed(1)} tokens/s · `
    + `${timings.predicted_n.toLocaleString("en")} tokens`;
}

function showRoom() {
  const used = chat.messages.findLast((message) => message.tokens)?.tokens;
  $("room").textContent = used && server.context
    ? `${used.toLocaleString("en")} of ${server.context.toLocaleString("en")} tokens of context` : "";
  $("room").classList.toggle("tight", used > 0.85 * server.context);
}

function showChat() {
  $("messages").replaceChildren();
  chat.messages.forEach(show);
  $("welcome").hidden = chat.messages.length > 0;
  $("speed").textContent = "";
  showRoom();
  showChats();
  toLatest();
}

function send(text) {
  if (!text.trim() || answering) return;
  $("welcome").hidden = true;
  chat.messages.push({ role: "user", content: text.trim() });
  show(chat.messages.at(-1));
  chat.changed = Date.now();
  save();
  showChats();
  answer();
}

function regenerate(message) {
  if (answering) return;
  chat.messages.length = chat.messages.indexOf(message);
  showChat();
  answer();
}

// Change a message of the user: what came after it goes.
function edit(view) {
  if (answering || view.querySelector("textarea")) return;
  const text = view.querySelector(".text");
  const box = make("textarea", { value: view.message.content, rows: 1 });
  box.setAttribute("aria-label", "Changed message");
  const leave = () => text.replaceChildren(view.message.content);
  const done = () => {
    if (!box.value.trim()) return leave();
    chat.messages.length = chat.messages.indexOf(view.message);
    showChat();
    send(box.value);
  };
  const ends = make("div", { className: "ends" },
    make("button", { type: "button", onclick: leave }, "Cancel"),
    make("button", { type: "button", className: "primary", onclick: done }, "Send"));
  box.oninput = () => grow(box);
  box.onkeydown = (event) => {
    if (event.key === "Escape") leave();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      done();
    }
  };
  text.replaceChildren(box, ends);
  grow(box);
  box.focus();
}

// ---- copying ---------------------------------------------------------------------------------

function copyButton(message) {
  const button = iconButton("copy", "Copy", async () => {
    await copy(message.content);
    button.replaceChildren(icon("done"));
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const box = make("textarea", { value: text, className: "away" }); // http on a local network has no clipboard
  document.body.append(box);
  box.select();
  document.execCommand("copy");
  box.remove();
}

$("messages").onclick = async ({ target }) => {
  if (target.dataset.copy !== "code") return;
  await copy(target.closest(".code").querySelector("code").textContent);
  target.textContent = "Copied";
  setTimeout(() => (target.textContent = "Copy"), 1500);
};

// ---- the list of chats -----------------------------------------------------------------------

function showChats() {
  const entries = store.chats().map((other) => {
    const title = other.messages[0].content.split("\n")[0].slice(0, 80);
    const open = make("button", { type: "button", className: "title", onclick: () => openChat(other) }, title);
    if (other.id === chat.id) open.setAttribute("aria-current", "true");
    return make("div", { className: "entry" }, open,
      iconButton("delete", `Delete “${title}”`, () => deleteChat(other)));
  });
  $("chat-list").replaceChildren(...entries);
}

function openChat(other) {
  answering?.abort();
  chat = other;
  save();
  showChat();
  drawer(false);
  if (matchMedia("(hover: hover)").matches) $("input").focus(); // on a phone that would open the keyboard
}

function deleteChat(other) {
  const gone = other.id === chat.id ? chat : other;
  gone.deleted = true;
  if (gone === chat) openChat(blank());
  store.drop(gone);
  showChats();
  notify("The chat is deleted.", ["Undo", () => {
    delete gone.deleted;
    openChat(gone);
    notify("");
  }], 8000);
}

function drawer(open) {
  document.body.classList.toggle("drawer", open);
  $("chats-open").setAttribute("aria-expanded", open);
  if (open) $("chats-close").focus();
}

// ---- settings --------------------------------------------------------------------------------

function showSampling() {
  $("sampling").replaceChildren(...SAMPLING.map(([name, label, step]) => {
    const own = server.sampling?.[name];
    const field = make("input", {
      type: "number", step, min: 0, inputMode: "decimal", value: settings.sampling[name] ?? "",
      placeholder: own === undefined || own < 0 ? "no limit" : +own.toPrecision(4),
      oninput() {
        if (field.value === "" || !(field.valueAsNumber >= 0)) delete settings.sampling[name];
        else settings.sampling[name] = field.valueAsNumber;
        store.set("settings", settings);
      },
    });
    return make("label", { className: "field" }, label, field);
  }));
}

function showSettings() {
  $("system").value = settings.system;
  $("theme").value = settings.theme;
  $("key").value = settings.key;
  document.documentElement.dataset.theme = settings.theme;
  showSampling();
}

for (const name of ["system", "theme", "key"]) {
  $(name).oninput = () => {
    settings[name] = $(name).value;
    document.documentElement.dataset.theme = settings.theme;
    store.set("settings", settings);
  };
}

$("reset").onclick = () => {
  Object.assign(settings, { system: "", sampling: {}, theme: "" }); // the key is not a matter of taste
  store.set("settings", settings);
  showSettings();
};

// ---- the rest of the page --------------------------------------------------------------------

let silence = 0;
function notify(text, [label, act] = [], milliseconds = 0) {
  clearTimeout(silence);
  $("notice").hidden = !text;
  $("notice").replaceChildren(text, ...(label ? [make("button", { type: "button", onclick: act }, label)] : []));
  if (milliseconds) silence = setTimeout(() => notify(""), milliseconds);
}

function busy(is) {
  $("messages").setAttribute("aria-busy", is);
  $("send").replaceChildren(icon(is ? "stop" : "send"));
  $("send").setAttribute("aria-label", is ? "Stop" : "Send");
  document.body.classList.toggle("busy", is);
}

function grow(box) {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

const atLatest = () => $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 60;
const toLatest = () => ($("scroll").scrollTop = $("scroll").scrollHeight);

$("scroll").onscroll = () => ($("latest").hidden = atLatest());
$("latest").onclick = toLatest;
$("input").oninput = () => grow($("input"));
$("input").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!answering) $("form").requestSubmit();
  }
};
$("form").onsubmit = (event) => {
  event.preventDefault();
  if (answering) {
    answering.abort();
    return;
  }
  send($("input").value);
  $("input").value = "";
  grow($("input"));
};
document.onkeydown = (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("drawer")) drawer(false);
  else answering?.abort();
};
$("new").onclick = $("new-small").onclick = () => openChat(blank());
$("chats-open").onclick = () => drawer(true);
$("chats-close").onclick = $("shade").onclick = () => drawer(false);
$("settings-open").onclick = () => {
  showSettings();
  $("settings").showModal();
};
window.onpagehide = () => {
  if (answering) save(); // what is there of the answer
};
$("ideas").append(...IDEAS.map((idea) => make("button", { type: "button", onclick: () => send(idea) }, idea)));

chat = store.chats().find((other) => other.id === store.get("current")) ?? chat;
showSettings();
showChat();
meet();
