"""The grammars and their parser: every text is a trace or has a reason why not."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepintuit.errors import ConfigError, DataError
from deepintuit.labels import LabelSet
from deepintuit.mentions import mentions
from deepintuit.trace import (
    FALLBACK,
    GRAMMARS,
    Malformed,
    Reason,
    Trace,
    argued_label,
    grammar_named,
    mismatch,
    outer_spans,
    parse,
    pieces,
    render,
)

LABELS = LabelSet("home", ("normal", "abnormal", "abnormal at night"), {}, {"theft": "abnormal"})
GOOD = "<think>A man waits at 2 s.</think><answer>abnormal</answer>"
BOXED = r"\boxed{normal}<think>A cat {on} a mat.</think>\boxed{abnormal}"


def read(text, grammar="think-answer", **more):
    return parse(text, grammar, LABELS, **more)


def test_a_well_formed_text_is_a_trace_with_label_and_inner_spans():
    trace = read(GOOD)
    assert isinstance(trace, Trace) and trace.ok
    assert trace.label == trace.provisional == "abnormal"
    assert trace.segment("think") == "A man waits at 2 s."
    assert GOOD[slice(*trace.spans["answer"])] == trace.answer == "abnormal"


def test_a_line_break_inside_the_answer_is_no_fault():
    trace = read("<think>\nA man.\n</think>\n\n<answer>\nAbnormal.\n</answer>\n")
    assert trace.label == "abnormal" and trace.answer == "\nAbnormal.\n"


def test_labels_that_begin_alike_are_told_apart():
    assert read(GOOD.replace("abnormal", "abnormal at night")).label == "abnormal at night"
    assert read(GOOD.replace("abnormal", "abnormal at")).reason is Reason.UNKNOWN_LABEL


def test_an_alias_gives_its_label_and_keeps_the_answer_as_written():
    trace = read(GOOD.replace("abnormal", "Theft"))
    assert (trace.label, trace.answer) == ("abnormal", "Theft")


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", Reason.EMPTY),
        (" \n\t", Reason.EMPTY),
        ("normal", Reason.NO_ANSWER),
        ("<think>a</think>", Reason.NO_ANSWER),
        ("<think>a</think><answer> </answer>", Reason.NO_ANSWER),
        ("<answer>normal</answer>", Reason.MISSING_SEGMENT),
        ("<think>a</think><answer>dog</answer>", Reason.UNKNOWN_LABEL),
        ("<think>a</think><answer>none</answer>", Reason.UNKNOWN_LABEL),
        ("<think>a<answer>normal</answer>", Reason.UNCLOSED_TAG),
        ("<think>a</think><answer>normal", Reason.UNCLOSED_TAG),
        ("a</think><answer>normal</answer>", Reason.UNCLOSED_TAG),
        ("<think>a</think><answer>normal</answer></answer>", Reason.UNCLOSED_TAG),
        ("<think>a<answer>normal</answer></think>", Reason.NESTED_TAG),
        ("<think><think>a</think></think><answer>normal</answer>", Reason.NESTED_TAG),
        ("<think>a</answer></think><answer>normal</answer>", Reason.NESTED_TAG),
        ("<think>a</think><think>b</think><answer>normal</answer>", Reason.REPEATED_SEGMENT),
        ("<think>a</think><answer>normal</answer><answer>abnormal</answer>", Reason.REPEATED_SEGMENT),
        ("<answer>normal</answer><think>a</think>", Reason.WRONG_ORDER),
        ("Sure! <think>a</think><answer>normal</answer>", Reason.TEXT_OUTSIDE),
        ("<think>a</think>so<answer>normal</answer>", Reason.TEXT_OUTSIDE),
        ("<think>a</think><answer>normal</answer>.", Reason.TEXT_OUTSIDE),
        ("<think> </think><answer>normal</answer>", Reason.EMPTY_SEGMENT),
        ("<Think>a</Think><answer>normal</answer>", Reason.MISSING_SEGMENT),
    ],
)
def test_each_fault_has_its_reason_and_no_provisional_label(text, reason):
    trace = read(text)
    assert isinstance(trace, Malformed) and not trace.ok
    assert trace.reason is reason and trace.detail
    assert trace.provisional == "none"


@pytest.mark.parametrize("cut", range(len(GOOD)))
def test_a_text_cut_anywhere_is_truncated_when_sampling_says_so(cut):
    assert read(GOOD[:cut], truncated=True).reason is Reason.TRUNCATED
    assert read(GOOD[:cut]).reason is not Reason.TRUNCATED


def test_a_text_complete_at_the_token_limit_is_still_a_trace():
    assert read(GOOD, truncated=True).ok


@pytest.mark.parametrize(
    "text, label",
    [
        ("Sure: <answer>normal</answer>", "normal"),
        ("<think>a<answer>theft</answer>", "abnormal"),
        ("<answer>normal</answer><answer>abnormal</answer>", None),
        ("<answer>normal</answer><answer>normal</answer>", None),
        ("<answer>dog</answer>", None),
        ("<think>normal</think>", None),
        ("<answer>normal", None),
    ],
)
def test_a_malformed_text_keeps_its_one_answer_but_not_a_hedge(text, label):
    trace = read(text)
    assert not trace.ok and trace.label == label and trace.provisional == "none"


def test_the_quick_box_may_hold_the_fallback_and_the_final_one_may_not():
    hesitant = BOXED.replace("{normal}", "{ " + FALLBACK + " }")
    assert read(hesitant, "answer-think-answer").label == "abnormal"
    assert read(BOXED.replace("{abnormal}", "{" + FALLBACK + "}"), "answer-think-answer").reason is Reason.UNKNOWN_LABEL
    assert read(BOXED.replace("{normal}", "{dog}"), "answer-think-answer").reason is Reason.UNKNOWN_LABEL


def test_the_last_answer_is_the_label_and_braces_in_the_thought_are_text():
    trace = read(BOXED, "answer-think-answer")
    assert trace.label == "abnormal"
    assert (trace.segment("quick"), trace.segment("think")) == ("normal", "A cat {on} a mat.")


def test_a_quick_answer_alone_is_not_taken_for_the_final_one():
    trace = read(r"\boxed{normal}<think>a", "answer-think-answer", truncated=True)
    assert trace.reason is Reason.TRUNCATED and trace.label is None


def test_observation_comes_first_in_its_grammar():
    text = "<observation>A man.</observation>" + GOOD
    assert read(text, "observation-think-answer").segment("observation") == "A man."
    assert read(GOOD, "observation-think-answer").reason is Reason.MISSING_SEGMENT
    assert read(GOOD + "<observation>A man.</observation>", "observation-think-answer").reason is Reason.WRONG_ORDER


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", r"\boxed{", "}", "cat", " "])))
def test_a_text_is_cut_into_pieces_that_leave_out_marks_and_white_space_alone(parts):
    text = "".join(parts)
    for name, grammar in GRAMMARS.items():
        found, end = pieces(text, name), 0
        for piece in found:
            between = text[end : piece.start]
            for segment in grammar.segments:
                between = between.replace(segment.open, "").replace(segment.close, "")
            assert not between.strip() and piece.start <= piece.end
            end = piece.end
        assert sum(piece.open for piece in found) <= 1 and all(not piece.open for piece in found[:-1])
        if read(text, name).ok:
            assert [piece.name for piece in found] == [segment.name for segment in grammar.segments]


@pytest.mark.parametrize("name", GRAMMARS)
def test_every_character_but_white_space_lies_in_the_outer_span_of_a_segment(name):
    grammar = GRAMMARS[name]
    text = "\n".join(
        part.open + ("normal" if part.role == "answer" else "A cat.") + part.close for part in grammar.segments
    )
    trace = read(text, name)
    assert "".join(text[slice(*span)] for span in outer_spans(trace).values()) == text.replace("\n", "")


def test_an_unknown_grammar_offers_the_nearest():
    with pytest.raises(ConfigError, match="Nearest: 'think-answer'"):
        grammar_named("think-anwser")


# ---- laws that hold for any text

PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<observation>",
    "</observation>",
    r"\boxed{",
    "}",
    "normal",
    "abnormal",
    " ",
    "\n",
    "a cat",
    FALLBACK,
    "<",
    ">",
    "\ud800",
]
ANY_TEXT = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=14).map("".join))


@given(ANY_TEXT, st.sampled_from(sorted(GRAMMARS)), st.booleans())
def test_parsing_never_raises_and_what_it_calls_a_trace_holds_together(text, name, truncated):
    trace = read(text, name, truncated=truncated)
    assert trace.provisional in (*LABELS, "none") and trace.ok == isinstance(trace, Trace)
    if trace.ok:
        assert list(trace.spans) == [segment.name for segment in GRAMMARS[name].segments]
        assert trace.label == LABELS.resolve(trace.answer) == trace.provisional
        inside = [trace.segment(part) for part in trace.spans]
        assert all(part.strip() and "<think>" not in part and "</think>" not in part for part in inside)
        again = "".join(s.open + trace.segment(s.name) + s.close for s in GRAMMARS[name].segments)
        assert "".join(again.split()) == "".join(text.split())
    else:
        assert trace.reason in Reason and trace.detail


PROSE = st.text(st.characters(exclude_characters="<>{}\\", exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(st.data(), st.sampled_from(sorted(GRAMMARS)))
def test_what_is_rendered_parses_back_unchanged(data, name):
    segments = {
        segment.name: data.draw(st.sampled_from(LABELS.labels) if segment.role == "answer" else PROSE)
        for segment in GRAMMARS[name].segments
    }
    trace = read(render(name, **segments), name)
    assert trace.ok and {key: trace.segment(key) for key in trace.spans} == segments
    assert trace.label == segments["answer"]


@given(st.data(), st.sampled_from([GOOD, BOXED]))
def test_a_damaged_mark_is_never_a_trace_with_another_label(data, text):
    name = "think-answer" if text == GOOD else "answer-think-answer"
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    trace = read(text[:start] + data.draw(st.sampled_from(["", "x", "<think>", "</answer>"])) + text[end:], name)
    assert trace.provisional in ("abnormal", "normal", "abnormal at night", "none")
    if trace.ok:
        assert LABELS.resolve(trace.answer) == trace.label


@pytest.mark.parametrize(
    "segments",
    [
        {"think": "a"},
        {"think": "a", "answer": "normal", "more": "b"},
        {"think": " ", "answer": "normal"},
        {"think": "a</think>", "answer": "normal"},
        {"think": "a<answer>b</answer>", "answer": "normal"},
        {"think": "a</think><think>b", "answer": "normal"},
    ],
)
def test_segments_that_cannot_be_written_are_refused(segments):
    with pytest.raises(DataError):
        render("think-answer", **segments)


def test_a_box_that_would_close_early_is_refused():
    with pytest.raises(DataError):
        render("answer-think-answer", quick="a}b", think="c", answer="normal")


# ---- mentions


@pytest.mark.parametrize(
    "text, found",
    [
        ("at 1.5 s he falls", [("1.5", "time", 1.5)]),
        ("at 0:03, then 1:02:03.5.", [("0:03", "time", 3.0), ("1:02:03.5", "time", 3723.5)]),
        ("from 2 to 3.5 seconds", [("2", "time", 2.0), ("3.5", "time", 3.5)]),
        ("2s-4s", [("2", "time", 2.0), ("4", "time", 4.0)]),
        ("Frame 3 and frames 5–7", [("3", "frame", 3), ("5", "frame", 5), ("7", "frame", 7)]),
        ("frame #12 at 4s", [("12", "frame", 12), ("4", "time", 4.0)]),
        ("two men, 3 cars, 1.2.3 and 12:75", []),
        ("", []),
    ],
)
def test_times_and_frames_are_found_where_they_stand(text, found):
    assert [(text[m.start : m.end], m.kind, m.value) for m in mentions(text)] == found


SPOKEN = st.lists(st.sampled_from(["9", " ", ":", ".", "s", "frame ", "-", "to"]), max_size=30).map("".join)


@given(st.one_of(st.text(), SPOKEN))
def test_mentions_never_raise_and_lie_inside_the_text(text):
    for mention in mentions(text):
        assert 0 <= mention.start < mention.end <= len(text) and mention.value >= 0


@pytest.mark.parametrize("text", ["<answer>" * 20_000, "<think>" * 20_000, "1" + " " * 200_000, "9" * 200_000])
def test_a_hostile_text_costs_no_more_than_its_length(text):
    start = time.perf_counter()
    read(text)
    mentions(text)
    assert time.perf_counter() - start < 2


def test_a_quick_answer_that_ended_the_work_is_a_whole_trace_and_otherwise_none():
    text = r"\boxed{ abnormal }"
    ended = parse(text, "answer-think-answer", LABELS, thought=False)
    assert ended.ok and (ended.label, ended.quick) == ("abnormal", None) and not ended.grammar.text_segments
    assert parse(text, "answer-think-answer", LABELS).reason == Reason.NO_ANSWER
    put_off = parse(rf"\boxed{{{FALLBACK}}}", "answer-think-answer", LABELS, thought=False)
    assert put_off.reason == Reason.UNKNOWN_LABEL


def test_the_quick_label_is_kept_beside_the_final_one():
    both = render("answer-think-answer", quick="normal", think="It falls.", answer="abnormal")
    assert (parse(both, "answer-think-answer", LABELS).quick, parse(both, "answer-think-answer", LABELS).label) == (
        "normal", "abnormal",
    )  # fmt: skip
    put_off = render("answer-think-answer", quick=FALLBACK, think="It falls.", answer="abnormal")
    assert parse(put_off, "answer-think-answer", LABELS).quick is None


@pytest.mark.parametrize(
    "thinking, argued",
    [
        ("Nothing odd, so normal.", "normal"),
        ("It looked normal, yet it is ABNORMAL.", "abnormal"),
        ("Normal at first; then very\n  strange.", "abnormal"),
        ("Abnormally slow.", None),
        ("No class is named.", None),
    ],
)
def test_reasoning_argues_for_the_last_label_that_it_names(thinking, argued):
    labels = LabelSet("pair", ("normal", "abnormal"), {}, {"very strange": "abnormal"})
    trace = parse(render("think-answer", think=thinking, answer="normal"), "think-answer", labels)
    assert argued_label(trace, labels) == argued


@pytest.mark.parametrize(
    "labels, thinking, argued",
    [
        (("跌倒", "行走"), "老人先行走，然后跌倒了。", "跌倒"),
        (("ล้ม", "เดิน"), "เขาเดินแล้วล้มลง", "ล้ม"),
        (("넘어짐", "걷기"), "걷기보다 넘어짐입니다", "넘어짐"),
        (("fall", "walk"), "所以是fall。", "fall"),
        (("chute", "été"), "C'est l'e\u0301te\u0301.", "été"),
        (("fall", "walk"), "He falls, walking.", None),
    ],
)
def test_labels_are_found_in_reasoning_of_scripts_without_spaces(labels, thinking, argued):
    labels = LabelSet.of("two", labels)
    trace = parse(render("think-answer", think=thinking, answer=labels.labels[0]), "think-answer", labels)
    assert argued_label(trace, labels) == argued
    assert mismatch(trace, labels) == (float(argued not in (None, labels.labels[0])), argued or "none")


def test_reasoning_that_names_a_longer_label_does_not_argue_for_the_one_that_begins_it():
    labels = LabelSet.of("falls", ["fall", "fall from a bed"])
    for thinking, argued in (("So a fall from a bed.", "fall from a bed"), ("A fall from a box.", "fall")):
        trace = parse(render("think-answer", think=thinking, answer="fall"), "think-answer", labels)
        assert argued_label(trace, labels) == argued
