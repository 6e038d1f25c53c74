// SPDX-License-Identifier: MIT
// Markdown as models write it, made into elements. No text is ever parsed as HTML.
"use strict";

const Markdown = (() => {
  const DEEPEST = 12; // lists in quotes in lists ...
  const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
  const HEADING = /^ {0,3}(#{1,6})\s+(.*?)(?:\s+#+)?\s*$/;
  const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
  const QUOTE = /^ {0,3}> ?/;
  const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:\s+|$)/;
  const DELIMITERS = /^ {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

  const element = (name, ...children) => {
    const made = document.createElement(name);
    made.append(...children);
    return made;
  };

  // ---- blocks --------------------------------------------------------------------------------

  // The blocks of lines: each is what it is and its lines.
  function* blocks(lines) {
    for (let at = 0; at < lines.length; ) {
      if (!lines[at].trim()) {
        at++;
        continue;
      }
      const kind = kindOf(lines, at);
      const end = ends[kind](lines, at);
      yield { kind, lines: lines.slice(at, end) };
      at = end;
    }
  }

  function kindOf(lines, at) {
    const line = lines[at];
    if (FENCE.test(line)) return "code";
    if (HEADING.test(line)) return "heading";
    if (RULE.test(line)) return "rule";
    if (QUOTE.test(line)) return "quote";
    if (ITEM.test(line)) return "list";
    if (line.includes("|") && DELIMITERS.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")
        && cells(line).length === cells(lines[at + 1]).length) return "table";
    return "paragraph";
  }

  const while_ = (lines, at, goesOn) => {
    while (at < lines.length && goesOn(lines[at], at)) at++;
    return at;
  };

  // Where a block ends that begins at a line.
  const ends = {
    code(lines, at) {
      const fence = FENCE.exec(lines[at])[1];
      const close = new RegExp(`^ {0,3}${fence[0]}{${fence.length},}\\s*$`);
      const end = while_(lines, at + 1, (line) => !close.test(line));
      return Math.min(end + 1, lines.length); // one that is not closed yet goes to the end
    },
    heading: (lines, at) => at + 1,
    rule: (lines, at) => at + 1,
    quote: (lines, at) => while_(lines, at, (line) => line.trim() && (QUOTE.test(line) || !starts(line))),
    list(lines, at) {
      const [, indent, marker] = ITEM.exec(lines[at]);
      const ordered = /\d/.test(marker);
      let fence = null;
      return while_(lines, at + 1, (line, i) => {
        const mark = FENCE.exec(line.trimStart());
        if (mark && (!fence || mark[1].startsWith(fence))) fence = fence ? null : mark[1];
        if (fence || mark) return true;
        if (!line.trim()) {
          const next = lines.slice(i).find((later) => later.trim());
          return next !== undefined && (belongs(next, indent, ordered) || /^ {2,}|^\t/.test(next));
        }
        if (/^ {2,}|^\t/.test(line)) return true;
        return belongs(line, indent, ordered) || (lines[i - 1].trim() && !starts(line));
      });
    },
    table: (lines, at) => while_(lines, at, (line) => line.trim() && line.includes("|")),
    paragraph: (lines, at) => while_(lines, at + 1, (line, i) => line.trim() && kindOf(lines, i) === "paragraph"),
  };

  const starts = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((form) => form.test(line));

  const belongs = (line, indent, ordered) => {
    const item = ITEM.exec(line);
    return item && !RULE.test(line) && item[1].length >= indent.length
      && (item[1].length > indent.length || /\d/.test(item[2]) === ordered);
  };

  function render({ kind, lines }, depth) {
    if (depth > DEEPEST) return element("p", lines.join("\n"));
    return renderers[kind](lines, depth);
  }

  const inside = (lines, depth) => [...blocks(lines)].map((block) => render(block, depth + 1));

  const renderers = {
    code(lines) {
      const [, fence, language] = FENCE.exec(lines[0]);
      const last = lines.length > 1 && lines.at(-1).trim().startsWith(fence) ? -1 : undefined;
      return codeBlock(lines.slice(1, last).join("\n"), language);
    },
    heading(lines) {
      const [, marks, text] = HEADING.exec(lines[0]);
      return element(`h${Math.min(marks.length + 2, 6)}`, ...inline(text)); // h1 and h2 are the page's
    },
    rule: () => element("hr"),
    quote: (lines, depth) =>
      element("blockquote", ...inside(lines.map((line) => line.replace(QUOTE, "")), depth)),
    list(lines, depth) {
      const [, indent, marker] = ITEM.exec(lines[0]);
      const made = element(/\d/.test(marker) ? "ol" : "ul");
      if (made.localName === "ol" && parseInt(marker) !== 1) made.start = parseInt(marker);
      const items = [];
      let fence = false;
      let width = 0; // of indent and marker: what the item's other lines are indented by, at most
      for (const line of lines.map((line) => line.replace(/^\t/, "    "))) {
        const item = fence ? null : ITEM.exec(line);
        if (item && item[1].length <= indent.length + 1) {
          width = item[0].length;
          items.push([line.slice(width)]);
        } else {
          items.at(-1).push(line.replace(new RegExp(`^ {0,${width}}`), ""));
        }
        if (FENCE.test(line.trimStart())) fence = !fence;
      }
      const loose = items.some((item, i) => item.some((line, at) =>
        !line.trim() && at > 0 && (at < item.length - 1 || i < items.length - 1)));
      for (const item of items) {
        const task = /^\[([ xX])\]\s+/.exec(item[0]);
        if (task) item[0] = item[0].slice(task[0].length);
        const parts = [...blocks(item)].flatMap((block) => block.kind === "paragraph" && !loose
          ? inline(block.lines.join("\n")) : [render(block, depth + 1)]);
        made.append(element("li", ...(task ? [task[1] === " " ? "☐ " : "☑ "] : []), ...parts));
      }
      return made;
    },
    table(lines) {
      const aligned = cells(lines[1]).map((cell) =>
        cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "");
      const row = (line, name) => element("tr", ...aligned.map((align, i) => {
        const cell = element(name, ...inline(cells(line)[i] ?? ""));
        if (align) cell.className = align;
        return cell;
      }));
      const made = element("div", element("table", element("thead", row(lines[0], "th")),
        element("tbody", ...lines.slice(2).map((line) => row(line, "td")))));
      made.className = "table";
      made.tabIndex = 0; // it scrolls
      return made;
    },
    paragraph: (lines) => element("p", ...inline(lines.map((line) => line.trimStart()).join("\n"))),
  };

  const cells = (line) => line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/)
    .map((cell) => cell.trim().replaceAll("\\|", "|"));

  function codeBlock(text, language) {
    const label = element("span", language || "text");
    const copy = element("button", "Copy");
    copy.type = "button";
    copy.dataset.copy = "code";
    const made = element("div", element("div", label, copy), element("pre", element("code", text)));
    made.className = "code";
    made.querySelector("pre").tabIndex = 0; // it scrolls
    return made;
  }

  // ---- inline ---------------------------------------------------------------------------------

  const address = /(?:https?:\/\/|mailto:)[^\s<>]+/.source;
  const INLINE = new RegExp([
    /\\([!-/:-@[-`{-~])/.source, //                                   1: escaped
    /(`+)([^`]|[^`][^]*?[^`])\2(?!`)/.source, //                      2, 3: code
    /!?\[([^\[\]]*)\]\(\s*<?([^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)*)>?(?:\s+"[^"]*")?\s*\)/.source, // 4, 5: link
    `<(${address})>`, //                                              6: <address>
    `(${address})`, //                                                7: address
    /\*\*(?=\S)([^]*?\S)\*\*(?!\*)/.source, //                        8: strong
    /(?<!\w)__(?=\S)([^]*?\S)__(?!\w)/.source, //                     9: strong
    /\*(?=[^\s*])((?:[^*]|\*\*[^*]*\*\*)*?[^\s*])\*(?!\*)/.source, // 10: emphasis
    /(?<!\w)_(?=[^\s_])([^_]*?[^\s_])_(?!\w)/.source, //              11: emphasis
    /~~(?=\S)([^]*?\S)~~/.source, //                                  12: struck out
    /( {2,}\n|\\\n|\n|<br\s*\/?>)/.source, //                         13: a new line
  ].join("|"), "g");

  function inline(text, depth = 0) {
    if (depth > DEEPEST) return [text];
    const parts = [];
    let at = 0;
    for (const found of text.matchAll(INLINE)) {
      parts.push(text.slice(at, found.index));
      at = found.index + found[0].length;
      parts.push(made(found, depth + 1));
    }
    return [...parts, text.slice(at)].filter((part) => part !== "");
  }

  function made(found, depth) {
    const [whole, escaped, , code, label, target, bracketed, bare, strong, strong2, em, em2, struck] = found;
    if (escaped !== undefined) return escaped;
    if (code !== undefined) return element("code", code.replace(/^ (.*\S.*) $/s, "$1").replaceAll("\n", " "));
    if (label !== undefined) return link(target, label ? inline(label, depth) : [target]) ?? whole;
    if (bracketed !== undefined) return link(bracketed, [bracketed]) ?? whole;
    if (bare !== undefined) {
      const own = /^(.*?)([.,;:!?'"*_~)\]]*)$/s.exec(bare); // the sentence's punctuation is not the address's
      const closing = own[2].startsWith(")") && own[1].includes("(") ? ")" : "";
      const to = own[1] + closing;
      return element("span", link(to, [to]) ?? to, own[2].slice(closing.length));
    }
    if (strong ?? strong2) return element("strong", ...inline(strong ?? strong2, depth));
    if (em ?? em2) return element("em", ...inline(em ?? em2, depth));
    if (struck !== undefined) return element("s", ...inline(struck, depth));
    return element("br");
  }

  // A link, only to where a link of a stranger may lead.
  function link(target, children) {
    let url;
    try {
      url = new URL(target);
    } catch {
      return null;
    }
    if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
    const made = element("a", ...children);
    made.href = url.href;
    made.target = "_blank";
    made.rel = "noopener noreferrer nofollow";
    return made;
  }

  // Show `text` in `place`; blocks that it had before stay, so that a stream costs little.
  function show(place, text) {
    const wanted = [...blocks(text.replaceAll("\r\n", "\n").split("\n"))];
    const had = place.markdownBlocks ?? [];
    const keys = wanted.map(({ kind, lines }) => kind + "\n" + lines.join("\n"));
    let same = 0;
    while (same < keys.length && keys[same] === had[same]) same++;
    while (place.childNodes.length > same) place.lastChild.remove();
    place.append(...wanted.slice(same).map((block) => render(block, 0)));
    place.markdownBlocks = keys;
  }

  return { show };
})();
