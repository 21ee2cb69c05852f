"""The Errors page: every count opens as many clips as it says, in a real browser, and the address brings them back."""

from dataclasses import replace
from io import StringIO
from urllib.parse import parse_qs, urlencode, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CALIBRATED, COLD, HOSTILE_FILE, LABELS, REFINED, TRUE, serve, write_workbench
from rich.console import Console

from deepintuit.errors import StoreError
from deepintuit.labels import NONE_LABEL
from deepintuit.metrics import Estimate
from deepintuit.runs import trace_id
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import answers, progress
from deepintuit_analysis.numbers import interval
from deepintuit_analysis.report import run_card, sentence, terminal_table, worst_slices
from deepintuit_analysis.report.gather import tabulate
from deepintuit_app import analysis, errors_classes, errors_clips, errors_honesty, errors_view, runs

ROWS = "#errors-drawer .clips tbody tr"


def looked_at(site, **wish):
    """The analysis of the refined system, or of what is wished for."""
    choice, _ = analysis.choose(answers.sources(site.workbench), analysis.Choice(**wish))
    return analysis.analysis(site.workbench, choice)


def cold(site):
    return f"{site.runs['evaluate-cold']}/cold start"


def address(site, **query):
    return f"{site.url}/errors" + (f"?{urlencode(query)}" if query else "")


def opened(page, site, **query):
    """The page with its numbers there."""
    page.goto(address(site, **query))
    page.wait_for_selector(".confusion")
    return page


def rows_after(page, cell):
    page.locator(f'.errors [data-value="{cell}"]').first.click()
    page.wait_for_selector(ROWS)
    return page.locator(ROWS)


# Without a browser


def test_the_newest_calibrated_system_is_chosen_and_what_is_not_there_is_not(site):
    found = answers.sources(site.workbench)
    choice, offers = analysis.choose(found, analysis.Choice(split="nowhere", system="x/<b>", compare="x/y/z"))
    assert choice.system == f"{site.runs['evaluate-refined']}/cold start + GRPO" and choice.split == "test"
    assert choice.method == "label_likelihood" and choice.compare == ""
    assert [value for _, value in offers.systems][1] == cold(site)
    assert f"{cold(site)}/raw" in [value for _, value in offers.compares]


def test_without_answers_nothing_is_chosen(tmp_path):
    choice, offers = analysis.choose(answers.sources(Workbench(tmp_path / "empty")), analysis.Choice())
    assert choice == analysis.Choice() and offers.systems == []


@pytest.mark.parametrize(("wish", "answered"), [({}, CALIBRATED), ({"method": "raw"}, REFINED)])
def test_each_cell_has_the_clips_of_its_count(site, wish, answered):
    found = looked_at(site, **wish)
    names = [*LABELS.labels, NONE_LABEL]
    for i, true in enumerate(LABELS.labels):
        for j, name in enumerate(names):
            listed = errors_clips.behind(found, f"confusion.{i}.{j}", 0.9, "seconds")[1]
            assert len(listed) == sum(pair == (true, name) for pair in zip(TRUE, answered))


def test_flips_against_the_raw_label_and_against_another_system(site):
    found = looked_at(site, compare=f"{cold(site)}/raw")
    for which, before in (("provisional", REFINED), ("raw", REFINED), ("other", COLD)):
        for was in "rw":
            for now in "rw":
                listed = errors_clips.behind(found, f"turned.{which}.{was}{now}", 0.9, "seconds")[1]
                expected = [
                    clip for clip, true, old, new in zip(site.clips, TRUE, before, CALIBRATED)
                    if ((old == true) == (was == "r")) and ((new == true) == (now == "r"))
                ]  # fmt: skip
                assert sorted(listed.index) == sorted(expected)


@pytest.mark.parametrize(
    "cell",
    ["", "nothing", "confusion", "confusion.9.9", "confusion.a.b", "turned.other.rw", "slice.99", "bin.99", "true.7",
     "<b>", "confusion.0.0.0"],
)  # fmt: skip
def test_an_address_written_by_hand_names_no_clips(site, cell):
    assert errors_clips.behind(looked_at(site), cell, 0.9, "seconds") is None
    assert errors_clips.behind(looked_at(site), "slice.0", 0.9, "no such column") is None


def test_slices_hold_every_clip_once(site):
    found = looked_at(site)
    for column in answers.sliceable(found.facts):
        parts = errors_view.parts(found, column)
        listed = [errors_clips.behind(found, f"slice.{k}", 0.9, column)[1] for k in range(len(parts))]
        assert sorted(clip for frame in listed for clip in frame.index) == sorted(site.clips)


def test_the_threshold_tells_coverage_risk_and_who_is_left(site):
    found = looked_at(site)  # every answer has confidence 0.8, one of six is wrong
    assert "Answers 6 of 6 clips (coverage 100.0 %), 16.7 % of them wrong" in errors_honesty.abstain(found, 0.8)
    assert "It abstains on no clip" in errors_honesty.abstain(found, 0.8)
    assert "Show the 6 clips it abstains on" in errors_honesty.abstain(found, 0.9)
    assert len(errors_clips.behind(found, "unsure", 0.9, "seconds")[1]) == 6
    assert len(errors_clips.behind(found, "unsure", 0.8, "seconds")[1]) == 0
    for promised in (90, 95):  # six clips are too few for a promise: half of them, and every label is in every set
        row = f">{promised} %</th><td>6</td><td>100.0"
        assert row in errors_honesty.abstain(found, 0.8)


def test_thresholds_for_wanted_risks_are_those_of_validation_or_none(site):
    found = looked_at(site)
    assert "No threshold of confidence is quoted" in errors_honesty.abstain(found, 0.8)
    chosen = replace(found, mine=replace(found.mine, thresholds={"0.02": None, "0.05": 0.8}))
    said = errors_honesty.abstain(chosen, 0.8)
    assert (
        "chosen on validation clips" in said
        and "No threshold" not in said
        and 'data-set="errors-take" data-value="0.8"' in said
    )
    assert ">0.800</button></td><td>100.0 %</td><td>16.7 " in said
    assert "none does</td><td>0.0 %" in said


def test_an_answer_without_probabilities_says_so_instead_of_drawing(site):
    found = looked_at(site, method="raw")
    assert found.mine.probs_C_K is None
    for said in (errors_honesty.honesty(found), errors_honesty.abstain(found, 0.9)):
        assert "no probabilities" in said
    assert "no confidence to check" in errors_honesty.reliability_plot(found).layout.annotations[0].text
    assert errors_clips.behind(found, "unsure", 0.9, "seconds") is None


def test_probabilities_are_brought_into_the_order_of_the_labels(site):
    found = looked_at(site)
    assert [LABELS.labels[k] for k in found.mine.probs_C_K.argmax(1)] == found.mine.frame["predicted"].tolist()


def test_the_distribution_before_the_temperature_is_flatter_when_it_was_sharpened(site):
    mine = looked_at(site).mine  # T = 0.9: dividing by it made the answers surer
    before_C_K = mine.untempered.probs_C_K
    assert before_C_K.max() < mine.probs_C_K.max() and before_C_K.sum(1) == pytest.approx(1)


def test_controls_are_read_in_words_and_a_change_around_zero_is_called_none():
    changes = {
        "trace_blanked": (0.3, Estimate(-0.6, -0.7, -0.5)), "video_blanked": (0.9, Estimate(0.0, -0.02, 0.02)),
        "trace_swapped": (0.95, Estimate(0.05, 0.01, 0.09)),
    }  # fmt: skip
    said = errors_view.reading(0.9, changes)
    assert "Without the trace: 30.0 %, −60.0 points" in said and "the answer rests on the trace" in said
    assert "no clear change; beyond the trace it does not use the video" in said
    assert "With another clip's trace it does better" in said


def test_of_400_classes_the_confusion_table_has_the_most_confused(site):
    found = looked_at(site)
    labels = (*found.labels, *(f"class {k}" for k in range(400)))
    made = errors_view.confusion_table(
        replace(found, mine=replace(found.mine, labels=labels, probs_C_K=None)), "counts"
    )
    assert len(made) < 500_000 and f"40 of {len(labels)} classes" in made
    for i, true in enumerate(LABELS.labels):
        assert (f'data-value="confusion.{i}.{i}"' in made) == ((true, true) in zip(TRUE, CALIBRATED))


def test_every_number_of_the_page_and_of_the_run_card_has_one_interval(site):
    """Accuracy, F1, ECE, Brier, NLL, label sets, changes: by the bootstrap of the run, over its sources."""
    found = looked_at(site)
    run_id = site.runs["evaluate-refined"]
    page = "".join([
        errors_view.summary(found), errors_view.classes(found), errors_honesty.honesty(found),
        errors_honesty.abstain(found, 0.8), errors_view.controls(found),
    ])  # fmt: skip
    table = tabulate(site.workbench, [run_id])
    card = run_card(site.workbench, run_id).read_text(encoding="utf-8")
    terminal = StringIO()
    Console(width=140, file=terminal).print(terminal_table(table.rows, 140))
    [row] = [row for row in table.rows if row.key[1:] == ("label_likelihood", "none")]
    scores = row.evaluation
    assert scores.groups == 3 < row.n, "the sources are drawn, not the clips"
    spans = [interval(one) for one in (scores.accuracy, scores.ece, *row.rates_K[0], row.sets[0].coverage)]
    spans += [interval(one, 1, 3) for one in (scores.brier, scores.nll)]
    assert all(spans)
    for span in spans:
        assert span in page and span in card, span
    assert interval(scores.accuracy) in terminal.getvalue() and interval(scores.accuracy) in sentence(row)
    index = Workbench(site.workbench.path)
    listed = runs.headlines(index, progress.runs(index, "evaluate"))
    assert interval(scores.accuracy) in listed[run_id]
    for control in (one for one in table.rows if one.control != "none"):
        for span in (interval(control.evaluation.accuracy), interval(control.change, sign=True)):
            assert span in page and span in card, (control.key, span)


# In the browser


def test_a_confusion_cell_opens_its_clips_in_one_click_and_the_player_in_two(page, site):
    counted = site.workbench.query(
        """SELECT count(*) AS n FROM predictions WHERE run_id = ? AND method = 'label_likelihood' AND control = 'none'
           AND true_label = 'theft' AND predicted = 'theft'""",
        [site.runs["evaluate-refined"]],
    )["n"][0]
    opened(page, site)
    rows = rows_after(page, "confusion.1.1")
    assert rows.count() == counted == 2
    link = page.get_by_role("link", name="Their traces").get_attribute("href")
    assert parse_qs(urlparse(link).query) == {
        "run": [site.runs["evaluate-refined"]], "split": ["test"], "true": ["theft"], "calibrated": ["theft"]
    }  # fmt: skip
    rows.first.locator("button").click()
    page.wait_for_function("document.querySelector('#errors-drawer video')?.readyState >= 1")
    assert "steps onto the porch" in page.locator("#errors-drawer .trace").inner_text()
    page.locator("#errors-drawer .chip[data-seek='0.500']").first.click()
    page.wait_for_function("Math.abs(document.querySelector('#errors-drawer video').currentTime - 0.5) < 0.05")


def test_the_address_brings_the_screen_back(open_page, site):
    first = opened(open_page(), site, compare=f"{cold(site)}/raw", threshold="0.7", by="group")
    rows_after(first, "turned.other.wr").first.locator("button").click()
    first.wait_for_selector("#errors-drawer video")
    first.locator("#errors-norm").get_by_text("share of the true class").click(force=True)
    first.wait_for_function("location.search.includes('cells=rows') && location.search.includes('clip=')")
    query = parse_qs(urlparse(first.url).query)
    assert query["method"] == ["calibrated"] and query["compare"] == [f"{cold(site)}/provisional"]
    assert query["cell"] == ["turned.other.wr"] and query["threshold"] == ["0.7"] and query["by"] == ["group"]
    second = open_page()
    second.goto(first.url)
    second.wait_for_selector("#errors-drawer video")
    for selector in ("#errors-drawer .clips", "#errors-drawer h2", ".confusion", ".slices"):
        assert second.locator(selector).inner_text() == first.locator(selector).inner_text()
    assert second.locator(".confusion").inner_text().count("%") > 3
    shown = second.locator("#errors-threshold input[type=number]")
    assert shown.input_value() == "0.7"


def test_a_hostile_trace_and_file_name_are_text(page, site):
    opened(page, site, cell="true.2", clip=site.clips[4])
    page.wait_for_selector("#errors-drawer .trace")
    assert "<script>window.hacked='script'</script>" in page.locator("#errors-drawer .trace").inner_text()
    assert HOSTILE_FILE in page.locator("#errors-drawer .clips").inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.locator("#errors-drawer .trace :is(img, script)").count() == 0


def test_the_clips_below_the_threshold_follow_the_slider(page, site):
    opened(page, site, threshold="0.5")
    assert "abstains on no clip" in page.locator(".errors").inner_text()
    number = page.locator("#errors-threshold input[type=number]")
    number.fill("0.9")
    number.press("Tab")
    page.get_by_role("button", name="clips less sure than the threshold").click()
    page.wait_for_selector(ROWS)
    assert page.locator(ROWS).count() == 6
    # The address has changed, and the figures still have their lines: they name no address.
    page.wait_for_selector(".js-plotly-plot .scatterlayer path", state="attached")
    paths = page.locator(".js-plotly-plot [clip-path]").evaluate_all("all => all.map(one => one.outerHTML)")
    assert paths and not any("http" in path for path in paths)
    # A row of the table of thresholds sets the slider, to all decimals; this system has none, so one is put there.
    page.evaluate("""() => { const button = document.querySelector('.confusion button').cloneNode(true);
      Object.assign(button.dataset, { set: "errors-take", value: "0.8765" }); button.textContent = "take it";
      document.querySelector(".errors").prepend(button); }""")
    page.get_by_text("take it").click()
    page.wait_for_function("location.search.includes('threshold=0.8765')")
    page.wait_for_function("document.querySelector('#errors-threshold input[type=number]').value === '0.8765'")
    page.get_by_role("button", name="clips less sure than the threshold").wait_for()


@pytest.mark.thorough
def test_keys_alone_open_and_close_the_clips(page, site):
    opened(page, site)
    cell = page.locator('[data-value="confusion.0.1"]')
    cell.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(ROWS)
    page.keyboard.press("Escape")
    page.wait_for_selector("#errors-drawer header", state="detached")
    page.wait_for_function("document.activeElement.dataset.value === 'confusion.0.1'")
    assert "cell=" not in page.url


def test_malformed_traces_lead_to_the_traces_page(page, site):
    opened(page, site, system=cold(site))
    link = page.locator('.errors a[href^="traces?"]').filter(has_text="1 traces")
    query = parse_qs(urlparse(link.get_attribute("href")).query)
    assert query["run"] == [site.runs["evaluate-cold"]] and query["reason"] == ["truncated"]
    rows = rows_after(page, "reason.truncated")
    assert rows.count() == 1 and NONE_LABEL in rows.first.inner_text()


def test_another_system_is_chosen_and_the_drawer_closes(page, site):
    opened(page, site, cell="true.0")
    page.wait_for_selector(ROWS)
    page.keyboard.press("Escape")
    page.get_by_label("Compare with").click()
    page.get_by_role("option", name="cold start: provisional label").click()
    page.wait_for_selector("text=From cold start: provisional label")
    assert page.locator("#errors-drawer header").count() == 0
    assert f"compare={site.runs['evaluate-cold']}" in page.url


def test_an_empty_workbench_says_what_to_run(page, tmp_path):
    with serve(tmp_path / "new") as url:
        page.goto(f"{url}/errors?cell=confusion.0.0&system=x")
        page.wait_for_selector("text=No system was evaluated yet")
        assert "deepintuit evaluate" in page.locator("pre").inner_text()


def evaluated(workbench, system):
    """One more evaluated system: two clips, one of them right."""
    clips = {"clip_id": ["c0", "c1"], "path": ["c0.mp4", "c1.mp4"], "label": ["fall", "sit"], "dataset": ["home"] * 2}
    pq.write_table(pa.table(clips | {"split": ["test"] * 2}), workbench.clips / "home.parquet")
    with workbench.start_run("evaluate", {}, name=system, dataset="home") as run:
        run.append(
            "predictions",
            [
                {
                    "clip_id": clip,
                    "split": "test",
                    "system": system,
                    "method": "raw",
                    "control": "none",
                    "true_label": true,
                    "predicted": "fall",
                    "provisional": "fall",
                }
                for clip, true in (("c0", "fall"), ("c1", "sit"))
            ],
        )
        run.finish({})
    return run.id


def test_a_worst_slice_filters_the_page_to_its_clips_and_back(open_page, tmp_path):
    """Sixty clips: those at night are wrong, and their traces say so."""
    workbench = Workbench(tmp_path / "night")
    night = [i < 20 for i in range(60)]
    clips = {"clip_id": [f"c{i}" for i in range(60)], "path": [f"c{i}.mp4" for i in range(60)], "label": ["fall"] * 60}
    light = [[{"name": "light", "value": "night" if dark else HOSTILE_FILE}] for dark in night]
    clips |= {"dataset": ["home"] * 60, "split": ["test"] * 60, "notes": light}
    pq.write_table(pa.table(clips), workbench.clips / "home.parquet")
    with workbench.start_run("evaluate", {}, name="cold start", dataset="home") as run:
        for clip, dark in zip(clips["clip_id"], night):
            text = f"<think>it {'darkens' if dark else 'shines'}</think><answer>x</answer>"
            number = trace_id(run.id, clip, 0, None)
            said = {"clip_id": clip, "true_label": "fall", "provisional": "sit" if dark else "fall", "trace_id": number}
            run.append("traces", [said | {"sample": 0, "text": text}])
            told = {"split": "test", "system": "cold start", "method": "raw", "control": "none"}
            run.append("predictions", [said | told | {"predicted": said["provisional"]}])
        run.finish({})
    found = worst_slices(workbench, run.id)
    [one] = found.slices
    names = {one.conditions, *one.alike}
    said = {(("trace says", "darkens"),), (("trace does not say", "shines"),)}
    assert names == {(("note: light", "night"),), *said} and (one.n, one.errors) == (20, 20)
    assert found.table()["p_accuracy"][0] == one.p["accuracy"] < 1e-6 and one.as_sure is None
    assert one.name in run_card(workbench, run.id).read_text(encoding="utf-8")
    with pytest.raises(StoreError, match="Name one that it has"):
        worst_slices(workbench, run.id, "another system")
    with serve(workbench.path) as url:
        page = open_page()
        page.goto(f"{url}/errors")
        page.get_by_role("link", name=one.name, exact=True).click()
        page.wait_for_selector(".condition")
        assert parse_qs(urlparse(page.url).query)["only"] == [one.only]
        assert "20 of the 60 labelled clips" in page.locator(".condition").inner_text()
        assert "0.0 % of 20 clips right" in page.locator(".errors .lede").inner_text()
        page.get_by_role("link", name="All clips").click()
        page.wait_for_function("!location.search.includes('only=')")
        page.wait_for_selector("text=66.7 % of 60 clips right")
        page.goto(f"{url}/errors?only=note%3A+light%3D<b>")
        page.wait_for_selector("text=No clip here is one of")
        assert page.locator(".condition strong").inner_text() == "note: light: <b>"
        page.get_by_role("link", name="All clips").click()
        page.wait_for_selector("text=66.7 % of 60 clips right")


def test_what_is_evaluated_meanwhile_appears_by_itself_and_what_is_chosen_stays(page, tmp_path):
    workbench = Workbench(tmp_path / "new")
    with serve(workbench.path) as url:
        page.goto(f"{url}/errors")
        page.wait_for_selector("text=No system was evaluated yet")
        first = evaluated(workbench, "first")
        page.wait_for_selector(".confusion")
        assert rows_after(page, "confusion.1.0").count() == 1
        with page.expect_response(lambda answer: "/run/" in answer.url and "a later one" in answer.text()):
            evaluated(workbench, "a later one")
        box = page.get_by_label("System (run)")
        box.click()
        page.get_by_role("option", name="a later one").wait_for()
        assert page.locator(ROWS).count() == 1 and "cell=confusion.1.0" in page.url and first in page.url
        page.get_by_role("option", name="a later one").click()
        page.wait_for_function("location.search.includes('later')")


def test_a_class_is_drawn_against_the_rest_with_where_the_answers_stand(site):
    found = looked_at(site)
    figure = errors_classes.ranking_plot(found, "theft", "theft=3/1")
    marks = {one.name: (one.x[0], one.y[0]) for one in figure.data if one.mode == "markers" and one.xaxis == "x"}
    recall = 100 * found.mine.rates_K[found.labels.index("theft")][1].value
    assert marks["as answered"] == (100 * found.mine.fall_out(found.labels.index("theft")).value, recall)
    assert "from 0.25 on, by costs" in marks and "theft against the rest: AUROC" in figure.layout.meta
    said = errors_classes.ranking(found, "")
    worst = min(found.labels, key=lambda label: found.mine.ranking_K[found.labels.index(label)][0].value)
    assert f'data-value="{worst}" aria-current="true"' in said
    for made in (
        errors_classes.ranking(looked_at(site, method="raw"), ""),
        errors_classes.cost_fields(looked_at(site, method="raw"), ""),
    ):
        assert "no probabilities" in made


def test_missed_clips_and_false_alarms_are_those_of_their_count(site):
    found = looked_at(site)
    probs = dict(zip(found.mine.frame.index, found.mine.probs_C_K[:, 1], strict=True))
    for threshold in ("", ".0.09", ".0.5", ".2"):
        for kind in ("missed", "alarm"):
            listed = errors_clips.behind(found, f"{kind}.1{threshold}", 0.9, "seconds")[1].index
            expected = [
                clip for clip, true, answered in zip(site.clips, TRUE, CALIBRATED, strict=True)
                for called in [probs[clip] >= float(threshold[1:]) if threshold else answered == LABELS.labels[1]]
                if (true == LABELS.labels[1]) == (kind == "missed") and called == (kind == "alarm")
            ]  # fmt: skip
            assert sorted(listed) == sorted(expected)
    for broken in ("missed.9", "alarm.a", "missed", "alarm.1.x"):
        assert errors_clips.behind(found, broken, 0.9, "seconds") is None


def test_thresholds_of_costs_are_chosen_where_the_same_system_answered_validation_clips(tmp_path):
    workbench, *_ = write_workbench(tmp_path / "workbench")
    choice, _ = analysis.choose(answers.sources(workbench), analysis.Choice())
    alone = analysis.analysis(workbench, choice)
    said = errors_classes.costs(alone, "theft=3/1")
    assert alone.validation is None and ">0.25</td>" in said and "evaluate.split=validation" in said
    run = workbench.run(choice.system.split("/")[0])
    rows = run.read("predictions").query("control == 'none'").assign(split="validation")
    for name, parent in (("another", None), ("the same", run.parent)):
        with workbench.start_run("evaluate", {}, parent=parent, name=name, dataset=run.about["dataset"]) as other:
            other.append("predictions", rows.drop(columns="run_id").to_dict("records"))
            other.finish({})
    workbench.refresh()
    found = analysis.analysis(workbench, choice)
    assert found.chosen_in == other.id and found.validation.split == "validation"
    said = errors_classes.costs(found, "theft=3/1")
    assert f"validation clips of {other.id}" in said and "evaluate.split=validation" not in said
    there = analysis.choose(
        answers.sources(workbench), replace(choice, split="validation", system=f"{other.id}/cold start + GRPO")
    )[0]
    assert "chosen on these very clips" in errors_classes.costs(analysis.analysis(workbench, there), "")


@pytest.mark.thorough
def test_prices_and_the_class_are_in_the_address(open_page, site):
    page = opened(open_page(), site)
    page.get_by_label("Cost of a miss of theft").fill("10")
    page.get_by_label("Cost of a false alarm of theft").click()
    page.wait_for_function("document.querySelector('.bills').innerText.includes('0.0909')")
    page.get_by_role("button", name="theft", exact=True).first.click()
    page.wait_for_function("location.search.includes('costs=') && location.search.includes('class=theft')")
    assert parse_qs(urlparse(page.url).query)["costs"] == ["theft=10/1"]
    page.locator('[data-value^="alarm."]').first.click()
    page.wait_for_selector(ROWS)
    second = open_page()
    second.goto(page.url)
    second.wait_for_selector(ROWS)
    assert second.get_by_label("Cost of a miss of theft").input_value() == "10"
    for selector in (".bills", "#errors-drawer .clips"):
        assert second.locator(selector).inner_text() == page.locator(selector).inner_text()
    assert second.locator("[data-set=errors-class][aria-current]").inner_text() == "theft"
