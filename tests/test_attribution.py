"""Attribution: the sentence that an answer rests on is found, its numbers are those of the calibrator, and a stop
changes nothing."""

import itertools
import shutil

import numpy as np
import pytest

from deepintuit import attribute, cli, config, worlds
from deepintuit.errors import ConfigError, ModelError, StoreError
from deepintuit.labels import NONE_LABEL, LabelSet
from deepintuit.reasoner import Calibrator, LocalReasoner, Opinion, Scores, attribution, inherited, opinion_of, parsed
from deepintuit.reasoner.distribution import likelihood_scores
from deepintuit.reasoner.task import Clip, Task
from deepintuit.runs import EXAMPLE, unnamed
from deepintuit.trace import parse
from deepintuit_analysis import Workbench
from deepintuit_analysis.index import answers, console
from deepintuit_analysis.report.attribution import carriers
from deepintuit_app import errors_view
from deepintuit_app.analysis import Choice, analysis, choose

LABELS = LabelSet.of("three", ["fall", "walk", "sit"])


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The shipped calibrator, and five of the clips that it was evaluated on as a run of their own."""
    bench = Workbench(worlds.example(tmp_path_factory.mktemp("attribution") / "workbench"))
    (bench.path / EXAMPLE).unlink()
    (shipped,) = [run for run in bench.runs("evaluate") if run.config.get("calibrator")]
    about = {"parent": shipped.parent, "name": "five", "dataset": shipped.about["dataset"]}
    with bench.start_run("evaluate", shipped.config, **about) as run:
        rows = shipped.read("predictions").query("method == 'label_likelihood' and control == 'none'")
        rows = rows.sort_values("clip_id").head(5)
        traces = {row["trace_id"]: row for row in shipped.table("traces").to_pylist()}
        run.append("traces", unnamed(traces[name] for name in rows["trace_id"]))
        ids = run.read("traces").set_index("clip_id")["trace_id"]
        rows = rows.assign(run_id=run.id, trace_id=[ids[clip] for clip in rows["clip_id"]])
        run.append("predictions", [row.dropna().to_dict() for _, row in rows.iterrows()])
        run.note(settings=shipped.about["settings"])
        run.finish({})
    return bench, run


@pytest.fixture(scope="module")
def attributed(scored):
    bench, run = scored
    return attribute.run(bench, config.Config(), source=run.id, progress=False)


def test_the_planted_sentence_has_the_largest_effect(monkeypatch):
    def planted(_vlm, _task, clips, opinions, _batch) -> Scores:
        assert len(clips) == len(opinions)
        heard = [
            [2.0 * ("glass breaks" in one.rationale), 0.5 * ("It is day" in one.rationale), 0.0] for one in opinions
        ]
        return Scores(np.array(heard), np.zeros(len(opinions)))

    monkeypatch.setattr(attribution, "likelihood_scores", planted)

    class Known:
        labels, vlm = LABELS, None

        def temperatures(self, traces):
            return np.full(len(traces), 0.5)

    clip = Clip("c", "", None, 1, 1, None)
    said = ["It is day.", "A dog is seen at 1.5 s.", "The glass breaks.", "So it ends."]
    for order in itertools.permutations(said):
        trace = parse(f"<think> {' '.join(order)} </think><answer> walk </answer>", "think-answer", LABELS)
        rows = attribution.attributions(Known(), Known(), clip, None, trace)
        assert [row["text"] for row in rows] == [*order, "walk"] and {row["answer"] for row in rows} == {"fall"}
        effects = {row["text"]: row["effect"] for row in rows}
        whole, lost, day = (
            np.exp(z) / np.exp(z).sum() for z in (np.array(z) for z in ([4, 1, 0], [0, 1, 0], [4, 0, 0]))
        )
        assert max(effects, key=effects.get) == "The glass breaks."
        assert effects["The glass breaks."] == pytest.approx(whole[0] - lost[0])
        assert effects["It is day."] == pytest.approx(whole[0] - day[0]) and effects["It is day."] < 0
        assert effects["So it ends."] == effects["walk"] == 0
        changed = {row["text"] for row in rows if row["answer_without"] != "fall"}
        assert changed == {"The glass breaks."}


@pytest.mark.parametrize(
    ("text", "grammar", "left"),
    [
        ("<think>One. Two.</think><answer>sit</answer>", "think-answer", ["Two.", "One.", NONE_LABEL]),
        (
            "<observation> One.\nTwo.\n</observation><think> Three </think><answer>sit</answer>",
            "observation-think-answer",
            [" Two.\n\n Three ", " One.\n\n Three ", " One.\nTwo.\n\n ", NONE_LABEL],
        ),
        (r"\boxed{sit}<think>日本語。 Two!</think>\boxed{walk}", "answer-think-answer", [None, "", NONE_LABEL]),
        ("<think>One. Two.", "think-answer", ["<think>Two.", "<think>One. "]),
        ("no marks. at all", "think-answer", ["at all", "no marks. "]),
        ("", "think-answer", []),
    ],
)
def test_a_sentence_is_left_out_and_nothing_else(text, grammar, left):
    trace = parse(text, grammar, LABELS)
    found = [attribution.without(trace, one) for one in attribution.sentences_of(text, grammar)]
    whole = opinion_of(trace)
    expected = [
        None if one is None else whole._replace(conclusion=one) if one == NONE_LABEL else whole._replace(rationale=one)
        for one in left
    ]
    assert found == expected


def test_effects_are_those_of_the_calibrator_asked_one_by_one(scored, attributed):
    bench, run = scored
    stored = run.read("predictions").set_index("clip_id")
    rows = attributed.read("attributions")
    assert (
        set(rows["clip_id"]) == set(stored.index) and attributed.summary["apart"] < 1e-3
    )  # shipped weights are rounded
    sets = config.Config().replace(clips={"dataset": run.about["dataset"]}, model={"share_prefix": False})
    settings, _ = inherited(bench, sets, run.id, run.config["calibrator"])
    task, plain = Task(bench.path, settings), Calibrator.load(bench, settings, run.config["calibrator"])
    assert not plain.vlm.shares_prefix
    [[clip, encoded]] = LocalReasoner(plain.vlm, task).encode(task.unlabelled([stored.index[0]]))
    [trace] = parsed(task, run.read("traces").query("clip_id == @clip.clip_id"))
    mine = rows[rows["clip_id"] == clip.clip_id].sort_values("sentence")
    answer, heat = stored.loc[clip.clip_id], plain.temperatures([trace])
    k = list(answer["labels"]).index(answer["predicted"])
    [whole] = likelihood_scores(plain.vlm, task, [(clip, encoded)], [trace], 1).probs(heat)
    np.testing.assert_allclose(mine["probability"], whole[k], atol=1e-5)
    assert set(mine["answer"]) == {answer["predicted"]}
    for row in mine.itertuples():
        assert trace.text[row.begins : row.ends].strip() == row.text
        first, last = trace.spans["think"]
        rationale = trace.text[first : row.begins] + trace.text[row.ends : last]
        said = (
            Opinion(NONE_LABEL, opinion_of(trace).rationale)
            if row.segment == "answer"
            else Opinion(trace.label, rationale)
        )
        [alone] = likelihood_scores(plain.vlm, task, [(clip, encoded)], [said], 1).probs(heat)
        assert row.effect == pytest.approx(whole[k] - alone[k], abs=1e-5)
        assert row.answer_without == task.labels.labels[int(alone.argmax())]


def test_a_stopped_run_goes_on_where_it_was(scored, attributed, monkeypatch):
    bench, run = scored
    own = Workbench(bench.path.with_name("stopped"))
    shutil.copytree(bench.path, own.path, ignore=shutil.ignore_patterns("attribute-*", "index*"))
    real, asked = attribute.attributions, []

    def stops(*given):
        asked.append(given[2].clip_id)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(attribute, "attributions", stops)
    with pytest.raises(KeyboardInterrupt):
        attribute.run(own, config.Config(), source=run.id, progress=False)
    again = attribute.run(own, config.Config(), source=run.id, progress=False)
    assert again.id == attributed.id and len(asked) == 6 and asked[3] == asked[4]
    seeded = attribute.run(own, config.Config().replace(seed=7), source=run.id, progress=False)
    assert seeded.id == again.id, "nothing here hangs on chance"
    keys = ["clip_id", "sentence"]
    mine, yours = (one.read("attributions").sort_values(keys, ignore_index=True) for one in (again, attributed))
    assert mine[[*keys, "text", "answer_without"]].equals(yours[[*keys, "text", "answer_without"]])
    np.testing.assert_allclose(mine["effect"], yours["effect"], atol=1e-6)


def test_what_cannot_be_attributed_is_refused(scored, attributed, capsys):
    bench, run = scored
    for other in ("coldstart", "teach"):
        (source,) = bench.runs(other)[:1]
        assert cli.main(["attribute", source.id, "--workbench", str(bench.path)]) == 2
        assert "has no calibrator" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="video.frames .* for the answers of"):
        attribute.run(bench, config.Config().replace(video={"frames": 3}), source=run.id, progress=False)
    with bench.start_run(
        "evaluate", run.config, parent=run.parent, name="other", dataset=run.about["dataset"]
    ) as other:
        with pytest.raises(StoreError, match="is not finished"):
            attribute.run(bench, config.Config(), source=other.id, progress=False)
        other.append("traces", unnamed(run.table("traces").to_pylist()))
        rows = run.read("predictions").drop(columns=["run_id"])
        ids = other.read("traces").set_index("clip_id")["trace_id"]
        rows["probs"] = [list(np.roll(probs, 1)) for probs in rows["probs"]]
        rows["trace_id"] = [ids[clip] for clip in rows["clip_id"]]
        other.append("predictions", [row.dropna().to_dict() for _, row in rows.iterrows()])
        other.note(settings=run.about["settings"])
        other.finish({})
    with pytest.raises(ModelError, match="its weights, the clip or the labels are not what they were"):
        attribute.run(bench, config.Config(), source=other.id, progress=False)


def test_attributions_are_a_table_of_sql(scored, attributed):
    bench, run = scored
    bench.refresh()
    asked = console.ask(bench, console.EXAMPLES["Which kinds of sentences carry the answers?"])
    assert {row[0] for row in asked.rows} == {"think", "answer"} and asked.names[1] == "sentences"
    joined = (
        "SELECT count(*) AS n, count(DISTINCT traces.run_id) AS runs FROM attributions JOIN traces USING (trace_id)"
    )
    assert bench.query(joined).values.tolist() == [[attributed.summary["sentences"], 1]]


def test_the_errors_page_sums_effects_by_part_and_by_word(scored, attributed, monkeypatch):
    bench, run = scored
    bench.refresh()
    monkeypatch.setattr("deepintuit_analysis.report.attribution._LEAST_CLIPS", 3)

    def found(method: str, system: str = run.id):
        choice, _ = choose(answers.sources(bench), Choice("", "test", system, method, "", ""), [])
        return analysis(bench, choice)

    mine, rows = found("label_likelihood"), attributed.read("attributions")
    segments, words, among = carriers(mine.attributions, mine.mine)
    assert [row.kind for row in segments] == ["think", "answer"] and among >= len(words) > 2
    largest = rows.loc[rows.groupby("clip_id")["effect"].idxmax()]
    for row in [*segments, *words]:
        heard = rows["text"].str.contains(rf"(?i)\b{row.kind}\b")
        inside = rows["segment"] == row.kind if row in segments else heard
        assert (row.sentences, row.clips) == (inside.sum(), rows[inside]["clip_id"].nunique()) and row.clips >= 3
        assert row.effect.value == pytest.approx(rows[inside]["effect"].mean())
        assert row.effect.low <= row.effect.value <= row.effect.high
        assert row.largest.value == pytest.approx(inside[largest.index].mean())
        assert row.changes == (rows[inside]["answer_without"] != rows[inside]["answer"]).sum()
    assert [row.effect.value for row in words] == sorted((row.effect.value for row in words), reverse=True)
    page = errors_view.attribution(mine)
    assert "Answer: the conclusion" in page and f"run={run.id}&amp;text={words[0].kind}" in page
    assert f"deepintuit attribute {run.parent}" not in page and "<pre>" not in page
    (shipped,) = [
        one for one in bench.runs("evaluate") if one.config.get("calibrator") and one.about["name"] != "five"
    ][:1]
    assert f"<pre>deepintuit attribute {shipped.id}</pre>" in errors_view.attribution(
        found("label_likelihood", shipped.id)
    )
    assert "Only a calibrator" in errors_view.attribution(found("raw", shipped.id))
