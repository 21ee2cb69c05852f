// Shared by all pages. No framework: a few listeners on the document, so that they survive Gradio's re-rendering.
"use strict";

// Figures: Plotly names its clip paths by the whole address where a page has a <base>, and loses its lines when the
// address follows the screen. Gradio's "./" says nothing that the address does not.
document.querySelector("base")?.remove();
// Gradio asks for it at the root of the host, where under a sub-path somebody else answers.
document.querySelector('link[rel="manifest"]')?.remove();

// Gradio ends its connections when a page is left, so that one that Back shows again as it was could do nothing more.
window.addEventListener("beforeunload", (event) => event.stopImmediatePropagation());
// A page that was made ready before its link was clicked (header.html), and a while ago, is asked for again.
document.addEventListener("prerenderingchange", () => { if (performance.now() > 60_000) window.location.reload(); });

// The skeleton goes when Gradio has drawn the page (a rule with :has would be matched anew at each of its thousand changes).
const drawing = window.setInterval(() => {
  if (document.querySelector(".skeleton") && !document.querySelector("gradio-app .block")) return;
  document.querySelector(".skeleton")?.remove();
  window.clearInterval(drawing);
}, 50);

// ── The address (links.py): a click or a key may become an entry of the history; Back has the page read its address. ──
(() => {
  const again = () => document.querySelector("#read-address");
  const act = (event) => { if (event.isTrusted) window.deepintuitActed = true; };
  document.addEventListener("pointerdown", act, true);
  document.addEventListener("keydown", act, true);
  document.addEventListener("click", (event) => { if (!event.detail) act(event); }, true); // a screen reader's click
  window.addEventListener("popstate", () => {
    if (!again()) return;
    window.deepintuitActed = window.deepintuitRead = false;
    again().click();
  });
  // Once in a great while Gradio draws a page and never fires its load event: then it is asked again, once.
  let drawn = 0;
  const watchdog = window.setInterval(() => {
    drawn ||= again() ? Date.now() : 0;
    if (!window.deepintuitAsked && !(drawn && Date.now() - drawn >= 8000)) return;
    window.clearInterval(watchdog);
    if (!window.deepintuitAsked) again()?.click(); // one that was asked and is slow is left alone
  }, 1000);
})();

// Errors page: a button carries a value for a hidden field (`data-set`, `data-value`); the field's own event does the rest.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-set]");
  const field = button && document.querySelector(`#${CSS.escape(button.dataset.set)} :is(textarea, input)`);
  if (!field || (button.href && (event.ctrlKey || event.metaKey || event.shiftKey))) return;
  if (button.href) event.preventDefault();
  if (button.dataset.set === "errors-cell" && !("close" in button.dataset)) window.errorsOpener = button.dataset.value;
  document.querySelectorAll(`[data-set="${CSS.escape(button.dataset.set)}"][aria-current]`).forEach((one) => one.removeAttribute("aria-current"));
  if (!("close" in button.dataset)) button.setAttribute("aria-current", "true");
  field.value = button.dataset.value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  if ("close" in button.dataset) document.querySelector(`.errors [data-value="${CSS.escape(window.errorsOpener || "")}"]`)?.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.querySelector("#errors-drawer [data-close]")?.click();
});

// The figures of Errors below the first screen are drawn when somebody comes near them; a hidden page has no height.
if (document.querySelector(".skeleton.errors")) {
  const drawn = (event) => {
    const first = document.querySelector("#errors-curves"), field = document.querySelector("#errors-scroll :is(textarea, input)");
    if (!field || !first?.checkVisibility() || document.querySelector("gradio-app[inert]")) return;
    if (event.type !== "beforeprint" && first.getBoundingClientRect().top > window.innerHeight * 1.5) return;
    field.value = "1";
    field.dispatchEvent(new Event("input", { bubbles: true }));
    for (const name of ["scroll", "resize", "deepintuit-filled", "beforeprint"]) window.removeEventListener(name, drawn);
  };
  for (const name of ["scroll", "resize", "deepintuit-filled", "beforeprint"]) window.addEventListener(name, drawn, { passive: true });
}

// The map on Errors: what a lasso holds fills a hidden field, a click on a point opens its clip.
document.addEventListener("pointerover", (event) => {
  const plot = event.target.closest?.("#errors-map .js-plotly-plot");
  if (!plot?.on) return;
  const fill = (id, value) => {
    const field = document.querySelector(`#${id} :is(textarea, input)`);
    field.value = value;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const told = {
    plotly_selected: (chosen) => fill("errors-lasso", (chosen?.points || []).map((point) => point.customdata).join(",")),
    plotly_deselect: () => fill("errors-lasso", ""),
    plotly_click: ({ points: [{ customdata: clip }] }) => { fill("errors-clip", clip); fill("errors-cell", `clip.${clip}`); },
  };
  for (const [name, tell] of Object.entries(told)) { plot.removeAllListeners(name); plot.on(name, tell); }
});

// Fields of a table together fill one hidden field (`data-gather`): label=first/second;… of those that are not 1.
document.addEventListener("change", (event) => {
  const table = event.target.closest("[data-gather]");
  const field = table && document.querySelector(`#${CSS.escape(table.dataset.gather)} :is(textarea, input)`);
  if (!field) return;
  if (!event.target.checkValidity() || event.target.value === "") event.target.value = "1";
  const costs = new Map();
  table.querySelectorAll("input").forEach((one) => costs.set(one.dataset.label, [...(costs.get(one.dataset.label) || []), Number(one.value)]));
  field.value = [...costs].filter(([, pair]) => pair.some((one) => one !== 1)).map(([label, pair]) => `${encodeURIComponent(label)}=${pair.join("/")}`).join(";");
  field.dispatchEvent(new Event("input", { bubbles: true }));
});

// ── Player: anything with data-seek shows the clip at that second; the sentence of the moment is lit as it plays. ──
(() => {
  const player = () => document.querySelector("video#player") || document.querySelector("video");
  const typing = (node) => node && (node.isContentEditable || /^(INPUT|TEXTAREA|SELECT|BUTTON|A|SUMMARY|VIDEO)$/.test(node.tagName));

  function seek(seconds) {
    const video = player();
    if (!video || !Number.isFinite(seconds)) return;
    video.pause();
    video.currentTime = seconds;
    light(video, seconds);
    const box = video.getBoundingClientRect();
    if (box.bottom < 40 || box.top > window.innerHeight - 40) {
      const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
      video.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
    }
  }

  // Of all sentences that mention a moment, the one whose moment was reached last, for five seconds at most.
  function light(video, at = video.currentTime) {
    let best = null, latest = -1;
    document.querySelectorAll(".sentence[data-at]").forEach((sentence) => {
      sentence.dataset.at.split(",").map(Number).forEach((moment) => {
        if (moment <= at + 0.06 && moment > latest && at - moment <= 5) { best = sentence; latest = moment; }
      });
    });
    document.querySelectorAll(".sentence.current").forEach((sentence) => { if (sentence !== best) sentence.classList.remove("current"); });
    if (best) best.classList.add("current");
    let shot = null;
    document.querySelectorAll(".shot[data-seek]").forEach((button) => { if (Number(button.dataset.seek) <= at + 0.06) shot = button; });
    document.querySelectorAll(".shot.current").forEach((button) => { if (button !== shot) button.classList.remove("current"); });
    if (shot) shot.classList.add("current");
  }

  document.addEventListener("click", (event) => {
    const seeker = event.target.closest("[data-seek]");
    if (seeker) seek(Number(seeker.dataset.seek));
  });
  for (const name of ["timeupdate", "seeked", "play"]) {
    document.addEventListener(name, (event) => { if (event.target.matches && event.target.matches("video")) light(event.target); }, true);
  }
  document.addEventListener("keydown", (event) => {
    const video = player();
    if (!video || typing(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: -0.5, ArrowRight: 0.5 }[event.key];
    if (event.key === " ") {
      event.preventDefault();
      if (video.paused) video.play().catch(() => {}); else video.pause();
    } else if (step) {
      event.preventDefault();
      video.currentTime = Math.min(video.duration || 0, Math.max(0, video.currentTime + step));
    }
  });
})();

// A button that copies the text it carries, or (data-share) the address of what is on screen.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button:is([data-copy], [data-share])");
  if (!button) return;
  const ours = "share" in button.dataset, words = button.textContent, text = ours ? window.location.href : button.dataset.copy;
  const say = (said) => {
    button.textContent = said;
    if (ours) window.setTimeout(() => { button.textContent = words; }, 4000);
  };
  if (ours && /[?&]clip=upload-/.test(text)) return say("An upload has no link");
  if (ours && document.querySelector("#status")?.innerText.includes("written live")) return say("A live trace has no link");
  try {
    await navigator.clipboard.writeText(text);
    say("Copied");
  } catch {
    if (ours) window.prompt("The address of what is on screen", text); // no clipboard here (plain http)
    else say(text); // the text itself can be marked
  }
});

// A link to a part of the page goes there; the address stays that of what is on screen.
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  const part = link && document.querySelector(`[id="${CSS.escape(link.getAttribute("href").slice(1))}"]`);
  if (!part) return;
  event.preventDefault();
  part.scrollIntoView({ block: "start" });
});

// What was chosen below the clip is shown where the clip is.
document.addEventListener("click", (event) => {
  if (event.target.closest('[data-set="wanted"]')) document.querySelector("#controls")?.scrollIntoView({ block: "start" });
});

// The start page looks again while something runs.
document.addEventListener("input", (event) => { event.target.closest("main form")?.setAttribute("data-touched", ""); });
if (document.querySelector("main[data-refresh]")) {
  window.setInterval(async () => {
    if (document.hidden) return;
    const fresh = new DOMParser().parseFromString(await (await fetch("./")).text(), "text/html").querySelector("main");
    // A form that somebody fills in stays: then only what runs is drawn again.
    const part = document.querySelector("form[data-touched]") ? "#active" : "main";
    const [before, after] = [document.querySelector(part), fresh?.matches(part) ? fresh : fresh?.querySelector(part)];
    if (before && after) before.replaceWith(after);
  }, 4000);
}

// From the start page the others open quickly: what they are made of is fetched once there is nothing else to do.
if (document.querySelector("main.start")) {
  window.addEventListener("load", () => window.setTimeout(async () => {
    for (const { href } of document.querySelectorAll("header.frame nav a")) {
      const page = new DOMParser().parseFromString(await (await fetch(href)).text(), "text/html");
      page.querySelectorAll('link[href*="assets/"], script[src*="assets/"]').forEach((part) => {
        const hint = Object.assign(document.createElement("link"), { rel: "prefetch", crossOrigin: "" });
        hint.as = part.as === "style" || part.rel === "stylesheet" ? "style" : "script";
        hint.href = part.getAttribute("href") || part.getAttribute("src");
        if (!document.querySelector(`link[href="${hint.getAttribute("href")}"]`)) document.head.append(hint);
      });
    }
  }, 1000));
}

// ── Traces: arrows walk the rows, Escape closes the opened one and goes back to its row. ──
(() => {
  document.addEventListener("keydown", (event) => {
    const row = event.target.closest?.("#traces-list button.open");
    if (row && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      const all = [...document.querySelectorAll("#traces-list button.open")];
      all[all.indexOf(row) + (event.key === "ArrowDown" ? 1 : -1)]?.focus();
      event.preventDefault();
    }
    if (event.key === "Escape") document.querySelector("#traces-detail [data-close]")?.click();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("#traces-detail [data-close]")) {
      const row = document.querySelector("#traces-list button.open[aria-current]");
      document.querySelectorAll("#traces-detail [data-close]").forEach((button) => button.removeAttribute("aria-current"));
      if (row) { row.removeAttribute("aria-current"); row.focus(); }
    }
    // Anywhere in a row opens it, but for links, buttons and a text that is being selected.
    const line = event.target.closest("#traces-list tbody tr");
    if (line && !event.target.closest("a, button") && !String(window.getSelection())) line.querySelector("button.open").click();
  });
})();

// A clip that cannot be played says so where it would be: its file may have been moved or deleted since.
document.addEventListener("error", (event) => {
  const video = event.target;
  if (video.matches?.(".card img, .thumb")) video.style.visibility = "hidden"; // no broken-image mark; the name stays
  if (video.tagName !== "VIDEO" || video.nextElementSibling?.matches(".unplayable")) return;
  const said = document.createElement("p");
  said.className = "unplayable";
  said.setAttribute("role", "status");
  said.textContent = "This clip cannot be played: its file was moved, deleted or damaged. What was written about it stays.";
  video.after(said);
}, true);

// ── SQL: Ctrl+Enter runs, a name is put where the cursor is, and what was run stays in this browser, a list a person. ──
(() => {
  const box = () => document.querySelector("#sql-box textarea");
  const list = () => document.querySelector("#sql-history");
  const key = () => `deepintuit-sql:${list()?.dataset.user || ""}`;
  const kept = () => {
    try { return JSON.parse(window.localStorage.getItem(key())).filter((one) => typeof one === "string"); } catch { return []; }
  };
  const keep = (queries) => {
    try { window.localStorage.setItem(key(), JSON.stringify(queries)); } catch { /* storage is full or forbidden: no history */ }
  };

  function draw() {
    list()?.replaceChildren(...kept().map((query) => {
      const line = document.createElement("li"), button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: query.replace(/\s+/g, " ").slice(0, 120) });
      Object.assign(button.dataset, { set: "sql-box", value: query });
      line.append(button);
      return line;
    }));
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.target !== box()) return;
    event.preventDefault();
    document.querySelector("#sql-run")?.click();
  });
  document.addEventListener("click", (event) => {
    const insert = event.target.closest("[data-insert]"), area = box();
    if (insert && area) {
      area.setRangeText(insert.dataset.insert, area.selectionStart, area.selectionEnd, "end");
      area.dispatchEvent(new Event("input", { bubbles: true }));
      area.focus();
    } else if (event.target.closest("#sql-run") && area?.value.trim()) {
      keep([area.value.trim(), ...kept().filter((one) => one !== area.value.trim())].slice(0, 30));
      draw();
    } else if (event.target.closest("[data-forget]")) {
      keep([]);
      draw();
    } else if (event.target.closest('[data-set="sql-box"]')) {
      area?.focus();
    }
  });
  document.addEventListener("toggle", (event) => { if (event.target.querySelector?.("#sql-history")) draw(); }, true);
})();
