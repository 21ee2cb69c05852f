"""Prompts: what must be in them, what must never be, and what they cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepintuit.errors import DataError, LabelError
from deepintuit.labels import LabelSet
from deepintuit.prompts import PromptStyle, calibrator_prompt, label_prompt, rationale_prompt, reasoner_prompt
from deepintuit.trace import FALLBACK, GRAMMARS

HOME = LabelSet("home", ("normal", "abnormal", "theft"), {"abnormal": "something that needs a look"})
STYLES = list(PromptStyle)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", GRAMMARS)
def test_every_prompt_names_every_label(style, name):
    asked = [
        reasoner_prompt(HOME, name, style),
        label_prompt(HOME, style),
        rationale_prompt(HOME, "theft", name, style),
        calibrator_prompt(HOME, "normal", "A cat.", style),
    ]
    assert all(label in text for text in asked for label in HOME)


@pytest.mark.parametrize("name", GRAMMARS)
def test_the_full_prompt_shows_the_form_of_its_grammar(name):
    text = reasoner_prompt(HOME, name)
    positions = []
    for segment in GRAMMARS[name].segments:
        positions.append(text.index(segment.open, positions[-1] + 1 if positions else 0))
        assert segment.close in text[positions[-1] :]
    assert positions == sorted(positions)
    assert (FALLBACK in text) == (GRAMMARS[name].quick is not None)


def test_definitions_stand_beside_their_labels_in_the_full_style():
    assert "- abnormal: something that needs a look" in reasoner_prompt(HOME)


def test_the_brief_style_is_a_few_words():
    assert len(reasoner_prompt(HOME, style="brief").split()) <= 8
    assert len(calibrator_prompt(HOME, "normal", "", "brief").split()) <= 8


def test_a_blind_teacher_is_asked_what_the_reasoner_is_asked():
    assert rationale_prompt(HOME) == reasoner_prompt(HOME)


def test_a_teacher_with_the_label_is_told_not_to_mention_it():
    text = rationale_prompt(HOME, "Theft.")
    assert "The right label is theft." in text and "do not mention" in text
    with pytest.raises(LabelError):
        rationale_prompt(HOME, "thief")


def test_text_fields_are_shown_by_name_and_empty_ones_left_out():
    text = label_prompt(HOME, text_fields={"title": "Front door", "transcript": " "})
    assert "title: Front door" in text and "transcript" not in text


@pytest.mark.parametrize("style", STYLES)
def test_the_second_reviewer_reads_conclusion_and_rationale(style):
    text = calibrator_prompt(HOME, "theft", "A man lifts the box at 2 s.", style)
    assert "A man lifts the box at 2 s." in text and "theft" in text


@pytest.mark.parametrize("style", STYLES)
def test_blanking_the_rationale_changes_the_rationale_alone(style):
    kept = calibrator_prompt(HOME, "theft", "RATIONALE", style)
    blank = calibrator_prompt(HOME, "theft", "", style)
    assert blank == kept.replace(" RATIONALE", "").replace("RATIONALE", "(not given)")


@pytest.mark.parametrize("style", STYLES)
@given(order=st.permutations(range(3)))
def test_labels_are_listed_in_the_order_asked_for(style, order):
    text = calibrator_prompt(HOME, "none", "", style, order=order)
    listed = text.split("Review:")[-1] if style is PromptStyle.BRIEF else text
    marks = [f"- {HOME.labels[i]}" if style is PromptStyle.FULL else f" {HOME.labels[i]}" for i in order]
    positions = [listed.index(mark) for mark in marks]
    assert positions == sorted(positions)


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [1, 2, 3]])
def test_an_order_that_loses_a_label_is_refused(order):
    with pytest.raises(DataError):
        calibrator_prompt(HOME, "normal", "", order=order)


def test_a_conclusion_that_is_no_label_is_refused():
    with pytest.raises(LabelError, match="first conclusion 'dog'"):
        calibrator_prompt(HOME, "dog", "")


@pytest.mark.parametrize("mark", ["<|video_pad|>", "<|im_end|>", "<|vision_start|>"])
def test_foreign_text_cannot_smuggle_in_a_mark_of_the_chat_template(mark):
    labels = LabelSet("home", ("a", "b"), {"a": mark})
    fields = {"title" + mark: mark * 2}
    first = reasoner_prompt(labels, text_fields=fields)
    second = calibrator_prompt(labels, "none", mark, text_fields=fields)
    for text in (first, second):
        assert mark not in text and "<|" not in text and "|>" not in text


@given(st.text(st.sampled_from("<| >p"), max_size=12))
def test_no_mark_survives_whatever_surrounds_it(text):
    assert "<|" not in calibrator_prompt(HOME, "none", text)


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError):
        label_prompt(HOME, "long")
