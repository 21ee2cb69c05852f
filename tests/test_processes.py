"""Seeing and reasoning apart, and quick answers, on real tokens: judges, advantages by token, the gate on one cache."""

import json

import numpy as np
import pytest
import torch
from embedded import Bench
from hypothesis import given
from hypothesis import strategies as st

from deepintuit import calibrate, coldstart, evaluate, grpo, teach
from deepintuit.errors import ConfigError, DataError, TeachError
from deepintuit.grpo.round import Group, Scorer
from deepintuit.grpo.trainer import Trainer
from deepintuit.judges import Question, build_judge
from deepintuit.reasoner import LocalReasoner, Task, fitted_ways, gate_for, live, parsed
from deepintuit.reasoner.replay import TraceDone
from deepintuit.trace import FALLBACK, GRAMMARS, Segment, parse, render
from deepintuit.vlm import VLM, Gate, Sample, character_offsets
from deepintuit_homecam import facts_of, teacher

pytest_plugins = ["embedded"]

SEEING = ("prompt.grammar=observation-think-answer", "judge.source=facts")
QUICK = ("prompt.grammar=answer-think-answer", "sampling.max_tokens=64")


@pytest.fixture(scope="module")
def vlm(bench, cold):
    settings = bench.settings()
    return VLM.load(settings.model, settings.video, checkpoint=cold.checkpoint, cache=bench.workbench.cache)


def judge_of(bench: Bench, *sets: str):
    settings = bench.settings(*SEEING, *sets)
    return build_judge(settings, bench.manifest.labels, bench.manifest, bench.workbench.cache)


def clip_and_facts(bench: Bench, split: str = "grpo"):
    row = bench.manifest.usable(split).iloc[0]
    return row, facts_of(row["notes"]["facts"])


# Tokens and characters


@given(st.text(max_size=40))
def test_offsets_of_tokens_cover_the_text_without_a_gap(vlm, text):
    ids = vlm.tokenizer(text, add_special_tokens=False)["input_ids"]
    offsets, written = character_offsets(vlm.tokenizer, ids), vlm.tokenizer.decode(ids, skip_special_tokens=True)
    touched = np.zeros(len(written), bool)
    for start, end in offsets:
        touched[start:end] = True
    assert touched.all() and (np.diff(offsets[:, 1]) >= 0).all()


# Judges


def test_the_house_says_which_observations_suffice_and_what_was_misread(bench):
    row, facts = clip_and_facts(bench)
    judge = judge_of(bench)
    true = teacher.observation(facts)
    wrong = true.replace(facts.light, "day" if facts.light == "night" else "night")
    verdicts = judge([
        Question(row["clip_id"], row["label"], true),
        Question(row["clip_id"], row["label"], wrong),
        Question(row["clip_id"], row["label"], "Something happens."),
    ])  # fmt: skip
    assert verdicts[0].sufficient and "wrong" not in verdicts[0].evidence
    assert "wrong or missing: light" in verdicts[1].evidence
    assert not verdicts[2].sufficient and "no label" in verdicts[2].evidence


@pytest.mark.parametrize("number", range(30))
def test_a_faultless_observation_always_leads_to_the_true_label(bench, number):
    facts = facts_of(bench.manifest.frame.iloc[number]["notes"]["facts"])
    assert teacher.label_of_observation(teacher.observation(facts)) == facts.label
    assert teacher.misread(teacher.observation(facts), facts) == []


def test_clips_without_known_facts_have_no_such_judge(bench):
    judge = judge_of(bench)
    with pytest.raises(DataError, match="judge.source to endpoint or answerer"):
        judge([Question("0123456789abcdef", "theft", "A box.")])


def test_a_judge_at_no_address_is_refused_by_the_name_of_its_own_setting(bench):
    with pytest.raises(TeachError, match=r"judge\.base_url = ''"):
        judge_of(bench, "judge.source=endpoint")


def test_an_answerer_reads_the_text_alone_and_answers_once(bench, tmp_path):
    settings = bench.settings(*SEEING, "judge.source=answerer")
    questions = [Question("a", label, text) for label in settings_labels(bench) for text in ("One.", "Two.")]
    verdicts = build_judge(settings, bench.manifest.labels, bench.manifest, tmp_path)(questions)
    answers = {q.observation: v.evidence for q, v in zip(questions, verdicts)}
    assert all(v.evidence == answers[q.observation] for q, v in zip(questions, verdicts))  # whatever the true label is
    assert sum(v.sufficient for v in verdicts) == 2  # each text has one answer, right for one of the labels
    kept = list((tmp_path / "judge").rglob("*.json"))
    assert len(kept) == 2
    kept[0].write_text("{")  # a damaged verdict is asked for again
    assert build_judge(settings, bench.manifest.labels, bench.manifest, tmp_path)(questions) == verdicts
    assert json.loads(kept[0].read_text()) in bench.manifest.labels.labels


def settings_labels(bench: Bench):
    return bench.manifest.labels.labels


def test_teaching_with_a_judge_counts_what_each_of_the_three_steps_dropped(bench, tmp_path):
    mine = bench.copy(tmp_path / "wb")
    plain = teach.run(mine.workbench, mine.settings(*SEEING, "teach.judged=false"), progress=False)
    judged = teach.run(mine.workbench, mine.settings(*SEEING), progress=False)
    assert "insufficient" not in plain.summary["dropped"]
    dropped = judged.summary["dropped"].get("insufficient", 0)
    assert plain.summary["kept"] - judged.summary["kept"] == dropped
    scores = judged.read("scores")
    verdicts = scores[scores["name"] == "sufficient"]
    assert len(verdicts) == plain.summary["kept"] and (verdicts["value"] == 0).sum() == dropped
    trace = parse(judged.read("traces")["text"].iloc[0], "observation-think-answer", mine.manifest.labels)
    assert trace.ok and "Frame 1:" in trace.segment("observation") and "Alike?" in trace.segment("think")


# PA-GRPO


def trainer_of(bench: Bench, start, name: str, *sets: str) -> Trainer:
    config = bench.settings("grpo.learning_rate=1e-4", *SEEING, *sets)
    run = bench.workbench.start_run("grpo", {**config.to_dict(), "test": name}, parent=start.id, name=name)
    vlm = VLM.load(config.model, config.video, checkpoint=start.checkpoint, cache=bench.workbench.cache, trainable=True)
    reasoner = LocalReasoner(vlm, Task(bench.path, config), seed=0)
    clips = [clip for clip, _ in reasoner.encode(reasoner.task.clips("grpo"))]
    judge = None if config.grpo.process == "off" else judge_of(bench)
    return Trainer(Scorer(reasoner, config, judge), clips, config, run, progress=False)


def written(trainer: Trainer, texts: list[str]) -> Group:
    """A group of given traces, scored and judged as a sampled one is."""
    clip, encoded = trainer.reasoner.encode(trainer.clips[:1])[0]
    samples = []
    for text in texts:
        ids = trainer.vlm.target_ids(text)
        samples.append(Sample(text, ids, [-0.1] * len(ids), False, 1.0))
    trainer.reasoner.groups = lambda *_, **__: [(clip, encoded, samples)]
    return trainer.scorer.score(trainer._sample(0, [clip], 0))[0]


@pytest.fixture
def four_texts(bench):
    """Of one clip: all right; seen rightly, concluded wrongly; seen wrongly, concluded rightly; no observation."""
    row, facts = clip_and_facts(bench)
    other = next(label for label in bench.manifest.labels if label != row["label"])
    seen, blind = teacher.observation(facts), "Nothing can be seen."
    return [
        render("observation-think-answer", observation=seen, think=f"So {row['label']}.", answer=row["label"]),
        render("observation-think-answer", observation=seen, think=f"So {row['label']}.", answer=other),
        render("observation-think-answer", observation=blind, think="A guess.", answer=row["label"]),
        f"<think>So {row['label']}.</think><answer>{row['label']}</answer>",
    ]


def test_each_token_takes_the_advantage_of_its_own_process(bench, cold, four_texts):
    trainer = trainer_of(bench, cold, "separate")
    group = written(trainer, four_texts)
    assert [s.perception for s in group.scores] == pytest.approx([2, 2, 1, 0])
    assert [s.reasoning for s in group.scores] == pytest.approx([2, 1, 2, 1])
    spread = np.std([2, 2, 1, 0], ddof=1)
    seeing = (np.array([2, 2, 1, 0]) - 1.25) / spread
    reasoning = np.array([0.5, -0.5, 0.5, -0.5]) / np.std([2, 1, 2, 1], ddof=1)
    for number, (sample, advantage_T) in enumerate(zip(group.samples, trainer.scorer.advantages(group))):
        text, border = sample.text, sample.text.find("</observation>") + len("</observation>")
        offsets = character_offsets(trainer.vlm.tokenizer, sample.token_ids)
        assert len(advantage_T) == len(sample.token_ids)
        for (start, end), advantage in zip(offsets, advantage_T):
            # "><" is one token across the border: a tie, which the earlier segment takes.
            in_seeing = "</observation>" in text and end > start and (start + end) / 2 <= border
            assert advantage == pytest.approx((seeing if in_seeing else reasoning)[number], abs=1e-4), text[start:end]
    unparsed = trainer.scorer.advantages(group)[3]
    assert (unparsed == unparsed[0]).all()  # all of it is reasoning's


def test_token_by_token_a_group_that_agrees_on_the_answer_pushes_what_was_seen_alone(bench, cold):
    """One sees and one does not, both answer rightly: by hand, perception [2, 1] and reasoning [2, 2]."""
    row, facts = clip_and_facts(bench)
    trainer = trainer_of(bench, cold, "agreeing")
    written_by = [(teacher.observation(facts), f"So {row['label']}."), ("A cat.", "Fine.")]
    group = written(trainer, [
        render("observation-think-answer", observation=seen, think=think, answer=row["label"])
        for seen, think in written_by
    ])  # fmt: skip
    assert [(s.perception, s.reasoning) for s in group.scores] == [(2, 2), (1, 2)]
    down = pytest.approx(-0.5 / 0.5**0.5, abs=1e-5)  # half below the mean, over a spread of the square root of a half
    tokens = [trainer.vlm.tokenizer.decode([number]) for number in group.samples[1].token_ids]
    told = list(zip(tokens, trainer.scorer.advantages(group)[1].tolist()))
    # fmt: off
    assert told[:27] == [
        ("<", down), ("o", down), ("b", down), ("s", down), ("er", down), ("v", down), ("a", down), ("t", down),
        ("i", down), ("on", down), (">", down), ("A", down), (" c", down), ("a", down), ("t", down), (".", down),
        ("<", down), ("/", down), ("o", down), ("b", down), ("s", down), ("er", down), ("v", down), ("a", down),
        ("t", down), ("i", down), ("on", down),
    ]
    assert told[27:37] == [
        ("><", down),  # one token over the border: a tie, which the earlier segment takes
        ("think", 0), (">", 0), ("F", 0), ("ine", 0), (".", 0), ("<", 0), ("/", 0), ("think", 0), ("><", 0),
    ]
    # fmt: on
    assert {advantage for _, advantage in told[37:]} == {0}  # the answer and the end: both were right, nothing to learn


def test_a_quick_answer_before_an_observation_is_reasonings_and_the_gate_ends_it_there(bench, cold):
    """All three in one. Of two traces, one sees better, and the other answers sooner."""
    grammar = "answer-observation-think-answer"
    row, facts = clip_and_facts(bench)
    trainer = trainer_of(bench, cold, "all", f"prompt.grammar={grammar}")
    seen = teacher.observation(facts)
    group = written(trainer, [
        render(grammar, quick=quick, observation=observed, think="So.", answer=row["label"])
        for quick, observed in ((FALLBACK, seen), (row["label"], "A cat."))
    ])  # fmt: skip
    assert [s.perception for s in group.scores] == [2, 1]
    assert [s.reasoning for s in group.scores] == pytest.approx([1.1 + 1.0 + 0.3, 0.9 + 1.1 + 1.0])
    up = 0.5 / 0.5**0.5
    for sign, perception_T, advantage_T in zip((1, -1), group.perception_T, trainer.scorer.advantages(group)):
        assert perception_T[0] == 0 and advantage_T == pytest.approx(
            np.where(perception_T, sign * up, -sign * up), abs=1e-5
        )
    ids, perception_T = group.samples[1].token_ids, group.perception_T[1]
    told = trainer.vlm.tokenizer.decode([number for number, mark in zip(ids, perception_T) if mark])
    assert told.startswith("<observation>A cat.</observation>")
    gate = Gate(GRAMMARS[grammar].quick)
    assert gate.read(ids, np.full(len(ids), -0.5), trainer.vlm.tokenizer) == (
        rf"\boxed{{{row['label']}}}", pytest.approx(np.exp(-0.5)),
    )  # fmt: skip


def test_summed_and_switched_off_give_every_token_of_a_trace_one_advantage(bench, cold, four_texts):
    for how, rewards in (("summed", [4, 3, 3, 1]), ("off", [2, 1, 2, 1])):
        trainer = trainer_of(bench, cold, how, f"grpo.process={how}")
        group = written(trainer, four_texts)
        assert [s.value for s in group.scores] == pytest.approx(rewards)
        for advantage_T in trainer.scorer.advantages(group):
            assert (advantage_T == advantage_T[0]).all()


def test_the_loss_takes_the_advantages_of_tokens(bench, cold, four_texts):
    trainer = trainer_of(bench, cold, "loss")
    group = written(trainer, four_texts)
    batch = trainer._generate_and_score_completions([{"clip": 0} for _ in four_texts])
    assert batch["advantages"].shape == batch["completion_ids"].shape
    for row, advantage_T in zip(batch["advantages"], trainer.scorer.advantages(group)):
        assert row[: len(advantage_T)].numpy() == pytest.approx(advantage_T, abs=1e-6)
        assert not row[len(advantage_T) :].any()
    scores = trainer.run_.read("scores")
    kept = {name: part["value"].tolist() for name, part in scores.groupby("name")}
    assert sorted(kept["sufficient"]) == [0, 0, 1, 1]
    assert sorted(kept["mismatch"]) == [0, 0, 1]  # who names no label argues for no other
    assert len(kept["advantage_perception"]) == 3  # the unparsed trace has none


def test_a_run_with_processes_apart_logs_both(bench, cold, tmp_path):
    mine = bench.copy(tmp_path / "wb")
    text = "<observation> It is day. </observation><think> So theft. </think><answer> theft </answer>"
    start = coldstart.run(
        mine.workbench,
        mine.settings(*SEEING, "coldstart.epochs=10", "coldstart.learning_rate=2e-3"),
        teacher=mine.teach(lambda clip, sample: text, each=4, name="seen").id,
        progress=False,
    )
    settings = mine.settings(*SEEING, "grpo.max_steps=1", "grpo.max_tokens=48")
    run = grpo.run(mine.workbench, settings, start=start.id, progress=False)
    names = set(run.read("steps")["name"])
    settings = mine.settings(*SEEING, "sampling.max_tokens=48")
    scored = evaluate.run(mine.workbench, settings, reasoner=run.id, progress=False)
    written = scored.read("traces")
    noted = scored.read("scores").groupby("name")["trace_id"].apply(set)
    assert noted["sufficient"] == noted["mismatch"] == set(written[written["reason"].isna()]["trace_id"])
    means = {"perception_mean", "reasoning_mean", "sufficient_mean", "mismatch_mean"}
    assert means | {"zero_variance_perception", "zero_variance_reasoning"} <= names


# Quick answers


@pytest.fixture(scope="module")
def quick_start(bench):
    """A model that writes quick answers: half of its targets put off."""

    def write(clip, sample):
        first = FALLBACK if sample % 2 else "theft"
        return render("answer-think-answer", quick=f" {first} ", think=" It is day. ", answer=" theft ")

    return coldstart.run(
        bench.workbench,
        bench.settings(*QUICK, "coldstart.epochs=14", "coldstart.learning_rate=2e-3"),
        teacher=bench.teach(write, each=6, name="quick").id,
        name="quick",
        progress=False,
    )


def sampled(bench: Bench, start, gate_sets=(), temperature=1.0, calibrator=None):
    settings = bench.settings(*QUICK, *gate_sets)
    task = Task(bench.path, settings)
    vlm = VLM.load(settings.model, settings.video, checkpoint=start.checkpoint, cache=bench.workbench.cache)
    local = LocalReasoner(vlm, task, 0, gate_for(task, settings.gate, calibrator))
    groups = local.groups(task.clips("test"), range(3), temperature=temperature, max_tokens=64)
    return task, [sample for *_, samples in groups for sample in samples]


def test_a_gate_that_never_ends_anything_only_measures(bench, quick_start):
    task, watched = sampled(bench, quick_start)
    settings = bench.settings(*QUICK)
    vlm = VLM.load(settings.model, settings.video, checkpoint=quick_start.checkpoint, cache=bench.workbench.cache)
    groups = LocalReasoner(vlm, task, 0).groups(task.clips("test"), range(3), temperature=1.0, max_tokens=64)
    plain = [sample for *_, samples in groups for sample in samples]
    assert [s.token_ids for s in watched] == [s.token_ids for s in plain]
    assert all(s.thought for s in watched if s.quick_confidence is not None)
    assert {s.quick_confidence for s in plain} == {None}
    assert any(s.quick_confidence == -1 for s in watched) and any(0 < (s.quick_confidence or -1) <= 1 for s in watched)


def test_two_steps_on_one_cache_write_what_one_pass_writes_and_fewer_tokens(bench, quick_start):
    task, whole = sampled(bench, quick_start)
    confidences = sorted(s.quick_confidence for s in whole if (s.quick_confidence or -1) >= 0)
    threshold = confidences[len(confidences) // 2]
    _, gated = sampled(bench, quick_start, ("gate.by=confidence", f"gate.threshold={threshold}"))
    ended = [number for number, sample in enumerate(gated) if sample.thought is False]
    assert 0 < len(ended) < len(gated)
    for number, (long, short) in enumerate(zip(whole, gated)):
        assert short.token_ids == long.token_ids[: len(short.token_ids)]
        assert (number in ended) == ((long.quick_confidence or -1) >= threshold)
        if number in ended:
            assert not short.truncated and task.parse(short.text, False, thought=False).ok
        else:
            assert short.token_ids == long.token_ids
    assert sum(len(s.token_ids) for s in gated) < sum(len(s.token_ids) for s in whole)


def test_a_quick_answer_ends_with_its_mark_also_where_the_token_that_closed_it_says_more(bench, vlm):
    """The tokenizer writes the end of one mark and the begin of the next as one token, "><"."""
    task = Task(bench.path, bench.settings())
    thought = Gate(Segment("think", "<think>", "</think>", "answer"), threshold=0.0)
    local = LocalReasoner(vlm, task, 0, lambda known: thought)
    groups = local.groups(task.clips("test")[:4], [0], temperature=0.0, max_tokens=24)
    ended = [sample for *_, (sample,) in groups if sample.thought is False]
    assert ended and all(sample.text.endswith("</think>") for sample in ended)
    assert {vlm.tokenizer.decode(sample.token_ids).removeprefix(sample.text) for sample in ended} == {"<"}


def test_a_gated_evaluation_stores_whether_it_thought_and_reads_it_back(bench, quick_start, tmp_path):
    mine = bench.copy(tmp_path / "wb")
    settings = mine.settings(*QUICK, "gate.by=calibrated", "calibrate.epochs=1")
    judge = calibrate.run(mine.workbench, settings, reasoner=quick_start.id, progress=False)
    # Quick forms beside the whole traces: twice two sampled ones and a greedy one, of every clip.
    assert judge.summary["rows"] == 6 * judge.summary["clips"]
    fitted = fitted_ways(judge)
    assert 0 < fitted["quick"]["n"] != fitted["label_likelihood"]["n"] and fitted["quick"]["temperature"] > 0
    found = {}
    for by, threshold in (("confidence", 0.0), ("calibrated", 0.0), ("calibrated", 1.0), ("calibrated", None)):
        if threshold is None:  # the middle of what the calibrator said of quick answers, when every trace thought on
            said = sorted(found["calibrated", 1.0].dropna())
            threshold = said[len(said) // 2]
        settings = mine.settings(*QUICK, f"gate.by={by}", f"gate.threshold={threshold}", "evaluate.controls=false")
        run = evaluate.run(mine.workbench, settings, reasoner=quick_start.id, calibrator=judge.id, progress=False)
        traces = run.read("traces")
        answered = traces["quick_confidence"].fillna(-1) >= 0
        assert answered.any()
        sure = found[by, threshold] = traces.set_index("clip_id")["quick_probability"]
        assert (sure.notna().to_numpy() == (answered & (by == "calibrated")).to_numpy()).all()
        decides = traces["quick_probability" if by == "calibrated" else "quick_confidence"]
        assert (traces.loc[answered, "thought"] == (decides[answered] < threshold)).all()
        assert traces.loc[~answered, "thought"].all()
        task = Task(mine.path, settings)
        for trace, provisional in zip(parsed(task, traces), traces["provisional"]):
            assert trace.provisional == provisional
        answers = run.read("predictions").query("method == 'label_likelihood'").set_index("clip_id")
        assert len(answers) == len(traces)
        ended = set(traces.loc[traces["thought"] == False, "clip_id"])  # noqa: E712 - null is neither
        for clip_id, temperature in answers["temperature"].items():  # each of its own kind
            assert temperature == fitted["quick" if clip_id in ended else "label_likelihood"]["temperature"]


def test_a_calibrator_that_knows_no_quick_answer_is_no_gate(bench, quick_start, tmp_path):
    mine = bench.copy(tmp_path / "wb")
    judge = calibrate.run(
        mine.workbench, mine.settings(*QUICK, "calibrate.epochs=1"), reasoner=quick_start.id, progress=False
    )
    assert "quick" not in fitted_ways(judge)
    settings = mine.settings(*QUICK, "gate.by=calibrated")
    with pytest.raises(ConfigError, match="that knows quick answers"):
        evaluate.run(mine.workbench, settings, reasoner=quick_start.id, calibrator=judge.id, progress=False)


def test_a_gate_without_a_quick_answer_or_a_calibrator_is_refused(bench):
    settings = bench.settings("gate.by=confidence")
    with pytest.raises(ConfigError, match="no quick answer"):
        gate_for(Task(bench.path, settings), settings.gate)
    settings = bench.settings(*QUICK, "gate.by=calibrated")
    with pytest.raises(ConfigError, match="without a calibrator"):
        gate_for(Task(bench.path, settings), settings.gate)


@pytest.mark.parametrize(
    "text, confidence",
    [
        (r"\boxed{theft}", pytest.approx(np.exp(-0.5))),
        (r" \boxed{ theft }", pytest.approx(np.exp(-0.5))),
        (rf"\boxed{{{FALLBACK}}}", -1.0),
        (r"\boxed{}", -1.0),
        ("<think>first", -1.0),
        (r"\boxed{the", None),
        (r"\box", None),
        ("", None),
    ],
)
def test_confidence_is_the_mean_over_the_tokens_inside_the_first_box(vlm, text, confidence):
    ids = vlm.tokenizer(text, add_special_tokens=False)["input_ids"]
    inside = (character_offsets(vlm.tokenizer, ids)[:, 1] > text.find("{") + 1) & (
        character_offsets(vlm.tokenizer, ids)[:, 0] < max(text.find("}"), 0)
    )
    gate = Gate(GRAMMARS["answer-think-answer"].quick)
    found = gate.read(ids, np.where(inside, -0.5, -9.0), vlm.tokenizer)
    assert (found[1] if found else None) == confidence


def test_grpo_on_quick_answers_earns_by_both(bench, quick_start, tmp_path):
    mine = bench.copy(tmp_path / "wb")
    settings = mine.settings(*QUICK, "grpo.max_steps=1", "grpo.max_tokens=64")
    run = grpo.run(mine.workbench, settings, start=quick_start.id, progress=False)
    steps = run.read("steps").set_index("name")["value"]
    assert 0 <= steps["quick_mean"] <= 1 and 0 <= steps["put_off_mean"] <= 1
    scores = run.read("scores")
    value = scores.pivot(index="trace_id", columns="name", values="value")
    hand = 0.9 * value["quick"] + 1.1 * value["accuracy"] + value["format"] + 0.3 * value["put_off"] * value["accuracy"]
    assert value["reward"].to_numpy() == pytest.approx(hand.to_numpy())


def test_text_alone_is_scored_as_the_model_scores_it_without_our_positions(vlm, bench):
    from deepintuit.vlm import label_logprobs

    prompts = ["It is day. Answer: theft, stray.", "Night."]
    together = label_logprobs(vlm, [None, None], prompts, bench.manifest.labels)
    for prompt, row in zip(prompts, together):
        ids = vlm.prompt_ids(None, prompt)
        for label, found in zip(bench.manifest.labels, row):
            target = vlm.target_ids(label)
            with torch.no_grad():
                logits = vlm.core(input_ids=torch.tensor([[*ids, *target]])).logits[0].float()
            logps = torch.log_softmax(logits, -1)[len(ids) - 1 : -1].gather(1, torch.tensor(target)[:, None])
            assert float(found) == pytest.approx(float(logps.sum()), abs=1e-4)


def test_grpo_may_start_from_the_model_as_it_is(bench, tmp_path):
    mine = bench.copy(tmp_path / "wb")
    settings = mine.settings(*QUICK, "grpo.max_steps=1", "grpo.max_tokens=4")
    run = grpo.run(mine.workbench, settings, start=None, progress=False)
    assert run.finished and run.parent is None and evaluate.name_of(mine.workbench, run.id) == "GRPO alone"


def test_a_live_trace_ends_at_a_quick_answer_that_is_sure_enough(bench, quick_start):
    models = live.Models(bench.workbench)
    clip = Task(bench.path, bench.settings(*QUICK)).clips("test")

    def written(number: int, **more) -> TraceDone:
        events = []
        ask = live.Ask(clip[number], quick_start.id, temperature=1.0, max_tokens=64, **more)
        live.reason(models, ask, events.append, lambda: False)
        return next(event for event in events if isinstance(event, TraceDone))

    whole = [written(number) for number in range(6)]
    sure = next(number for number, done in enumerate(whole) if (done.quick_confidence or -1) >= 0)
    short = written(sure, think_below=0.0)
    assert short.thought is False and whole[sure].text.startswith(short.text) and short.tokens < whole[sure].tokens
    assert short.reason is None and short.provisional == "theft"
