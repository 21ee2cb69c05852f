"""The Review page in a real Chromium: all by keyboard, drafts, undo, skips, leads; nothing fires while typing."""

import json
import shutil

import pytest
from conftest import HOSTILE, serve

from deepintuit_analysis import Workbench
from deepintuit_analysis.index.browse import TraceFilter
from deepintuit_analysis.review import Kind, read_events
from deepintuit_app.login import hashed

FORM = {"questions": ["label", "verdict", "failing", "note"], "order": "given", "reviewers": "1", "query": ""}
WORDS = hashed("correct horse")


OPEN = """async (form) => {
    const headers = {"Content-Type": "application/json"};
    const answer = await fetch("/review-api/open", {method: "POST", body: JSON.stringify(form), headers});
    if (!answer.ok) throw await answer.text();
}"""


class Reviewing:
    """A served workbench that is written into. Tests share it, each with tasks of its own names."""

    def __init__(self, url: str, workbench: Workbench):
        self.url, self.workbench = url, workbench

    def events(self, task: str, kind: Kind) -> list:
        """What its file of events holds."""
        return [event for event in read_events(self.workbench.reviews)[0] if (event.task, event.kind) == (task, kind)]

    def task(self, page, name: str, **form) -> None:
        """Open a task by the page's own route, and its desk."""
        page.goto(f"{self.url}/review")
        page.wait_for_selector("#review-open", state="attached")
        page.evaluate(OPEN, {**FORM, "name": name, **form})
        self.desk(page, name)

    def desk(self, page, name: str) -> None:
        page.goto(f"{self.url}/review?task={name}")
        on_desk(page)


@pytest.fixture(scope="module")
def own(site, tmp_path_factory):
    place = tmp_path_factory.mktemp("own") / "workbench"
    shutil.copytree(site.workbench.path, place)
    with serve(place) as url:
        yield Reviewing(url, Workbench(place))


@pytest.fixture
def crew(site, tmp_path):
    shutil.copytree(site.workbench.path, tmp_path / "workbench")
    with serve(tmp_path / "workbench", users=dict.fromkeys(("ada", "bob"), WORDS)) as url:
        yield Reviewing(url, Workbench(tmp_path / "workbench"))


def on_desk(page) -> None:
    page.wait_for_selector("#review-item :is(.trace, .empty, .finish)")


def login(page, reviewing: Reviewing, name: str) -> None:
    page.goto(f"{reviewing.url}/login")
    page.fill("[name=username]", name)
    page.fill("[name=password]", "correct horse")
    page.click("button")
    page.wait_for_url(f"{reviewing.url}/")


STATUS = "document.querySelector('#review-status')?.textContent || ''"


def keys(page, *names: str) -> None:
    """Presses them; what contradicts itself is asked about once, and meant."""
    for name in names:
        page.keyboard.press(name)
        if name == "Enter" and "Submit again" in page.evaluate(STATUS):
            page.keyboard.press(name)


def says(page, words: str) -> None:
    """The status holds these words, and keys are taken again."""
    page.wait_for_function(
        "(words) => document.querySelector('#review-status')?.textContent.includes(words)"
        " && !document.querySelector('#review[data-busy]')",
        arg=words,
    )


def shown(page) -> str:
    """The trace on screen, as text."""
    return page.inner_text("#review-item .trace")


def submitted(page, number: int) -> None:
    """The answer is saved and counted, and the next item is painted."""
    page.wait_for_function("(n) => performance.getEntriesByName('review-next').length >= n", arg=number)
    says(page, "Saved.")


def ready(page) -> None:
    """The next item and its clip are there, as they are after the seconds that a person takes."""
    page.wait_for_selector("#review:not([data-ahead='0'])", state="attached")


def test_twenty_items_by_keyboard_alone_are_twenty_events_and_each_next_is_there_at_once(own, page):
    own.task(page, "keys")
    labels = ["delivery", "theft", "routine", None]
    for turn in range(20):
        ready(page)
        keys(page, "1230"[turn % 4], "awru"[turn % 4], "ArrowDown", "ds"[turn % 2], "Enter")
        submitted(page, turn + 1)
        assert page.inner_text("#review-progress").startswith(f"{turn + 1} by you")
    judged = own.events("keys", Kind.JUDGED)
    assert len(judged) == len({event.item for event in judged}) == 20
    assert [event.payload["label"] for event in judged] == labels * 5
    assert [event.payload["verdict"] for event in judged] == ["right", "wrong reasons", "wrong", None] * 5
    assert judged[0].payload["failing"] == {"sentence": 0, "in": "reasoning"}
    took = sorted(page.evaluate("performance.getEntriesByName('review-next').map((one) => one.duration)"))
    print(f"submit to next on screen, ms: median {took[10]:.0f}, longest {took[-1]:.0f}, n=20")
    assert took[0] < 300, "a loaded machine makes all wait for it: the quickest says what the page takes"
    page.locator("#review-progress", has_text="20 by you · 20 of 28 judgements").wait_for()


def test_a_contradiction_is_asked_about_and_an_edited_trace_is_checked_as_it_is_typed(own, page):
    own.task(page, "odd", query="provisional=theft")
    for key in "1a":
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    says(page, "it ends in theft and not in delivery. Submit again")
    assert own.events("odd", Kind.JUDGED) == []
    keys(page, "w", "Enter")
    says(page, "Saved.")
    ready(page)
    page.keyboard.press("e")
    assert page.input_value("#review-note").startswith("<think>")
    page.get_by_text("Well-formed; it ends in theft.").wait_for()
    page.locator("#review-note").fill("<think> He takes it. </think><answer> sledge </answer>")
    page.get_by_text("Not well-formed").wait_for()
    keys(page, "Escape", "2", "w")
    page.keyboard.press("Enter")
    says(page, "Submit again")
    assert "cannot be learned from. Not well-formed" in page.evaluate(STATUS)
    assert len(own.events("odd", Kind.JUDGED)) == 1
    page.keyboard.press("Enter")
    says(page, "Saved.")
    assert len(own.events("odd", Kind.JUDGED)) == 2


def playable(page) -> None:
    page.wait_for_function("document.querySelector('#player')?.readyState >= 2")


def span(start: float, end: float, label: str) -> dict:
    return {"start": start, "end": end, "label": label}


@pytest.mark.thorough
def test_twenty_items_are_marked_with_spans_of_time_by_keyboard_alone(own, page):
    page.emulate_media(reduced_motion="reduce")
    own.task(page, "when", questions=["spans"])
    for turn in range(20):
        ready(page)
        playable(page)
        keys(page, "i" if turn % 2 else "[", ".", ".", "o" if turn % 2 else "]")
        says(page, "Which label")
        keys(page, "123"[turn % 3], "Enter")
        submitted(page, turn + 1)
    judged = own.events("when", Kind.JUDGED)
    labels = ["delivery", "theft", "routine"]
    assert len({event.item for event in judged}) == 20
    assert [event.payload["spans"] for event in judged] == [[span(0.0, 0.375, labels[n % 3])] for n in range(20)]


def test_spans_are_picked_moved_labelled_anew_and_removed_and_survive_a_reload_and_undo(own, page):
    page.emulate_media(reduced_motion="reduce")
    own.task(page, "spans", questions=["label", "spans"])
    playable(page)
    keys(page, "2", "[", ".", "]", ".", ".")  # of the clip's label
    says(page, "theft 0.00–0.25 s")
    keys(page, ".", "]")
    says(page, "Mark where it begins first")
    keys(page, "[", ".", ".", "Enter")
    says(page, "] ends it")  # nothing half done is sent
    keys(page, ",", ",", ",", ",", "]", "{")  # from its end to its beginning
    says(page, "theft 0.25–0.63 s")
    keys(page, "3", ".", "[")
    says(page, "routine 0.38–0.63 s")
    assert page.locator("#review-spans select").evaluate_all("all => all.map((one) => one.value)") == [
        "theft",
        "routine",
    ]
    bars = page.locator("#review-timeline .span")
    assert bars.all_inner_texts() == ["theft", "routine"] and page.locator("#review-timeline .picked").count() == 1
    assert page.locator("#review-timeline .cited").count() >= 1, "what the trace cites is beside it"
    left = "one => parseFloat(one.style.left)"
    assert abs(bars.nth(1).evaluate(left) - 12.5) < 0.1, "of 3 s"
    assert abs(page.locator("#review-timeline .head").evaluate(left) - 12.5) < 0.5
    page.reload()
    on_desk(page)
    playable(page)
    keys(page, "}", "}", "x")
    says(page, "routine 0.38–0.63 s is removed")
    keys(page, "[", "Escape")
    page.locator("#review-spans select").select_option("delivery")
    says(page, "delivery 0.00–0.25 s")
    page.evaluate("document.activeElement.blur()")
    keys(page, "Escape", "Enter")
    submitted(page, 1)
    keys(page, "z")
    says(page, "Undone")
    assert page.locator("#review-spans li").count() == 1
    page.evaluate("""document.dispatchEvent(new KeyboardEvent("keydown",
        {key: "[", altKey: true, ctrlKey: true, bubbles: true}))""")  # as AltGr types it
    says(page, "A span from")
    keys(page, "x", "Enter")
    submitted(page, 2)
    kept = [event.payload for event in own.events("spans", Kind.JUDGED)]
    assert kept == [{"label": "theft", "spans": [span(0.0, 0.25, "delivery")]}] * 2


def test_guidelines_are_at_hand_and_a_known_item_says_what_is_right(own, page):
    own.task(page, "taught", gold="8", gold_share="90", feedback="1", guidelines="Look at hands.")
    assert page.get_by_text("Look at hands.").is_visible()
    keys(page, "g")
    page.get_by_text("Look at hands.").wait_for(state="hidden")
    known = own.events("taught", Kind.OPENED)[0].payload["gold"]
    while (item := page.evaluate("sessionStorage.getItem('deepintuit-recent\\ntaught\\nnow')")) not in known:
        keys(page, "k")
        page.locator("#review-skip input").press_sequentially("x")
        keys(page, "Enter")
        says(page, "Skipped")
    keys(page, "0", "u", "Enter")
    page.get_by_text("That item was known, and your answer is another").wait_for()
    assert known[item]["label"] in page.inner_text("#review-gold")
    keys(page, "Enter")
    page.locator("#review-gold").wait_for(state="hidden")
    keys(page, "z")
    says(page, "your answer stays")


@pytest.mark.parametrize("size", [(1280, 860), (390, 844)])
def test_submit_and_what_is_said_stay_on_screen(own, page, size):
    page.set_viewport_size(dict(zip(("width", "height"), size)))
    own.task(page, f"fold-{size[0]}")
    page.evaluate("window.scrollTo(0, 0)")
    keys(page, "Enter")
    says(page, "Which label?")
    for part in ("#review-status", "#review [data-do=submit]"):
        box = page.locator(part).bounding_box()
        assert 0 <= box["y"] and box["y"] + box["height"] <= size[1] and box["x"] + box["width"] <= size[0]


def test_no_key_fires_while_typing_and_what_is_missing_is_said(own, page):
    own.task(page, "typing")
    text = shown(page)
    keys(page, "n")
    page.keyboard.type("zk12 awru?,.<> sd")
    keys(page, "ArrowDown", "ArrowRight", "Enter")
    page.keyboard.type(HOSTILE)
    assert page.input_value("#review-note").startswith("zk12 awru?,.<> sd\n")
    assert shown(page) == text
    assert page.locator("#review [aria-pressed=true], #review dialog[open], .picked").count() == 0
    keys(page, "Escape", "Enter")
    says(page, "Which label?")
    keys(page, "1", "Enter")
    says(page, "And the trace?")
    keys(page, "k")
    page.locator("#review-skip input").press_sequentially("z1a")
    keys(page, "Escape")
    assert not any(own.events("typing", kind) for kind in (Kind.JUDGED, Kind.SKIPPED, Kind.UNDONE))


def test_a_draft_survives_a_reload_and_another_tab_gets_another_item(own, page):
    own.task(page, "drafts")
    text = shown(page)
    keys(page, "2", "w", "n")
    page.keyboard.type("half a no")
    page.reload()
    on_desk(page)
    assert shown(page) == text and page.input_value("#review-note") == "half a no"
    assert page.locator("[aria-pressed=true]").all_inner_texts() == ["2theft", "WWrong reasons"]
    other = page.context.new_page()
    own.desk(other, "drafts")
    assert other.evaluate("sessionStorage.getItem('deepintuit-seat')") != page.evaluate(
        "sessionStorage.getItem('deepintuit-seat')"
    )
    for tab in (page, other):
        keys(tab, "1", "a", "Enter")
        says(tab, "Saved.")
    judged = own.events("drafts", Kind.JUDGED)
    assert len({event.item for event in judged}) == 2 and judged[0].payload["note"] == "half a no"


def test_undo_skip_and_the_way_back(own, page):
    own.task(page, "back")
    first = shown(page)
    keys(page, "3", "r", "Enter")
    submitted(page, 1)
    second = shown(page)
    assert second != first
    keys(page, "z")
    says(page, "Undone")
    assert shown(page) == first and page.locator("[data-label=routine][aria-pressed=true]").count() == 1
    keys(page, "1", "Enter")
    submitted(page, 2)
    keys(page, "ArrowLeft")
    says(page, "You have answered this one")
    assert shown(page) == first
    keys(page, "k")
    says(page, "answered already")
    keys(page, "ArrowRight")
    keys(page, "k")
    page.locator("#review-skip input").press_sequentially("cannot tell")
    keys(page, "Enter")
    says(page, "Skipped, and saved.")
    (skipped,) = own.events("back", Kind.SKIPPED)
    assert skipped.payload == {"reason": "cannot tell"}
    assert [event.payload["label"] for event in own.events("back", Kind.JUDGED)] == ["routine", "delivery"]


def test_an_item_fetched_ahead_while_it_is_undone_stays_the_one_on_screen(own, page):
    """The request for the next item leaves before the undo and reaches the server after it."""
    own.task(page, "late")
    first, late = shown(page), []
    ready(page)
    page.route("**/review-api/next", lambda route: route.continue_() if late else late.append(route))
    keys(page, "3", "r", "Enter")
    submitted(page, 1)
    second = shown(page)
    keys(page, "z")
    says(page, "Undone")
    with page.expect_response("**/review-api/next"):
        late[0].continue_()
    ready(page)
    assert shown(page) == first
    keys(page, "1", "Enter")
    submitted(page, 2)
    assert shown(page) == second
    keys(page, "ArrowLeft")
    says(page, "You have answered this one")
    assert shown(page) == first
    assert [event.payload["label"] for event in own.events("late", Kind.JUDGED)] == ["routine", "delivery"]


def test_the_player_obeys_the_keys_and_the_sheet_says_which(own, page):
    page.emulate_media(reduced_motion="reduce")
    own.task(page, "player")
    page.wait_for_function("document.querySelector('#player').readyState >= 2")
    at = "document.querySelector('#player').currentTime"
    assert page.evaluate("document.querySelector('#player').paused"), "nothing moves unasked where motion is unwelcome"
    keys(page, ".", ".")
    page.wait_for_function(f"Math.abs({at} - 0.25) < 0.01")
    keys(page, ",")
    page.wait_for_function(f"Math.abs({at} - 0.125) < 0.01")
    keys(page, "ArrowDown")
    page.wait_for_function(f"Math.abs({at} - 0.5) < 0.01")
    assert page.locator(".sentence.picked").inner_text().strip().startswith("At 0.5 s")
    keys(page, ">", ">")
    assert page.evaluate("document.querySelector('#player').playbackRate") == 2
    keys(page, "<", "Space")
    page.wait_for_function("!document.querySelector('#player').paused")
    keys(page, "?")
    assert "slower · faster" in page.inner_text("#review-sheet")
    keys(page, "1", "Enter")
    assert own.events("player", Kind.JUDGED) == [] and page.locator("[data-label][aria-pressed=true]").count() == 0


def test_a_task_is_opened_with_the_form(own, page):
    page.goto(f"{own.url}/review?query=right%3Dwrong")  # a link opens the form
    page.wait_for_selector("#review-open")
    assert page.locator("[name=query]").input_value() == "right=wrong"
    page.locator("[name=name]").fill("suspected")
    page.locator("[name=query]").fill(f"{own.url}/traces?right=wrong")
    wrong = own.workbench.query("SELECT count(*) AS n FROM traces WHERE provisional <> true_label")["n"][0]
    page.wait_for_function(f"document.querySelector('#review-count').textContent === '{wrong} traces'")
    page.locator("[name=source]").select_option("suspects")
    page.locator("[name=split]").fill("test")
    page.wait_for_function("/^[0-9]+ traces?$/.test(document.querySelector('#review-count').textContent)")
    own.workbench.save_slice(
        "one of them",
        TraceFilter(
            clip=own.workbench.query("SELECT clip_id FROM traces WHERE provisional <> true_label LIMIT 1")["clip_id"][0]
        ),
    )
    page.goto(f"{own.url}/review?slice=one+of+them")
    page.wait_for_selector("#review-open")
    assert page.locator("[name=slice]").input_value() == "one of them"
    page.locator("[name=source]").select_option("suspects")
    page.locator("[name=split]").fill("test")
    page.wait_for_function("/^[01] traces?$/.test(document.querySelector('#review-count').textContent)")
    page.goto(f"{own.url}/review?query=right%3Dwrong")
    page.locator("[name=name]").fill("suspected")
    page.locator("[name=order]").select_option("mixture")
    page.get_by_role("button", name="Open the task").click()
    page.locator("#review-refused", has_text="without shares").wait_for()
    page.locator("[name=share-random]").fill("1")
    page.get_by_role("button", name="Open the task").click()
    page.get_by_role("article").filter(has_text="suspected").get_by_role("link", name="Review").click()
    on_desk(page)
    assert "task=suspected" in page.url and len(own.events("suspected", Kind.OPENED)[0].payload["items"]) == wrong
    page.go_back()
    page.get_by_role("article").filter(has_text="suspected").wait_for()


def test_what_is_not_saved_stays_and_is_said(own, page):
    own.task(page, "broken line")
    text = shown(page)
    page.route("**/review-api/judge", lambda route: route.abort())
    keys(page, "1", "a", "Enter")
    says(page, "Not saved.")
    assert shown(page) == text and own.events("broken line", Kind.JUDGED) == []
    page.unroute("**/review-api/judge")
    keys(page, "Enter")
    says(page, "Saved.")
    assert len(own.events("broken line", Kind.JUDGED)) == 1


def test_others_get_other_items_their_notes_are_text_and_a_lead_decides(crew, open_page):
    ada, bob = open_page(), open_page()
    for page, name in ((ada, "ada"), (bob, "bob")):
        login(page, crew, name)
    crew.task(ada, "one", query=f"clip={crew.workbench.query('SELECT clip_id FROM traces LIMIT 1')['clip_id'][0]}")
    mine = [event.item for event in crew.events("one", Kind.RESERVED)]
    crew.desk(bob, "one")
    theirs = [event.item for event in crew.events("one", Kind.RESERVED) if event.reviewer == "bob"]
    assert not {*mine} & {*theirs}, "one reviewer an item"
    crew.task(ada, "two", reviewers="2", query="max_tokens=100000")
    crew.desk(bob, "two")
    assert shown(ada) == shown(bob)
    for page, label in ((ada, "1"), (bob, "2")):
        page.fill("#review-note", HOSTILE)
        page.evaluate("document.activeElement.blur()")
        keys(page, label, "a")
        page.keyboard.press("Enter")
        says(page, "Submit again")  # it begins like a trace, and is none
        page.keyboard.press("Enter")
        submitted(page, 1)
    assert {event.reviewer for event in crew.events("two", Kind.JUDGED)} == {"ada", "bob"}
    ada.goto(f"{crew.url}/review?task=two&view=lead")
    ada.get_by_role("link", name="Decide 1 disputed").wait_for()
    ada.get_by_text("Notes, spans and skips").click()
    assert "quoted" in ada.inner_text("#review") and ada.evaluate("window.hacked === undefined")
    assert ada.locator("#review img, #review script").count() == 0
    ada.get_by_role("link", name="Decide 1 disputed").click()
    on_desk(ada)
    assert "bob" in ada.inner_text("#review-item table") and ada.evaluate("window.hacked === undefined")
    keys(ada, "2", "a", "Enter")
    says(ada, "Saved.")
    (decided,) = crew.events("two", Kind.ADJUDICATED)
    assert (decided.reviewer, decided.payload["label"]) == ("ada", "theft")
    ada.get_by_role("button", name="All tasks").click()
    ada.get_by_role("article").filter(has_text="two").get_by_role("link", name="Lead’s view").click()
    with ada.expect_download() as file:
        ada.get_by_role("link", name="JSONL").click()
    again = {"name": "again.jsonl", "mimeType": "", "buffer": file.value.path().read_bytes()}
    ada.set_input_files("#review-import", again)
    says(ada, "0 answers taken in; 3 are here already")
    ada.get_by_role("button", name="Close the task").click()
    ada.get_by_role("button", name="Open it again").wait_for()
    keys(bob, "1", "a", "Enter")
    says(bob, "Not saved. The task 'two' is closed")
    bob.goto(f"{crew.url}/review?task=two&view=lead")
    bob.get_by_role("alert").filter(has_text="ask one of them").wait_for()


def test_a_blind_task_shows_no_label_of_the_model(own, page):
    own.task(page, "blind", blind="1")
    for _ in range(6):
        said = page.inner_text("#review-item").lower()
        assert "hidden" in said and not any(label in said for label in ("delivery", "theft", "routine"))
        keys(page, "0", "u", "Enter")
        says(page, "Saved.")
    assert json.dumps(own.events("blind", Kind.JUDGED)[0].payload) == '{"label": null, "verdict": null}'


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(own, open_page, width):
    page = open_page(width=width, dark=width == 390)
    own.task(page, f"narrow-{width}")
    keys(page, "1", "a", "Enter")
    says(page, "Saved.")
    for view in ("?query=x", f"?task=narrow-{width}", f"?task=narrow-{width}&view=lead"):
        page.goto(f"{own.url}/review{view}")
        page.wait_for_selector("#review :is(article, .trace, table)")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
