"""Watch: one clip, the model's reasoning about it as it is written, and what came of it.

A stored trace is shown at once and can be replayed as it was written, without model or torch; a live one is written
while the page listens. `trace_view` draws, `live` runs, `prose` makes chips; here is what a handler fetches, and the
wiring.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from deepintuit.errors import DeepIntuitError, VideoError, VideoReason
from deepintuit.reasoner import replay as stored
from deepintuit.reasoner.task import Clip
from deepintuit_analysis.index import browse, clips
from deepintuit_app import alike, attribution, links, media, slices, trace_view
from deepintuit_app.context import AppContext
from deepintuit_app.html import empty, esc, heading, note, render
from deepintuit_app.live import Running
from deepintuit_app.thinking_threshold import consequences
from deepintuit_app.trace_view import PARTS, TraceView
from deepintuit_app.uploads import PREFIX

GENERATION = "generation"
"""The concurrency id of everything that asks a model."""

_TICK = 1 / 15  # seconds between two updates: a browser shows no more, and more of them cost three times as long
_HEARTBEAT = 0.5  # seconds after which an update goes out even without news: a closed page is noticed then
PACES = {"Reading pace": 5.0, "Fast": 25.0, "As it was measured": None, "At once": float("inf")}
"""Words a second of a replay."""
SHOWN = 24
"""Clips a page of what was found."""

FILTERS = {"find": "Text", "label": "True label", "split": "Split", "flip": "Calibration", "slice": "Slice"}
"""The filters by their names in the address, and as the page calls them."""
_ANY = [("Any", "")]
_PLAY = """(...given) => {
  const video = document.querySelector("video#player");
  if (video && !window.matchMedia("(prefers-reduced-motion: reduce)").matches) {
    Object.assign(video, { currentTime: 0, loop: true });
    video.play().catch(() => {});
  }
  return given;
}"""
_PLAYED = """() => {
  const video = document.querySelector("video#player");
  if (video) video.loop = false;
}"""
"""The clip plays on while its trace is replayed, and then to its end."""
_CODE = re.compile(r" \(\[Errno .*\)$", re.DOTALL)
_NOTHING = "No clip is in this workbench yet."
_NOTHING_TODO = "Import clips, or have a small world made with everything from clips to evaluated traces:"


def clip_of(context: AppContext, clip_id: str | None) -> dict[str, Any] | None:
    """Facts of a clip or of an upload; `file` is where the model reads it."""
    if not isinstance(clip_id, str) or not clip_id:
        return None
    if clip_id.startswith(PREFIX):
        upload = context.uploads.get(clip_id)
        if upload is None:
            return None
        info = upload.info
        sizes = {"width": info.width, "height": info.height, "seconds": info.seconds}
        return {"clip_id": clip_id, "name": upload.name, "file": upload.path, "label": None, **sizes}
    row = clips.clip(context.look(), clip_id)
    file = browse.clip_file(context.workbench, clip_id, playable=False)
    if row is None or file is None:
        return None
    return {**row, "name": file.stem, "file": file}


def strip_html(
    context: AppContext,
    text: str,
    label: str,
    split: str,
    flip: str,
    picked: str | None,
    name: str | None = "",
    number: str | None = "",
) -> str:
    """A page of what was found, as pictures, and the filters. `name`: a saved slice; `number` of the page, from 1."""
    flip, name = flip if flip in clips.FLIPS else "", str(name or "")
    values = (str(text or "")[:200], str(label or ""), str(split or ""), flip)
    place = int(number) if str(number or "").isdecimal() and len(str(number)) < 8 and int(number) else 1
    filters = {name: value for name, value in zip(FILTERS, (*values, name)) if value}
    bar = {"filters": [(name, FILTERS[name], value) for name, value in filters.items()], "instead": None}
    try:
        rows, count = clips.find(context.look(), *values, name=name, limit=SHOWN, offset=(place - 1) * SHOWN)
        if count and not rows:  # past the end: the last page
            place = -(-count // SHOWN)
            rows, _ = clips.find(context.workbench, *values, name=name, limit=SHOWN, offset=(place - 1) * SHOWN)
    except DeepIntuitError as error:
        return render("watch/strip.html", **bar | {"instead": note(" ".join(slices.sentences(error)), role="status")})
    if not rows and not filters:
        return empty(_NOTHING, _NOTHING_TODO, "make demo")
    if not rows:
        alone = f"The slice {name!r} has no trace of a clip that can be shown."
        words = alone if name and not any(values) else "No clip fits. Remove a filter, or search for less."
        return render("watch/strip.html", **bar | {"instead": note(words, role="status")})
    cards = [{**row, "name": Path(row["path"]).stem, "url": media.poster_url(row["clip_id"])} for row in rows]
    pages = {"first": (place - 1) * SHOWN, "place": place, "pages": -(-count // SHOWN)}
    return render("watch/strip.html", **bar, clips=cards, count=count, picked=picked, **pages)


def player_html(clip: dict[str, Any] | None, words: str = "No clip is picked.") -> str:
    """The clip, its room kept before it is loaded."""
    if clip is None:
        return render("watch/player.html", clip=None, words=words)
    width, height = int(clip["width"] or 16), int(clip["height"] or 9)
    facts = [clip.get("dataset") or "upload, deleted within an hour", clip.get("split"), clip.get("group")]
    facts += [f"{clip['seconds']:.1f} s" if clip["seconds"] else None, f"{width} × {height}"]
    return render(
        "watch/player.html",
        clip=clip,
        url=media.clip_url(clip["clip_id"]),
        poster=media.poster_url(clip["clip_id"]),
        width=width,
        height=height,
        facts=" · ".join(str(fact) for fact in facts if fact),
    )


def trace_choices(context: AppContext, clip_id: str | None) -> list[tuple[str, str]]:
    """The stored traces of a clip, as (words, id), the most telling first."""
    if not clip_id or clip_id.startswith(PREFIX):
        return []
    return [(_words(row), row["trace_id"]) for row in clips.traces_of(context.look(), clip_id)]


def _words(row: dict[str, Any]) -> str:
    system = row["system"] or row["run_name"] or row["run_id"]
    sampling = "greedy" if row["temperature"] == 0 else f"sample {row['sample']}"
    step = f"step {row['step']:.0f}" if row["step"] is not None else None
    return " · ".join(filter(None, (row["stage"], system if system != row["stage"] else None, step, sampling)))


def reasoner_choices(context: AppContext) -> list[tuple[str, str]]:
    return [
        (
            (f"{row['server']} at its server" if row["server"] else row["stage"])
            + f" · {row['run_id']}"
            + (" · calibrated" if row["calibrator"] else ""),
            row["run_id"],
        )
        for row in clips.reasoners(context.look())
    ]


def stored_view(
    context: AppContext, trace_id: str | None, clip: dict[str, Any] | None, mode: str
) -> tuple[TraceView, list] | None:
    """A stored trace before anything has happened, and the events that will; None when there is none."""
    row = browse.trace(context.look(), trace_id) if isinstance(trace_id, str) and trace_id else None
    if row is None or clip is None or row["clip_id"] != clip["clip_id"]:
        return None
    choices = {number: words for words, number in trace_choices(context, clip["clip_id"])}
    grammar = clips.grammar_of(context.workbench, row["run_id"])
    view = TraceView(mode, choices.get(trace_id, row["run_id"]), grammar, clip["seconds"], trace_id)
    view.lost = not media.seen(context, trace_id)
    view.calibrator = clips.calibrator_of(context.workbench, row["run_id"])
    view.scores, view.labels = browse.scores_of(context.workbench, trace_id), context.labels(clip.get("dataset"))
    view.judged = browse.judge_answers(context.workbench, trace_id)
    return view, [row, clips.predictions_on(context.workbench, trace_id)]


def complete(context: AppContext, trace_id: str | None, clip: dict[str, Any] | None) -> TraceView | None:
    """A stored trace as it stands at the end."""
    entry = stored_view(context, trace_id, clip, "stored")
    if entry is None:
        return None
    view, (row, predictions) = entry
    for _, event in stored.replay(row, predictions, tokens_per_second=float("inf")):
        if not isinstance(event, stored.Written):
            view.take(event)
    view.finish()
    return view


def first(context: AppContext, query: dict[str, str]) -> dict[str, str]:
    """The clip with its trace, for the HTML of the page. Nothing for an upload, which one session alone may see."""
    do = Handlers(context)
    clip_id, trace_id, _ = do.chosen(query)
    clip = clip_of(context, clip_id)
    if clip is None or clip_id.startswith(PREFIX):
        return {}
    view = complete(context, do.trace_box(clip_id, trace_id)[1], clip)
    return {"screen": player_html(clip), **{part: do.draw(part, view, clip, False, 0.5) for part in PARTS}}


class Handlers:
    """What the page's events call. Everything from a browser is an id or a setting, and is checked here."""

    def __init__(self, context: AppContext):
        self.context = context

    def find(self, text, label, split, flip, picked, name="", number=""):
        """What the filters find, and, while the index is being rebuilt, which one was asked, and a timer by which it is
        asked again."""
        self.context.look()
        behind = self.context.behind()
        html = strip_html(self.context, text, label, split, flip, picked, name, number)
        return html, behind, gr.Timer(active=behind is not None)

    def once_more(self, behind, *filters):
        """The same as of the new index, when it is there; asked for once, and not at all where nothing is new."""
        renewed = self.context.renewed(behind)
        if renewed is None:
            return [gr.skip()] * 3
        return strip_html(self.context, *filters) if renewed else gr.skip(), None, gr.Timer(active=False)

    def anew(self, last, *filters):
        """Another filter begins at the first page: what was asked last → what is asked now, the page's number, and what
        is found. A restored address changes the fields too, and is left alone."""
        state = self.asked(*filters)
        if last is None or last == state:
            return [state, *[gr.skip()] * 4]
        return [state, "", *self.find(*filters)]

    @staticmethod
    def asked(text, label, split, flip, picked, name):
        return [str(value or "") for value in (text, label, split, flip, name)]

    def paged(self, *filters):
        """Another page of the same; none is asked for where its number is taken back."""
        return self.find(*filters) if filters[-1] else [gr.skip()] * 3

    @staticmethod
    def removed(name: str):
        """→ the wish granted, and the filters without the one of this name."""
        return ["", *(gr.update(value="") if name == key else gr.skip() for key in FILTERS)]

    def restore(self, query: dict[str, str], request: gr.Request) -> list[Any]:
        clip_id, trace_id, missing = self.chosen(query)
        state, run = {key: query.get(key, "")[:300] for key in FILTERS}, query.get("run")
        if missing:
            unknown = f"There is no clip {missing[:40]} here any more"
            unknown = "An upload has no link" if missing.startswith(PREFIX) else unknown
            gr.Info(f"{esc(unknown)}; this is another one.")
        runs = reasoner_choices(self.context)
        reasoners = [number for _, number in runs]
        reasoner = run if run in reasoners else next(iter(reasoners), None)
        update, _ = self.trace_box(clip_id, trace_id)
        options = clips.choices(self.context.look())
        flip = state["flip"] if state["flip"] in clips.FLIPS else ""
        return [
            clip_id,
            update,
            gr.Dropdown(choices=runs, value=reasoner),
            state["find"],
            *(gr.Dropdown(choices=_choices(options[key], state[key]), value=state[key]) for key in ("label", "split")),
            flip,
            gr.Dropdown(choices=slices.offered(self.context.workbench, state["slice"]), value=state["slice"]),
            query.get("page", "")[:8],
            list((state | {"flip": flip}).values()),
        ]

    def chosen(self, query: dict[str, str]) -> tuple[str | None, str | None, str | None]:
        """The clip and the trace of an address, others where there is no such clip, and the clip that is missing."""
        clip_id, trace_id = query.get("clip"), query.get("trace")
        if trace_id and (row := browse.trace(self.context.look(), trace_id)) is not None:
            clip_id = row["clip_id"]
        if clip_of(self.context, clip_id) is not None:
            return clip_id, trace_id, None
        first = self._first({key: query.get(key, "")[:300] for key in FILTERS}) or {}
        return first.get("clip_id"), first.get("trace_id"), clip_id

    def _first(self, filters: dict[str, str]) -> dict[str, Any] | None:
        """The clip to begin with: the first that the filters find, where they find one; else one that shows it well."""
        text, label, split, flip, name = filters.values()
        if any(filters.values()):
            try:
                flip = flip if flip in clips.FLIPS else ""
                rows, _ = clips.find(self.context.look(), text, label, split, flip, limit=1, name=name)
            except DeepIntuitError:  # the page says it below
                rows = []
            if rows:
                return rows[0]
        rows, _ = clips.find(self.context.look(), limit=1)
        return clips.clean(self.context.workbench) or next(iter(rows), None)

    def trace_box(self, clip_id: str | None, trace_id: str | None = None) -> tuple[Any, str | None]:
        """The choice of stored traces, and the one that is chosen: the one that is wanted, where it is there."""
        choices = trace_choices(self.context, clip_id)
        ids = [number for _, number in choices]
        value = trace_id if trace_id in ids else next(iter(ids), None)
        return gr.Dropdown(choices=choices, value=value, interactive=bool(ids)), value

    def opened(self, clip_id, trace_id, truth, threshold, request: gr.Request):
        """Player and stage for what is chosen: → player, then what `_stage` gives."""
        self.context.pages.replace(request.session_hash)
        clip = clip_of(self.context, clip_id)
        view = complete(self.context, trace_id, clip)
        return [player_html(clip), *self._stage(view, clip, truth, threshold)]

    def pick(self, pick, truth, threshold, request: gr.Request):
        """A card was chosen, by a clip and perhaps the trace of it that a filter found: → the wish granted, picked
        clip, choice of traces, player, stage."""
        if not pick:
            return [gr.skip()] * 12
        clip_id, _, trace_id = pick.partition(" ")
        return ["", clip_id, *self._other(clip_id, truth, threshold, request, trace_id)]

    def _other(self, clip_id: str, truth, threshold, request: gr.Request, trace_id: str = "") -> list[Any]:
        update, trace = self.trace_box(clip_id, trace_id)
        return [update, *self.opened(clip_id, trace, truth, threshold, request)]

    def upload(self, path, truth, threshold, request: gr.Request):
        """→ picked clip, choice of traces, player, stage. A refused file leaves the page as it is."""
        if not path:
            return [gr.skip()] * 11
        try:
            upload = self.context.uploads.accept(path, Path(path).name)
        except VideoError as error:
            gr.Warning(esc(_refusal(error)), duration=12)
            return [gr.skip()] * 11
        return [upload.id, *self._other(upload.id, truth, threshold, request)]

    def _stage(self, view: TraceView | None, clip: dict[str, Any] | None, truth, threshold) -> list[Any]:
        parts = [self.draw(part, view, clip, truth, threshold) for part in PARTS]
        return [*parts, view, *self._buttons(clip, view is not None, running=False)]

    @staticmethod
    def draw(part: str, view: TraceView | None, clip: dict[str, Any] | None, truth: Any, threshold: Any) -> str:
        if part == "status" and view is None and clip is not None:
            return trace_view.status(TraceView("stored", "No trace of this clip is stored.", over=True))
        if part != "verdict":
            return getattr(trace_view, part)(view)
        label = (clip or {}).get("label") if truth else None
        return trace_view.verdict(view, label, _number(threshold, 0.0, 1.0, 0.5))

    @staticmethod
    def _buttons(clip: dict[str, Any] | None, has_trace: bool, running: bool) -> list[Any]:
        """Replay, Reason, Stop. Replay is the prominent one where there is a trace: it cannot fail."""
        return [
            gr.Button(interactive=has_trace and not running, variant="primary" if has_trace else "secondary"),
            gr.Button(interactive=clip is not None and not running, variant="secondary" if has_trace else "primary"),
            gr.Button(interactive=running),
        ]

    def judged(self, view, clip_id, truth, threshold):
        """The verdict again, with or without the truth."""
        return self.draw("verdict", view, clip_of(self.context, clip_id), truth, threshold)

    def stop(self, request: gr.Request) -> None:
        self.context.pages.stop(request.session_hash)

    async def replay(self, clip_id, trace_id, pace, truth, threshold, request: gr.Request) -> AsyncIterator[list[Any]]:
        """A stored trace as it was written."""
        running = await asyncio.to_thread(self.context.pages.begin, request.session_hash)
        try:
            clip = await asyncio.to_thread(clip_of, self.context, clip_id)
            entry = await asyncio.to_thread(stored_view, self.context, trace_id, clip, "replay")
            if entry is None:
                gr.Info("Choose a stored trace first.")
                return
            view, (row, predictions) = entry
            events = list(stored.replay(row, predictions, tokens_per_second=_tokens_a_second(row, pace)))
            started = time.monotonic()

            def due() -> list[stored.Event]:
                happened = []
                while events and events[0][0] <= time.monotonic() - started:
                    happened.append(events.pop(0)[1])
                return happened

            async for update in self._show(running, view, clip, truth, threshold, due, lambda: not events, True):
                yield update
        finally:
            self.context.pages.end(request.session_hash, running)

    async def reason(
        self,
        clip_id,
        trace_id,
        run,
        temperature,
        top_p,
        max_tokens,
        seed,
        think_below,
        truth,
        threshold,
        request: gr.Request,
    ) -> AsyncIterator[list[Any]]:
        """A live trace. Ends with its page, whatever happens."""
        running = await asyncio.to_thread(self.context.pages.begin, request.session_hash)
        try:
            clip = await asyncio.to_thread(clip_of, self.context, clip_id)
            rows = await asyncio.to_thread(lambda: clips.reasoners(self.context.look()))
            reasoners = {row["run_id"]: row for row in rows}
            if clip is None:
                gr.Warning("This clip is not here any more. Pick another one.")
                return
            if run not in reasoners:
                gr.Warning("No reasoner is trained in this workbench yet. Run: deepintuit coldstart", duration=12)
                return
            sizes = (int(clip["width"] or 0), int(clip["height"] or 0))
            job = self.context.engine.start(
                running.stop,
                clip=Clip(clip["clip_id"], str(clip["file"]), clip["label"] or "", *sizes, clip.get("split") or ""),
                reasoner=run,
                calibrator=reasoners[run]["calibrator"],
                temperature=_number(temperature, 0.0, 2.0, 0.0),
                top_p=_number(top_p, 0.05, 1.0, 1.0),
                max_tokens=int(_number(max_tokens, 1, 8192, 2048)),
                think_below=_number(think_below, 0.0, 1.0, 1.0) if think_below < 1 else None,
                seed=int(_number(seed, 0, 2**31, 0)),
                private=clip["clip_id"].startswith(PREFIX),
            )
            grammar = await asyncio.to_thread(clips.grammar_of, self.context.workbench, run)
            writer = f"{served} at its server" if (served := reasoners[run]["server"]) else run
            view = TraceView("live", f"written live by {writer}", grammar, clip["seconds"])
            view.labels, view.calibrator = self.context.labels(clip.get("dataset")), reasoners[run]["calibrator"]

            def happened() -> list[stored.Event]:
                view.ahead = job.ahead
                return job.take()

            over = lambda: job.over  # noqa: E731
            with self.context.uploads.held(clip["clip_id"]):
                async for update in self._show(running, view, clip, truth, threshold, happened, over, bool(trace_id)):
                    yield update
        finally:
            self.context.pages.end(request.session_hash, running)

    async def _show(
        self, running: Running, view: TraceView, clip, truth, threshold, happened, over, stored_too: bool
    ) -> AsyncIterator[list[Any]]:
        """Updates of the stage until all is over or stopped, at most fifteen a second."""
        former: dict[str, str] = {}

        def update(parts: set[str], buttons: list[Any]) -> list[Any]:
            fresh = {part: self.draw(part, view, clip, truth, threshold) for part in parts}
            changed = {part: html for part, html in fresh.items() if former.get(part) != html}
            former.update(changed)
            return [*(changed.get(part, gr.skip()) for part in PARTS), view, *buttons]

        yield update(set(PARTS), self._buttons(clip, stored_too, running=True))
        last, still = time.monotonic(), [gr.skip()] * 3
        while not running.stop.is_set():
            ended = over()  # looked at before what happened is taken, so that nothing is left behind
            parts = {"status"} if view.ahead else set()
            for event in happened():
                parts |= view.take(event)
            if ended:
                break
            if parts or time.monotonic() - last > _HEARTBEAT:
                last = time.monotonic()
                yield update(parts, still)
            await asyncio.sleep(_TICK)
        if running.quiet:
            return
        if running.stop.is_set():
            await asyncio.sleep(_TICK)
            for event in happened():
                view.take(event)
        view.finish(stopped=running.stop.is_set())
        yield update(set(PARTS), self._buttons(clip, stored_too, running=False))


def _refusal(error: VideoError) -> str:
    """Why an upload is not taken, for who brought it: without the reader's own message, which is for a log."""
    why = _CODE.sub("", error.why).strip()
    todo = "Bring a video file, such as an MP4" if error.reason == VideoReason.NOT_A_VIDEO else error.todo
    return str(VideoError(error.what, why, todo, error.reason))


def _tokens_a_second(row: Any, pace: str) -> float | None:
    """What `stored.replay` takes for a pace in words."""
    words = PACES.get(pace, PACES["Reading pace"])
    if words is None or words == float("inf"):
        return words
    tokens = row["tokens"] if row["tokens"] and row["tokens"] == row["tokens"] else len(row["text"]) / 4
    return words * max(1.0, tokens) / max(1, len(row["text"].split()))


def _choices(names: Sequence[str], value: str = "") -> list[tuple[str, str]]:
    """`value` is among them even where no clip has it."""
    return _ANY + [(name, name) for name in dict.fromkeys([*names, value]) if name]


def _number(value: Any, low: float, high: float, default: float) -> float:
    """A setting from a browser: a number within its bounds, else the default."""
    if not isinstance(value, int | float) or value != value:
        return default
    return float(min(high, max(low, value)))


def page(context: AppContext) -> None:
    """The components and what ties them together."""
    do = Handlers(context)
    pick = gr.Textbox(elem_id="wanted", visible="hidden", label="Clip that was clicked")
    picked = gr.Textbox(elem_id="picked", visible="hidden", label="Clip")
    number = gr.Textbox(elem_id="watch-page", visible="hidden", label="Page")
    remove = gr.Textbox(elem_id="watch-remove", visible="hidden", label="Filter to remove")
    gr.HTML(heading("Watch"), padding=False, elem_classes="unseen")
    with gr.Row(elem_id="controls", equal_height=True):
        choice = gr.Dropdown([], label="Stored trace", elem_id="stored", scale=4, min_width=260)
        again = gr.Button("Replay", variant="primary", elem_id="replay", min_width=90, interactive=False, size="md")
        live = gr.Button("Reason now", elem_id="reason", min_width=110, interactive=False, size="md")
        halt = gr.Button("Stop", variant="stop", elem_id="stop", min_width=70, interactive=False, size="md")
    with gr.Row(elem_id="stage", equal_height=False):
        with gr.Column(scale=5, min_width=320):
            player = gr.HTML(player_html(None, ""), elem_id="screen")
            verdict = gr.HTML("", elem_id="verdict")
            with gr.Row(elem_id="ask", equal_height=True):
                truth = gr.Checkbox(False, label="Show the true label", min_width=160, container=False)
                threshold = gr.Slider(
                    0, 1, 0.5, step=0.05, label="Minimum confidence", min_width=200, elem_id="threshold", buttons=[]
                )
        with gr.Column(scale=6, min_width=320):
            status = gr.HTML(trace_view.status(TraceView("stored", over=True)), elem_id="status")
            trace = gr.HTML("", elem_id="trace")
            carried = gr.Button("What carried the answer?", size="sm", elem_id="attribute", min_width=120)
            film = gr.HTML(trace_view.film(None), elem_id="film")
            with gr.Accordion("Settings of replay and live reasoning", open=False, elem_id="settings"):
                pace = gr.Radio(list(PACES), value="Reading pace", label="Replay speed")
                run = gr.Dropdown(
                    [], label="Reasoner", elem_id="run", filterable=False,
                    info="Which trained model reasons live; its calibrator comes with it. Loaded when first used.",
                )  # fmt: skip
                with gr.Row():
                    temperature = gr.Slider(
                        0, 2, 0, step=0.05, label="Temperature", min_width=200,
                        info="0 writes the likeliest trace, as in evaluation; 1 samples as in training.",
                    )  # fmt: skip
                    top_p = gr.Slider(
                        0.05, 1, 1, step=0.05, label="Top-p", min_width=200,
                        info="Share of the probability mass that is sampled from. No effect at temperature 0.",
                    )  # fmt: skip
                with gr.Row():
                    tokens = gr.Slider(
                        32, 8192, 2048, step=32, label="Max tokens", min_width=200, elem_id="tokens",
                        info="A trace that is longer is cut, and counts as no answer.",
                    )  # fmt: skip
                    seed = gr.Number(
                        0, label="Seed", precision=0, minimum=0, min_width=200,
                        info="The same seed, clip and settings give the same trace.",
                    )  # fmt: skip
                think_below = gr.Slider(
                    0, 1, 1, step=0.01, label="Think when less sure than", elem_id="think-below",
                    info="Only for a reasoner that gives a quick answer first: at least this sure, it stands and the "
                    "reasoning is left out. 1 always thinks; the run's card draws accuracy against thinking.",
                )  # fmt: skip
                costs = gr.HTML("", elem_id="think-costs", elem_classes="runs")
                gr.HTML(note("How many frames the model sees is part of how it was trained."))
    near = gr.HTML(elem_id="alike")
    gr.HTML(heading("Clips", level=2), elem_id="clips-heading")
    with gr.Row(elem_id="finder", equal_height=True):
        text = gr.Textbox(label="Find a clip", placeholder="id, file, group or label", scale=4, min_width=220)
        small = {"min_width": 110, "filterable": False}
        label = gr.Dropdown(_ANY, value="", label=FILTERS["label"], **small)
        split = gr.Dropdown(_ANY, value="", label=FILTERS["split"], **small)
        flip = gr.Dropdown(_choices(clips.FLIPS), value="", label=FILTERS["flip"], **small)
        within = slices.box(elem_id="watch-slice")
        upload = gr.UploadButton(
            "Upload a clip", file_types=["video"], size="md", min_width=120, elem_id="upload", variant="secondary"
        )
    strip = gr.HTML(elem_id="found")
    state, behind, last = gr.State(None), gr.State(None), gr.State(None)
    timer = gr.Timer(1.0, active=False)

    stage = [status, trace, film, verdict, state, again, live, halt]
    view = [truth, threshold]
    plain = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    reads = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
    filters = [text, label, split, flip, within]
    wish = [text, label, split, flip, picked, within]
    find = {"fn": do.find, "inputs": [*wish, number], "outputs": [strip, behind, timer]}
    parts = {"clip": picked, "trace": choice, "run": run, **dict(zip(FILTERS, filters)), "page": number}
    event = links.bind(parts, do.restore, choices=("clip", "trace", "page", "slice"), also=[last])
    event.then(do.opened, [picked, choice, *view], [player, *stage], **reads).then(**links.FILLED)
    event.then(**find, **reads)
    narrow = {"fn": do.anew, "inputs": [last, *wish], "outputs": [last, number, *find["outputs"]]}
    filtered = [text.change, label.input, split.input, flip.input, within.input]
    gr.on(filtered, **narrow, trigger_mode="always_last", **reads)
    remove.change(do.removed, remove, [remove, *filters], **reads).then(**narrow, **reads)
    number.change(do.paged, find["inputs"], find["outputs"], trigger_mode="always_last", **reads)
    timer.tick(do.once_more, [behind, *find["inputs"]], find["outputs"], **reads)
    pick.change(do.pick, [pick, *view], [pick, picked, choice, player, *stage], **reads)
    choice.input(do.opened, [picked, choice, *view], [player, *stage], **reads)
    takes = {**reads, "concurrency_limit": 4}  # the rest waits without a thread: decoding a hostile file may take long
    picked.change(alike.handler(context, clip_of), [picked, choice], near, trigger_mode="always_last", **reads)
    upload.upload(do.upload, [upload, *view], [picked, choice, player, *stage], **takes).then(**find, **reads)
    estimate = {
        "fn": lambda reasoner, below: consequences(context.look(), reasoner, _number(below, 0.0, 1.0, 1.0)),
        "inputs": [run, think_below], "outputs": costs,
    }  # fmt: skip
    event.then(**estimate, **reads)
    gr.on([run.input, think_below.input], **estimate, trigger_mode="always_last", **plain)
    gr.on(
        [truth.input, threshold.input], do.judged, [state, picked, *view], verdict, trigger_mode="always_last", **plain
    )
    again.click(do.replay, [picked, choice, pace, *view], stage, js=_PLAY, **reads).then(None, js=_PLAYED)
    live.click(
        do.reason, [picked, choice, run, temperature, top_p, tokens, seed, think_below, *view], stage,
        concurrency_id=GENERATION, concurrency_limit=16, show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    halt.click(do.stop, None, None, **plain)
    asks = {"concurrency_id": GENERATION, "show_progress": "hidden", "api_visibility": "private"}
    carried.click(attribution.handler(context, clip_of), [state, picked], [trace, state], **asks)
