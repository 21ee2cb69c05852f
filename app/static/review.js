// Review: tasks, the desk where items are judged by keyboard, a lead's view. Everything that is said goes to
// /review-api and counts as saved when that has answered; the next item and its clip are fetched ahead.
"use strict";
(() => {
  if (!/\/review\/?$/.test(window.location.pathname)) return;
  const RATES = [0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4];
  const MOST_OPEN = 6; // items that a tab holds at once
  const VERDICTS = { a: "right", w: "wrong reasons", r: "wrong", u: null };
  const EDITED = /^\s*</; // a note that begins like this is a corrected trace
  const FAILS = { s: "seeing", d: "reasoning" };
  const NO_MARK = { start: null, end: null, picked: -1, last: null }; // a span that is begun, the one that is picked, the one marked last
  let root = null, desk = null, seat = "", active = performance.now(), counting = 0;

  const $ = (selector) => root.querySelector(selector);
  const all = (selector) => [...root.querySelectorAll(selector)];
  const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const query = () => new URLSearchParams(window.location.search);
  const shelf = (item) => `deepintuit-draft\n${desk.task}\n${item}`;
  const RECENT = () => `deepintuit-recent\n${desk.task}`;

  async function ask(what, given, keepalive = false) {
    let reply;
    try {
      reply = await fetch(`review-api/${what}`, {
        method: "POST", keepalive,
        ...(given instanceof Blob ? { body: given } : { headers: { "Content-Type": "application/json" }, body: JSON.stringify(given) }),
      });
    } catch {
      throw new Error("The server cannot be reached. What you gave stays here: try again in a moment.");
    }
    if (reply.status === 401) throw new Error("You are logged out. Log in in another tab, then try again here: what you gave stays.");
    const found = await reply.json().catch(() => ({}));
    if (!reply.ok) throw new Error(found.error || `The server answered with ${reply.status}.`);
    return found;
  }

  // ── Pages: the list, a task's desk, a lead's view; which one is in the address. ──
  function go(task, view) {
    const to = new URLSearchParams({ ...(task && { task }), ...(view && { view }) }).toString();
    window.history.pushState(null, "", window.location.pathname + (to ? `?${to}` : ""));
    return route();
  }

  async function route() {
    const task = query().get("task"), view = query().get("view") || "";
    desk = null;
    try {
      if (task && view !== "lead") return await start(task, view === "decide");
      const found = task ? await ask("lead", { task }) : await ask("tasks", { query: query().get("query") || "", slice: query().get("slice") || "" });
      root.innerHTML = found.html;
      if (!task) await counted();
    } catch (error) {
      refused(error);
    }
  }

  function refused(error) {
    root.innerHTML = '<div class="empty" role="alert"><p></p><button type="button" data-do="leave">All tasks</button></div>';
    $("p").textContent = error.message;
  }

  const form = () => {
    const data = new FormData($("#review-open"));
    return { ...Object.fromEntries(data), questions: data.getAll("questions") };
  };

  async function counted() {
    const place = $("#review-count");
    if (!place) return;
    try {
      const found = await ask("count", form());
      place.textContent = `${found.count.toLocaleString("en")} trace${found.count === 1 ? "" : "s"}`;
    } catch (error) {
      place.textContent = error.message;
    }
  }

  // ── The desk ──
  async function start(task, decide) {
    const found = await ask("start", { task, view: decide ? "decide" : "" });
    root.innerHTML = found.html;
    desk = { task, decide, questions: found.questions, list: [], at: -1, asking: null, busy: false, rate: 1, picked: -1, mark: NO_MARK, timer: 0, drafting: null, said: 0 };
    const here = desk;
    await take(sessionStorage.getItem(`${RECENT()}\nnow`)); // after a reload: what was on screen
    if (here !== desk) return;
    if (desk.list.length) show(0); else finished();
  }

  function entryOf(found) {
    const kept = JSON.parse(sessionStorage.getItem(shelf(found.item)) || "null");
    const given = Object.entries(kept || found.draft || {}).filter(([name]) => desk.questions.includes(name));
    const node = document.createElement("div");
    node.innerHTML = found.html;
    const entry = { ...found, node, answers: Object.fromEntries(given), state: "open", video: null, id: null };
    entry.until = performance.now() + 1000 * (found.seconds || 600);
    return entry;
  }

  function filmOf(entry) {
    if (entry.video || !entry.film) return entry.video;
    const video = document.createElement("video");
    Object.assign(video, { muted: true, playsInline: true, controls: true, preload: "auto", src: entry.film.src });
    video.setAttribute("aria-label", "The clip of this item");
    entry.video = video;
    return video;
  }

  // One more item behind the last one; null when there is none now. One request at a time.
  function take(first = null) {
    const here = desk;
    here.asking ||= (async () => {
      let found, said, held;
      do { // an answer or an undo on the way may have made the item one that is here already: ask again
        const holding = here.list.filter((entry) => entry.state !== "judged").map((entry) => entry.item);
        ({ said } = here);
        found = await ask("next", { task: here.task, seat, first, holding, decide: here.decide });
        if (here !== desk) return null;
        held = here.list.find((one) => one.item === found.item);
      } while (held && said !== here.said);
      if (said === here.said) told(found.progress); // else it was counted before the last answer
      here.elsewhere = found.elsewhere || 0;
      here.closed = found.closed;
      here.finish = found.item ? "" : found.html || "";
      if (!found.item) return null;
      if (held && open(held)) return held; // what is on screen stays the entry that is answered
      const entry = entryOf(found);
      here.list.push(entry);
      filmOf(entry);
      return entry;
    })().finally(() => { here.asking = null; });
    return here.asking;
  }

  function told(progress) {
    const place = $("#review-progress");
    if (!progress || !place) return;
    const n = (value) => value.toLocaleString("en");
    place.textContent = "left" in progress ? `${n(progress.left)} left to decide`
      : `${n(progress.mine)} by you · ${n(progress.done)} of ${n(progress.asked)} judgements`;
  }

  const now = () => desk && desk.list[desk.at];
  const open = (entry) => entry.state === "open";

  function show(index) {
    const entry = desk.list[index], video = filmOf(entry);
    desk.at = index;
    desk.picked = -1;
    desk.mark = NO_MARK;
    document.querySelector("#review-film video")?.pause();
    const none = document.createElement("p");
    none.className = "unplayable";
    none.textContent = "The manifest does not hold this clip any more, or excludes it: only what was written can be shown.";
    $("#review-film").replaceChildren(video || none);
    $("#review-item").replaceChildren(entry.node);
    all("video").forEach((one) => { one.id = ""; });
    if (video) {
      video.id = "player";
      video.playbackRate = video.defaultPlaybackRate = desk.rate;
      for (const name of ["loadedmetadata", "seeked", "timeupdate", "play"]) video.addEventListener(name, playhead);
      if (!window.matchMedia("(prefers-reduced-motion: reduce)").matches) video.play().catch(() => {});
    }
    sessionStorage.setItem(`${RECENT()}\nnow`, entry.item);
    paint();
    say(open(entry) ? "" : "You have answered this one; another answer replaces it.");
    $("#review-item").scrollTop = 0;
    const note = $("#review-note");
    if (note) {
      note.rows = 2;
      check(note.value);
    }
    ahead();
    // Old clips let go of their memory.
    desk.list.forEach((one, i) => {
      if (one.video && i !== index && !open(one)) { one.video.removeAttribute("src"); one.video.load(); one.video = null; }
    });
    return onScreen(video);
  }

  // When trace and first picture are painted: what is measured as the time from submit to the next item.
  function onScreen(video) {
    const painted = () => requestAnimationFrame(() => requestAnimationFrame(() => {
      if (now()?.video === video && performance.getEntriesByName("review-submit").length) {
        performance.measure("review-next", "review-submit");
        performance.clearMarks("review-submit");
      }
    }));
    if (!video || video.readyState >= 2 || video.error) painted();
    // A clip that was shown before and rested comes back by "canplay" alone.
    else for (const name of ["loadeddata", "canplay", "error"]) video.addEventListener(name, painted, { once: true });
  }

  // Two items wait behind the one on screen: a quick answer does not wait for the one after it.
  function ahead() {
    const waiting = desk.list.slice(desk.at + 1).filter(open).length, here = desk;
    root.dataset.ahead = waiting;
    if (waiting >= 2 || desk.list.filter(open).length >= MOST_OPEN) return;
    take().then((entry) => { if (entry && here === desk) ahead(); }, () => {}); // a failure is said when it is needed
  }

  function paint() {
    const entry = now();
    if (!entry) return;
    const { label, verdict, failing, note } = entry.answers;
    const press = (button, on) => button.setAttribute("aria-pressed", String(on));
    const given = (button, value, answer) => press(button, answer === ("unsure" in button.dataset ? null : value));
    all("[data-label]").forEach((button) => given(button, button.dataset.label, label));
    all("[data-verdict]").forEach((button) => given(button, button.dataset.verdict, verdict));
    all("[data-failing]").forEach((button) => press(button, failing?.in === button.dataset.failing));
    const place = $("#review-failing"), field = $("#review-note");
    if (place) place.textContent = failing ? `sentence ${failing.sentence + 1}` : desk.picked >= 0 ? `picked: ${desk.picked + 1}` : "none";
    if (field && field.value !== (note || "")) field.value = note || "";
    entry.node.querySelectorAll(".sentence").forEach((sentence, i) => {
      sentence.classList.toggle("picked", i === desk.picked);
      sentence.classList.toggle("fails", failing?.sentence === i);
    });
    $("#review-speed").textContent = desk.rate === 1 ? "" : `${desk.rate}× speed`;
    timeline();
  }

  // ── The timeline: what the trace cites, spans, and where the clip is. [ and ] mark a span while it plays; the same
  // keys move the ends of the one that is picked. A span begins with a frame and ends behind one. ──
  const spans = () => now()?.answers.spans || [];
  const times = ({ start, end }) => `${start.toFixed(2)}–${end.toFixed(2)} s`;
  const lasts = () => { const { video, film } = now() || {}; return video?.duration || film?.seconds || 0; };
  const spanLabels = () => all("[data-span-label]").map((button) => button.dataset.spanLabel);

  function timeline() {
    const box = $("#review-timeline"), entry = now(), length = lasts();
    if (!box || !entry) return;
    box.hidden = !length;
    const at = (seconds) => `${Math.min(100, 100 * seconds / (length || 1))}%`;
    const mark = (kind, seconds, words) => {
      const one = document.createElement("i");
      Object.assign(one, { className: kind, title: words });
      one.style.left = at(seconds);
      return one;
    };
    const bar = (kind, span, words) => {
      const one = mark(kind, span.start, words);
      one.style.width = at(span.end - span.start);
      return one;
    };
    const { start, end, picked } = desk.mark;
    const cited = [...entry.node.querySelectorAll(".sentence[data-at]")].flatMap((one) => one.dataset.at.split(",")).filter(Boolean).map(Number);
    const labels = spanLabels();
    const bars = spans().map((span, i) => {
      const one = bar(i === picked ? "span picked" : "span", span, `${span.label} ${times(span)}`);
      one.style.setProperty("--tone", `${47 * labels.indexOf(span.label) + 210}deg`);
      one.textContent = span.label;
      return one;
    });
    const begun = start === null ? [] : [bar("span begun", { start, end: end ?? start + entry.film.step }, "begun")];
    box.replaceChildren(...bars, ...begun, ...cited.map((seconds) => mark("cited", seconds, `The trace cites ${seconds.toFixed(1)} s`)), mark("head", 0, ""));
    box.setAttribute("aria-label", `Timeline of ${length.toFixed(1)} s: ${cited.length} cited moments, ${bars.length} spans`);
    playhead();
    $("#review-spans")?.replaceChildren(...spans().map((span, i) => {
      const row = $("#review-span").content.firstElementChild.cloneNode(true), [pick, label] = row.children;
      row.dataset.span = i;
      pick.textContent = times(span);
      pick.setAttribute("aria-pressed", String(i === picked));
      label.value = span.label;
      return row;
    }));
    all("[data-span-label]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.spanLabel === (spans()[picked]?.label ?? inUse()))));
  }

  // Moved by each picture while the clip plays.
  function playhead() {
    const { video } = now() || {}, head = $("#review-timeline .head");
    if (!video || !head) return;
    head.style.left = `${Math.min(100, 100 * video.currentTime / (lasts() || 1))}%`;
    if (!video.paused && !video.ended) requestAnimationFrame(() => { if (head.isConnected) playhead(); });
  }

  // Where the picture on screen begins (0) or ends (1), in whole microseconds as the server keeps it.
  function frameAt(edge) {
    const { video, film: { step } } = now(), last = Math.max(0, Math.round((video.duration || 0) / step) - 1);
    return Number(((Math.min(last, Math.floor(video.currentTime / step + 0.01)) + edge) * step).toFixed(6));
  }

  const inUse = () => desk.mark.label ?? desk.mark.last?.label ?? now()?.answers.label ?? (spanLabels().length === 1 ? spanLabels()[0] : null);
  const marking = () => desk.questions.includes("spans") && (desk.mark.start !== null || desk.mark.picked >= 0 || !desk.questions.includes("label"));

  function keep(list, words, picked) {
    list.sort((a, b) => a.start - b.start || a.end - b.end);
    desk.mark = { ...NO_MARK, last: desk.mark.last, picked: list.indexOf(picked) };
    answer("spans", list.length ? list : undefined);
    say(words);
  }

  function mark(edge) {
    const { mark: { start, picked } } = desk;
    if (!desk.questions.includes("spans") || !now()?.video || desk.busy) return;
    const at = frameAt(edge), list = [...spans()];
    if (picked >= 0) {
      const span = { ...list[picked], [edge ? "end" : "start"]: at };
      if (span.end <= span.start) return say("A span ends after it begins.", "bad");
      list[picked] = span;
      return keep(list, `${span.label} ${times(span)}.`, span);
    }
    if (!edge) {
      desk.mark = { ...desk.mark, start: at, end: null };
      say(`A span from ${at.toFixed(2)} s: ] ends it, X drops it.`);
      return paint();
    }
    if (start === null) return say("Mark where it begins first: [", "bad");
    const back = at <= start; // marked from its end
    desk.mark = { ...desk.mark, ...(back ? { start: frameAt(0), end: Number((start + now().film.step).toFixed(6)) } : { end: at }) };
    const label = inUse();
    if (label !== null) return named(label);
    say("Which label has the span? 1 … 9");
    paint();
  }

  function named(label) {
    const { start, end, picked, last } = desk.mark, list = [...spans()], index = picked >= 0 || start !== null ? picked : list.indexOf(last);
    if (index < 0 && end === null) {
      desk.mark = { ...desk.mark, label };
      return paint();
    }
    const span = { ...(index < 0 ? { start, end } : list[index]), label };
    if (index < 0) list.push(span); else list[index] = span;
    if (picked < 0) desk.mark = { ...desk.mark, last: span };
    keep(list, `${label} ${times(span)}.${desk.questions.includes("label") ? "" : " 1 … 9 gives it another label."}`, picked < 0 ? null : span);
  }

  function pickSpan(by, index = desk.mark.picked < 0 && by < 0 ? -1 : desk.mark.picked + by) {
    if (!spans().length) return say("No span is marked yet: [ begins one, ] ends it.");
    desk.mark = { ...NO_MARK, picked: (index + spans().length) % spans().length };
    const span = spans()[desk.mark.picked], { video } = now();
    if (video) { video.pause(); video.currentTime = span.start + 0.001; }
    paint();
    say(`${span.label} ${times(span)}: [ and ] move its ends, 1 … 9 label it, X removes it, Esc leaves it.`);
  }

  function drop() {
    const list = [...spans()], [span] = list.splice(desk.mark.picked, desk.mark.picked >= 0 ? 1 : 0);
    if (!span && desk.mark.start === null) return say("Pick a span first: { or }, or click on it.", "bad");
    keep(list, span ? `${span.label} ${times(span)} is removed.` : "Dropped.", null);
  }

  function leaveSpan() {
    desk.mark = NO_MARK;
    say("");
    paint();
  }

  function say(words, kind = "") {
    const place = $("#review-status");
    if (!place) return;
    place.className = kind;
    place.textContent = words;
  }

  function answer(name, value) {
    const entry = now();
    if (!entry || !desk.questions.includes(name) || desk.busy) return;
    if (value === undefined) delete entry.answers[name]; else entry.answers[name] = value;
    entry.id = null; // another answer is another event
    say("");
    paint();
    sessionStorage.setItem(shelf(entry.item), JSON.stringify(entry.answers));
    if (desk.decide) return;
    clearTimeout(desk.timer);
    desk.pending = entry;
    desk.timer = setTimeout(draft, 400);
  }

  // What is typed is kept on the server as well: another tab or machine finds it.
  function draft(keepalive = false) {
    const entry = desk?.pending, here = desk;
    if (!entry) return;
    clearTimeout(desk.timer);
    desk.pending = null;
    here.drafting = renew(entry, keepalive === true).then(() => { if (here === desk && entry === now() && !desk.busy && !$("#review-status")?.textContent) say("Draft kept."); }, () => {});
  }

  async function renew(entry, keepalive = false) {
    await ask("draft", { task: desk.task, item: entry.item, answers: entry.answers }, keepalive);
    entry.until = performance.now() + 1000 * entry.seconds;
  }

  // What an answer says against itself, in sentences; "" where nothing.
  async function contradiction({ item, answers: { label, verdict, failing, note }, node }) {
    const written = node.querySelector("template.written")?.dataset.ends, against = [];
    const other = label && written && label !== written;
    if (verdict === "right" && failing) against.push("The trace is accepted, and a sentence of it fails.");
    else if (verdict === "right" && written === "") against.push("The trace is accepted, but it has no answer that can be read.");
    else if (verdict === "right" && other) against.push(`The trace is accepted, but it ends in ${written} and not in ${label}.`);
    else if (verdict === "wrong reasons" && other) against.push(`The trace is said to be right for wrong reasons, but it ends in ${written} and not in ${label}.`);
    if (EDITED.test(note || "")) {
      if (verdict === "right") against.push("The trace is accepted, and a corrected one stands in the note.");
      const found = await ask("check", { task: desk.task, item, text: note });
      if (!found.label) against.push(`The corrected trace cannot be learned from. ${found.told}`);
      else if (label && found.label !== label) against.push(`The corrected trace ends in ${found.label} and not in ${label}.`);
    }
    return against.join(" ");
  }

  // A trace is edited in the note, and looked at by the server while it is typed.
  function edit() {
    const note = $("#review-note"), text = now()?.node.querySelector("template.written")?.content.textContent;
    if (!note || !text) return say("This trace cannot be edited: the task asks for no note, or hides the labels.", "bad");
    if (!note.value.trim()) {
      note.value = text;
      note.dispatchEvent(new Event("input", { bubbles: true }));
    }
    note.rows = 8;
    note.focus();
  }

  let checking = 0;
  function check(text) {
    clearTimeout(checking);
    const place = $("#review-check"), entry = now(), task = desk.task;
    if (!place) return;
    if (!entry || !EDITED.test(text)) return place.replaceChildren();
    checking = setTimeout(async () => {
      const found = await ask("check", { task, item: entry.item, text }).catch(() => null);
      if (!found || entry !== now() || $("#review-note")?.value !== text) return;
      const other = found.label && entry.answers.label && found.label !== entry.answers.label;
      place.textContent = found.told + (other ? ` Your label is ${entry.answers.label}.` : "");
    }, 300);
  }

  async function submit() {
    const entry = now(), here = desk;
    if (!entry || here.busy || here.weighing) return;
    if (desk.mark.start !== null) return say(desk.mark.end === null ? "A span is begun: ] ends it, X drops it." : "Which label has the span? 1 … 9, or X drops it.", "bad");
    const missing = ["label", "verdict"].find((name) => desk.questions.includes(name) && !(name in entry.answers));
    if (missing) return say(missing === "label" ? "Which label? 1 … 9, or 0 for unsure." : "And the trace? A, W, R, or U for unsure.", "bad");
    const given = JSON.stringify(entry.answers);
    let odd;
    here.weighing = true;
    try {
      odd = await contradiction(entry);
    } catch (error) {
      return here === desk && say(`Not saved. ${error.message}`, "bad");
    } finally {
      here.weighing = false;
    }
    if (here !== desk || entry !== now() || here.busy || given !== JSON.stringify(entry.answers)) return; // moved on meanwhile
    if (odd && entry.asked !== odd) {
      entry.asked = odd; // asked once: who submits again means it
      return say(`${odd} Submit again (Enter) if that is meant.`, "bad");
    }
    await settle(entry, desk.decide ? "decide" : "judge", { answers: entry.answers });
  }

  // Send an answer, and go on when it is on disk.
  async function settle(entry, what, given) {
    const here = desk;
    here.busy = true;
    root.dataset.busy = "";
    clearTimeout(here.timer);
    here.pending = null;
    performance.mark("review-submit");
    say("Saving …");
    entry.id ||= newId(); // sent again after a broken line, it counts once
    try {
      await here.drafting;
      const found = await ask(what, { task: here.task, item: entry.item, id: entry.id, ...given });
      if (here !== desk) return;
      here.said += 1;
      told(found.progress);
      entry.state = "judged";
      sessionStorage.removeItem(shelf(entry.item));
      const recent = JSON.parse(sessionStorage.getItem(RECENT()) || "[]").filter((item) => item !== entry.item);
      sessionStorage.setItem(RECENT(), JSON.stringify([...recent, entry.item].slice(-50)));
      await onward(what === "skip" ? "Skipped, and saved." : found.told || "Saved.");
      if (found.gold && here === desk) {
        $("#review-gold div").innerHTML = found.gold;
        $("#review-gold").showModal();
      }
    } catch (error) {
      performance.clearMarks("review-submit");
      if (here === desk) say(`Not saved. ${error.message}`, "bad");
    } finally {
      here.busy = false;
      delete root.dataset.busy;
    }
  }

  async function onward(words) {
    // Reservations that ran out while the tab slept may be somebody else's by now.
    const lapsed = (entry) => open(entry) && entry !== now() && entry.until < performance.now() && !Object.keys(entry.answers).length;
    const here = now();
    desk.list = desk.list.filter((entry) => !lapsed(entry));
    desk.at = desk.list.indexOf(here);
    let next = desk.list.findIndex((entry, i) => i > desk.at && open(entry));
    if (next < 0) next = desk.list.findIndex(open);
    if (next < 0) {
      say(`${words} Fetching the next item …`, "good");
      try {
        if (await take()) next = desk.list.findIndex(open);
      } catch (error) {
        return say(`${words} ${error.message}`, "bad");
      }
    }
    if (next < 0) finished(); else show(next);
    say(words, "good");
  }

  function finished() {
    performance.clearMarks("review-submit");
    desk.at = desk.list.length;
    const words = desk.decide ? "Nothing is left to decide." : desk.closed ? "This task is closed." : "Nothing is left for you in this task now.";
    const box = document.createElement("div");
    box.className = "empty";
    box.innerHTML = "<p><strong></strong></p><p></p>";
    box.querySelector("strong").textContent = words;
    const more = box.querySelectorAll("p")[1];
    if (desk.elsewhere) {
      more.innerHTML = '<button type="button" data-do="gather"></button>';
      more.firstChild.textContent = `Take the ${desk.elsewhere} that you hold in other tabs`;
    } else if (!desk.decide) {
      more.textContent = desk.closed ? "A lead can open it again; what you typed is kept." : "Others may hold items that come free when they leave. Undo (Z) takes your last answer back.";
    }
    $("#review-film").replaceChildren();
    if (desk.finish && !desk.elsewhere) $("#review-item").innerHTML = desk.finish;
    else $("#review-item").replaceChildren(box);
  }

  async function step(by) {
    if (desk.busy) return;
    const to = desk.at + by;
    if (to >= 0 && to < desk.list.length) return show(to);
    if (by < 0) {
      const known = desk.list.map((entry) => entry.item);
      const item = JSON.parse(sessionStorage.getItem(RECENT()) || "[]").filter((one) => !known.includes(one)).at(-1);
      if (!item || desk.decide) return say("This is the first one.");
      const found = await ask("again", { task: desk.task, item });
      desk.list.unshift({ ...entryOf(found), state: found.answered ? "judged" : "open" });
      return show(0);
    }
    if (desk.list.filter(open).length >= MOST_OPEN) return say(`You hold ${MOST_OPEN} items: answer or skip one of them first (←).`, "bad");
    if (await take()) show(desk.list.length - 1);
    else if (now()) say("No other item is free now.");
  }

  async function undo() {
    if (desk.busy) return;
    draft(); // what was typed on this item waits for it
    const found = await ask("undo", { task: desk.task, seat });
    if (!found.item) return say("There is nothing of yours to undo.");
    desk.said += 1;
    told(found.progress);
    if (Boolean(found.decides) !== desk.decide) return go(desk.task, found.decides ? "decide" : "");
    sessionStorage.removeItem(shelf(found.item));
    const entry = entryOf(found), old = desk.list.findIndex((one) => one.item === found.item);
    desk.list = desk.list.filter((one, i) => i === old || one.item !== found.item); // fetched again while this was on its way
    if (old >= 0) desk.list.splice(old, 1, entry); else desk.list.splice(Math.max(0, desk.at), 0, entry);
    show(desk.list.indexOf(entry));
    say("Undone: this was your last answer.", "good");
  }

  function pick(index) {
    const sentences = now() ? [...now().node.querySelectorAll(".sentence")] : [];
    if (!sentences.length) return;
    desk.picked = Math.max(0, Math.min(sentences.length - 1, index));
    const sentence = sentences[desk.picked], at = Number((sentence.dataset.at || "").split(",")[0]), video = now().video;
    paint();
    sentence.scrollIntoView({ block: "nearest" });
    if (sentence.dataset.at && video) { video.pause(); video.currentTime = at; }
  }

  function fails(where) {
    const { failing } = now()?.answers || {};
    const sentence = desk.picked >= 0 ? desk.picked : failing?.sentence;
    if (sentence === undefined) return say("Pick a sentence first: ↑ ↓, or click on it.", "bad");
    answer("failing", failing?.in === where && failing.sentence === sentence ? undefined : { sentence, in: where });
  }

  function frame(by) {
    const { video, film } = now() || {};
    if (!video) return;
    video.pause();
    video.currentTime = Math.max(0, Math.min(video.duration || 0, video.currentTime + by * film.step));
  }

  function speed(by) {
    desk.rate = RATES[Math.max(0, Math.min(RATES.length - 1, RATES.indexOf(desk.rate) + by))];
    if (now()?.video) now().video.playbackRate = desk.rate;
    paint();
  }

  const spanOf = (element) => Number(element.closest("[data-span]").dataset.span);
  const DO = {
    submit, undo, edit,
    guide: () => {
      const box = $("#review-guidelines");
      if (!box) return say("This task has no guidelines.");
      box.open = !box.open;
      if (box.open) box.scrollIntoView({ block: "nearest" });
    },
    begin: () => mark(0),
    end: () => mark(1),
    pick: (button) => pickSpan(0, spanOf(button)),
    remove: (button) => { desk.mark = { ...NO_MARK, picked: spanOf(button) }; drop(); },
    next: () => step(1),
    previous: () => step(-1),
    sheet: () => $("#review-sheet").showModal(),
    skip: () => {
      if (!now()) return;
      if (desk.decide) { now().state = "left"; return onward("Left for later."); }
      if (!open(now())) return say("It is answered already: Z undoes your last answer.", "bad");
      $("#review-skip").showModal();
      $("#review-skip input").select();
    },
    gather: async () => { await ask("gather", { task: desk.task, seat }); await route(); },
    leave: async () => {
      const held = desk && !desk.decide ? desk.list.filter((entry) => open(entry) && !Object.keys(entry.answers).length) : [];
      draft();
      await Promise.allSettled(held.map((entry) => ask("release", { task: desk.task, item: entry.item })));
      await go();
    },
    close: async (button) => {
      await ask("close", { task: query().get("task"), closed: Boolean(button.dataset.closed) });
      await route();
    },
  };

  // Whatever fails is said on the page.
  const attempt = (work, ...given) => Promise.resolve().then(() => work(...given)).catch((error) => {
    if ($("#review-status")) say(error.message, "bad"); else refused(error);
  });

  const ONCE = {
    Enter: "submit", k: "skip", z: "undo", "?": "sheet", e: "edit", g: "guide", n: () => $("#review-note")?.focus(),
    " ": () => { const { video } = now() || {}; if (video) video.paused ? video.play().catch(() => {}) : video.pause(); },
  };
  const HELD = { // these repeat while the key is down
    ArrowRight: () => step(1), ArrowLeft: () => step(-1), ArrowDown: () => pick(desk.picked + 1), ArrowUp: () => pick(desk.picked - 1),
    ",": () => frame(-1), ".": () => frame(1), "<": () => speed(-1), ">": () => speed(1), "{": () => pickSpan(-1), "}": () => pickSpan(1),
  };
  const MARKS = { "[": () => mark(0), i: () => mark(0), "]": () => mark(1), o: () => mark(1), x: drop, Delete: drop, Escape: leaveSpan };

  function meant(key) {
    if (desk.questions.includes("spans") && key in MARKS) return MARKS[key];
    if (/^[1-9]$/.test(key) && marking()) {
      const label = spanLabels()[Number(key) - 1];
      return label === undefined ? null : () => named(label);
    }
    if (/^[0-9]$/.test(key)) {
      const labels = all("[data-label]:not([data-unsure])"), label = labels[Number(key) - 1]?.dataset.label;
      return key === "0" ? () => answer("label", null) : label === undefined ? null : () => answer("label", label);
    }
    if (key in VERDICTS) return () => answer("verdict", VERDICTS[key]);
    if (key in FAILS) return () => fails(FAILS[key]);
    const known = ONCE[key];
    return typeof known === "string" ? DO[known] : known;
  }

  document.addEventListener("keydown", (event) => {
    active = performance.now();
    const at = event.target;
    const bracket = "[]{}".includes(event.key) && event.altKey; // typed with AltGr or Option on many keyboards
    if (!desk || !$(".desk") || event.isComposing || event.metaKey || ((event.ctrlKey || event.altKey) && !bracket) || $("dialog[open]")) return;
    if (at.isContentEditable || /^(TEXTAREA|SELECT)$/.test(at.tagName) || (at.tagName === "INPUT" && at.type !== "button")) {
      if (event.key === "Escape") at.blur();
      return;
    }
    if (at.closest?.("button, a, summary") && (event.key === "Enter" || event.key === " ")) return; // its own press
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const work = HELD[key] || (event.repeat ? () => {} : meant(key));
    if (!work) return;
    event.preventDefault();
    event.stopPropagation(); // before what the pages share
    attempt(work);
  }, true);

  document.addEventListener("click", (event) => {
    active = performance.now();
    const at = event.target.closest?.("#review :is([data-do], [data-label], [data-span-label], [data-verdict], [data-failing], a[data-go], .desk .sentence, #review-timeline)");
    if (!at || (at.matches("a") && (event.ctrlKey || event.metaKey || event.shiftKey))) return;
    const { label, verdict, failing } = at.dataset;
    if (at.matches("a")) {
      event.preventDefault();
      const to = new URLSearchParams(new URL(at.href).search);
      attempt(go, to.get("task"), to.get("view"));
    } else if (at.matches(".sentence")) {
      if (!event.target.closest(".chip")) pick([...now().node.querySelectorAll(".sentence")].indexOf(at));
    } else if (at.matches("#review-timeline")) {
      const { video } = now() || {}, { left, width } = at.getBoundingClientRect(), bars = [...at.querySelectorAll(".span:not(.begun)")];
      const index = bars.indexOf(event.target);
      if (index >= 0) attempt(pickSpan, 0, index);
      else if (video) video.currentTime = lasts() * Math.max(0, Math.min(1, (event.clientX - left) / width));
    } else if (at.dataset.do) attempt(DO[at.dataset.do], at);
    else if (at.dataset.spanLabel !== undefined) attempt(named, at.dataset.spanLabel);
    else if (label !== undefined) answer("label", "unsure" in at.dataset ? null : label);
    else if (verdict !== undefined) answer("verdict", "unsure" in at.dataset ? null : verdict);
    else fails(failing);
    if (event.detail && at.matches("button")) at.blur(); // pressed by mouse: Enter submits again
  });

  // A lead's file of answers goes in as it is; the page comes back with what is in force then.
  async function bringIn(file) {
    say("Reading …");
    const to = new URLSearchParams({ task: query().get("task"), file: file.name });
    const found = await ask(`import?${to}`, file);
    await route();
    say(found.told, "good");
  }

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-span] select") && desk) {
      desk.mark = { ...NO_MARK, picked: spanOf(event.target) };
      return attempt(named, event.target.value);
    }
    if (event.target.id !== "review-import" || !event.target.files.length) return;
    const [file] = event.target.files;
    attempt(bringIn, file).finally(() => { event.target.value = ""; });
  });

  document.addEventListener("input", (event) => {
    if (event.target.id === "review-note") {
      answer("note", event.target.value || undefined);
      check(event.target.value);
    }
    if (event.target.matches?.("#review-open [name=order]")) $("#review-open .shares").hidden = event.target.value !== "mixture";
    if (event.target.matches?.("#review-open [name=source]")) all("[data-source]").forEach((part) => { part.hidden = (part.dataset.source === "list") !== Boolean(event.target.value); });
    if (event.target.matches?.("#review-open fieldset:first-of-type *")) {
      clearTimeout(counting);
      counting = setTimeout(counted, 300);
    }
  });

  document.addEventListener("submit", (event) => {
    if (event.target.id === "review-open") {
      event.preventDefault();
      const said = $("#review-refused");
      said.textContent = "";
      ask("open", form()).then(() => go(), (error) => { said.textContent = error.message; });
    } else if (event.target.closest?.("#review-skip")) {
      const reason = $("#review-skip input").value, entry = now();
      $("#review-skip input").value = "";
      if (entry) { entry.id = null; attempt(settle, entry, "skip", { reason }); }
    }
  });

  // What is typed and not yet sent goes out as the page goes away; reservations of somebody at work go on.
  document.addEventListener("visibilitychange", () => { if (document.visibilityState === "hidden") draft(true); });
  setInterval(() => {
    if (!desk || desk.decide || performance.now() - active > 300_000 || document.visibilityState === "hidden") return;
    desk.list.filter((entry) => open(entry) && entry.until - performance.now() < 500 * entry.seconds).forEach((entry) => renew(entry).catch(() => {}));
  }, 20_000);
  window.addEventListener("popstate", () => { if (root) route(); });

  // A tab is known by its seat: a reload keeps it, a duplicated tab (which copies the storage) takes another one.
  async function sitDown() {
    const hold = (ifAvailable) => new Promise((given) => {
      if (!navigator.locks) return given(true); // plain http from another machine has no locks
      navigator.locks.request(`deepintuit-seat ${seat}`, { ifAvailable }, (lock) => {
        given(Boolean(lock));
        return lock && new Promise(() => {});
      });
    });
    const again = performance.getEntriesByType("navigation")[0]?.type === "reload";
    seat = sessionStorage.getItem("deepintuit-seat") || newId();
    if (again) hold(false); // it comes when the page before this one is gone
    else if (!(await hold(true))) { seat = newId(); hold(true); }
    sessionStorage.setItem("deepintuit-seat", seat);
  }

  async function mount() {
    root = document.querySelector("#review");
    await sitDown();
    await route();
  }
  const waiting = new MutationObserver(() => { if (document.querySelector("#review")) { waiting.disconnect(); mount(); } });
  if (document.querySelector("#review")) mount(); else waiting.observe(document.documentElement, { childList: true, subtree: true });
})();
