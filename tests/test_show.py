"""What notebooks show inline: foreign text stays text, what a piece shows is what it was given."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from deepintuit import video
from deepintuit.errors import DataError
from deepintuit.labels import LabelSet
from deepintuit.trace import parse, render
from deepintuit_analysis import show

LABELS = LabelSet.of("home", ["normal", "theft"])
EVIL = "<script>alert(1)</script> & <b>bold</b>"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    pixels = np.stack([np.full((32, 48, 3), 20 * t, np.uint8) for t in range(8)])
    video.write_mp4(path, pixels, 4)
    return path


def test_a_piece_is_shown_as_html_and_printed_as_a_word_on_its_size():
    piece = show.words("A sentence.")
    assert piece._repr_html_() == str(piece) and len(repr(piece)) < 40


def test_clip_carries_its_file_and_its_caption_is_text(clip):
    shown = show.clip(clip, caption=EVIL)
    (data,) = re.findall(r'src="data:video/mp4;base64,([^"]+)"', shown)
    assert base64.b64decode(data) == clip.read_bytes()
    assert "<script" not in shown and "<b>bold" not in shown


def test_clip_that_is_too_long_for_a_notebook_is_refused_with_what_to_do(tmp_path):
    long = tmp_path / "long.mp4"
    with long.open("wb") as file:
        file.truncate(40_000_000)
    with pytest.raises(DataError, match="40 MB") as refused:
        show.clip(long)
    assert "show.frames" in refused.value.todo


def test_frames_are_numbered_from_one_with_their_times(clip):
    seen = video.read(clip, 4)
    shown = show.frames(seen)
    assert shown.count("<img") == len(seen) == 4
    for number, time in enumerate(seen.times_T, 1):
        assert f"{number} · {time:.2f} s" in shown


def test_frames_of_a_large_clip_are_as_high_as_asked_and_carry_no_more_pixels_than_are_seen(clip):
    seen = video.read(clip, 2)
    shown = show.frames(seen, height=8)  # of 32: a notebook's own style would undo an attribute
    assert shown.count('style="height:8px') == 2
    for data in re.findall(r"base64,([^\"]+)", shown):
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (24, 16)


def test_table_breaks_before_an_interval_and_never_inside_one():
    shown = show.table("| 51.7 (39.7\u201363.3) \u00b1 2.4 |\n")._repr_markdown_()
    assert shown.split(" ") == ["|", "51.7", "(39.7\u2013\u206063.3)", "\u00b1\u00a02.4", "|\n"]


def test_trace_shows_its_segments_and_keeps_foreign_markup_as_text():
    shown = show.trace(parse(render("think-answer", think=EVIL, answer="theft"), "think-answer", LABELS), title=EVIL)
    assert 'title="think"' in shown and 'title="answer"' in shown and "answers <b>theft</b>" in shown
    assert "<script" not in shown and "&lt;script&gt;alert(1)" in shown


def test_malformed_text_says_its_reason_and_is_shown_whole():
    shown = show.trace(parse(f"<think>{EVIL}", "think-answer", LABELS))
    assert "malformed, unclosed_tag" in shown and "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "<script" not in shown
    assert "(nothing)" in show.trace(parse("", "think-answer", LABELS))


def test_tokens_tell_up_from_down_without_colour_and_lose_no_character():
    text = "a <b> c"
    shown = show.tokens(text, [(0, 1), (1, 3), (4, 5)], [1.0, -0.5, 0.0])
    spans = re.findall(r'<span title="token \d: ([^"]+)" style="([^"]+)">', shown)
    assert [value for value, _ in spans] == ["+1.000", "-0.500", "+0.000"]
    assert ["underline" in style for _, style in spans] == [False, True, False]
    assert re.sub(r"<[^>]+>", "", shown) == "a &lt;b&gt; c"


def test_tokens_without_any_value_are_plain():
    assert "nan" not in show.tokens("ab", [(0, 1), (1, 2)], [0.0, 0.0])


def test_link_leads_to_the_page_in_its_state():
    assert 'href="http://127.0.0.1:7860/traces?run=a&amp;clip=b%26c"' in show.app("traces", "x", run="a", clip="b&c")
    assert 'href="http://127.0.0.1:7860/watch"' in show.app("watch", "x", clip=None)
