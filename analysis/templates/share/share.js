// The pages of a shared folder. Every text of a model, a file or a person enters as textContent, never as HTML.
"use strict";
const { clips, traces, systems } = SHARED;
const placeOf = new Map(traces.map((trace, at) => [trace.id, at]));
const main = document.getElementById("main");
const MOST = 100; // rows shown at once
let timer = 0;

function el(tag, about = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...inside.filter((one) => one != null && one !== ""));
  return made;
}
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const answer = (label) => (label === "none" || label == null ? "no answer" : label);
const mark = (said, truth) => (truth == null ? "" : said === truth ? "right" : "wrong");
const watch = (trace, words) => el("a", { href: `#watch/${trace.id}` }, words);

// Watch

function showWatch(id) {
  const at = placeOf.get(id) ?? Math.max(0, traces.findIndex((one) => clips[one.clip].file));
  const trace = traces[at], clip = clips[trace.clip];
  const facts = [clip.label, clip.split, clip.group, clip.seconds && `${clip.seconds.toFixed(1)} s`].filter(Boolean);
  const player = clip.file
    ? el("video", { src: clip.file, controls: true, muted: true, playsinline: true, preload: "metadata" })
    : el("p", { class: "soft" }, "The video of this clip was left out.");
  const seek = (second) => {
    if (!clip.file) return;
    player.currentTime = second;
    player.scrollIntoView({ block: "nearest" });
  };
  const text = el("div");
  const replay = el("button", { onclick: () => play(trace, text, seek) }, "Replay");
  const whole = el("button", { onclick: () => write(trace, text, seek, Infinity) }, "At once");
  const others = traces.filter((one) => one.clip === trace.clip);
  const choose = el("select", { onchange: (event) => { location.hash = `#watch/${event.target.value}`; } },
    ...others.map((one) => el("option", { value: one.id, selected: one === trace }, named(one))));
  const near = (step) => traces[(at + step + traces.length) % traces.length];
  write(trace, text, seek, Infinity);
  main.replaceChildren(
    el("h2", {}, clip.name),
    el("p", {}, watch(near(-1), "← before"), " · ", watch(near(1), "next →"), ` · ${at + 1} of ${traces.length}`),
    el("div", { class: "stage" },
      el("section", {}, player, el("p", { class: "soft" }, facts.join(" · ")), ...verdict(trace)),
      el("section", {}, el("label", {}, "Trace ", choose), el("p", {}, replay, " ", whole), text)));
}

function named(trace) {
  const how = [trace.step == null ? null : `step ${trace.step}`, `sample ${trace.sample}`].filter(Boolean).join(", ");
  return `${trace.stage} · ${trace.system || trace.run_id} · ${how}`;
}

function verdict(trace) {
  const said = [el("h3", {}, "Verdict"),
    el("p", {}, "Provisional label: ", el("strong", { class: mark(trace.provisional, trace.true_label) }, answer(trace.provisional)))];
  if (trace.reason) said.push(el("p", {}, `No well-formed trace: ${trace.detail || trace.reason}`));
  if (trace.unlike) {
    said.push(el("p", {}, "No answer: this clip is farther from those that the calibrator learnt from than " +
      `${percent(trace.farther_than)} of the validation clips, ${trace.distance.toFixed(1)} times as far as the middle one.`));
  } else if (trace.probs.length) {
    said.push(el("p", {}, "Calibrated label: ", el("strong", { class: mark(trace.predicted, trace.true_label) }, trace.predicted)),
      el("ul", { class: "bars" }, ...trace.probs.map(([label, share]) => {
        const fill = el("span", { class: "fill" });
        fill.style.width = `${100 * share}%`;
        return el("li", {}, el("span", {}, label), el("span", { class: "track", "aria-hidden": "true" }, fill), el("span", {}, percent(share)));
      })));
  }
  if (trace.true_label != null) said.push(el("p", {}, "True label: ", el("strong", {}, trace.true_label)));
  return said;
}

function write(trace, into, seek, most) {
  clearInterval(timer);
  into.replaceChildren();
  for (const [name, parts] of trace.parts) {
    const body = el("div", { class: "segment" });
    for (const [text, second] of parts) {
      const shown = text.slice(0, most);
      most -= text.length;
      body.append(second == null ? shown
        : el("button", { class: "chip", title: `Show the clip at ${second.toFixed(1)} s`, onclick: () => seek(second) }, shown));
      if (most <= 0) break;
    }
    into.append(el("h3", {}, name || "Outside the form"), body);
    if (most <= 0) break;
  }
  if (most !== Infinity) return most > 0;
  into.append(el("p", { class: "soft" }, [trace.tokens && `${trace.tokens} tokens`, trace.run_id].filter(Boolean).join(" · ")));
  return true;
}

function play(trace, into, seek) {
  const started = performance.now();
  const step = () => write(trace, into, seek, (performance.now() - started) * 0.12 + 1) && write(trace, into, seek, Infinity);
  step();
  timer = setInterval(step, 60); // `write` ends the one before, so it is set again
  const go = () => { if (!step() && into.isConnected) timer = setTimeout(go, 60); };
  clearInterval(timer);
  timer = setTimeout(go, 60);
}

// Traces

const KINDS = [["run_id", "Run"], ["split", "Split"], ["true_label", "True label"], ["provisional", "Provisional"], ["predicted", "Calibrated"],
  ["reason", "Malformed"]];
const FLIPS = {
  fixed: (t) => t.provisional !== t.true_label && t.predicted === t.true_label,
  broken: (t) => t.provisional === t.true_label && t.predicted !== t.true_label,
  changed: (t) => t.provisional !== t.predicted,
};
const FLIPPED = (kind) => (t) => t.predicted != null && !t.unlike && (kind === "changed" || t.true_label != null) && FLIPS[kind](t);

function showTraces(query) {
  const asked = Object.fromEntries(new URLSearchParams(query));
  const put = (name, value) => {
    const next = new URLSearchParams({ ...asked, [name]: value });
    if (!value) next.delete(name);
    location.hash = `#traces?${next}`;
  };
  const select = (name, words, values) => el("label", {}, words,
    el("select", { onchange: (event) => put(name, event.target.value) }, el("option", { value: "" }, "Any"),
      ...values.map((one) => el("option", { value: one, selected: asked[name] === one }, one))));
  const filters = KINDS.map(([name, words]) =>
    select(name, words, [...new Set(traces.map((one) => one[name]).filter((one) => one != null))].sort()));
  filters.push(select("flip", "Calibration", Object.keys(FLIPS)));
  const search = el("input", { type: "search", value: asked.text || "", onchange: (event) => put("text", event.target.value) });
  const phrase = (asked.text || "").toLowerCase();
  const wordsOf = (trace) => trace.parts.map(([, parts]) => parts.map(([text]) => text).join("")).join(" ");
  const found = traces.filter((one) => KINDS.every(([name]) => !asked[name] || one[name] === asked[name])
    && (!(asked.flip in FLIPS) || FLIPPED(asked.flip)(one)) && (!phrase || wordsOf(one).toLowerCase().includes(phrase)));
  const rows = el("tbody");
  const more = el("button", { onclick: () => grow() }, "Show more");
  const grow = () => {
    const start = rows.children.length;
    for (const one of found.slice(start, start + MOST)) {
      rows.append(el("tr", {}, el("td", {}, watch(one, clips[one.clip].name)), el("td", {}, one.true_label ?? ""),
        el("td", { class: mark(one.provisional, one.true_label) }, answer(one.provisional)),
        el("td", { class: one.unlike ? "" : mark(one.predicted, one.true_label) }, one.unlike ? "no answer" : one.predicted ?? ""),
        el("td", { class: "text" }, wordsOf(one).trim().slice(0, 240))));
    }
    more.hidden = rows.children.length >= found.length;
  };
  grow();
  main.replaceChildren(el("h2", {}, "Traces"), el("div", { class: "filters" }, ...filters, el("label", {}, "Text", search)),
    el("p", { role: "status" }, `${found.length} of ${traces.length} traces`),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {},
      ...["Clip", "True", "Provisional", "Calibrated", "Text"].map((one) => el("th", { scope: "col" }, one)))), rows)), more);
}

// Errors

function showErrors(query) {
  if (!systems.length) return main.replaceChildren(el("h2", {}, "Errors"), el("p", {}, "None of these clips was scored against a label."));
  const asked = Object.fromEntries(new URLSearchParams(query));
  const at = Math.min(Math.max(0, Number(asked.system) || 0), systems.length - 1), system = systems[at];
  const labels = [...new Set(system.rows.flatMap(([, , truth, said]) => [truth, said]))].sort();
  const cell = (truth, said) => system.rows.filter((one) => one[2] === truth && one[3] === said);
  const right = system.rows.filter((one) => one[2] === one[3]).length;
  const choose = el("select", { onchange: (event) => { location.hash = `#errors?system=${event.target.value}`; } },
    ...systems.map((one, place) => el("option", { value: place, selected: place === at }, `${one.system} · ${one.label} · ${one.run}`)));
  const table = el("table", {}, el("caption", { class: "soft" }, "Rows: true label. Columns: answer."),
    el("thead", {}, el("tr", {}, el("td"), ...labels.map((one) => el("th", { scope: "col" }, answer(one))))),
    el("tbody", {}, ...labels.map((truth) => el("tr", {}, el("th", { scope: "row" }, truth), ...labels.map((said) => {
      const inside = cell(truth, said), all = system.rows.filter((one) => one[2] === truth).length;
      if (!inside.length) return el("td", {}, "");
      const button = el("button", { class: "cell", "aria-label": `${truth} taken for ${answer(said)}: ${inside.length}`,
        onclick: () => { location.hash = `#errors?${new URLSearchParams({ system: at, true: truth, said })}`; } }, `${inside.length}`);
      button.style.setProperty("--share", (0.7 * inside.length / all).toFixed(2));
      return el("td", {}, button);
    })))));
  const picked = "true" in asked ? cell(asked.true, asked.said) : [];
  const listed = picked.map(([clip, trace]) => el("li", {},
    placeOf.has(trace) ? watch(traces[placeOf.get(trace)], clips[clip].name) : clips[clip].name));
  main.replaceChildren(el("h2", {}, "Errors"), el("p", {}, choose),
    el("p", {}, `${right} of ${system.rows.length} right (${percent(right / system.rows.length)})`), el("div", { class: "scroll" }, table),
    ...(picked.length ? [el("h3", {}, `${asked.true} taken for ${answer(asked.said)}: ${picked.length}`), el("ul", { class: "clips" }, ...listed)] : []));
}

function show() {
  clearTimeout(timer);
  const [page, query = ""] = location.hash.slice(1).split("?");
  const [name, id] = page.split("/");
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#${name || "watch"}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "traces") showTraces(query);
  else if (name === "errors") showErrors(query);
  else showWatch(id);
}
addEventListener("hashchange", () => { show(); main.focus({ preventScroll: true }); });
show();
