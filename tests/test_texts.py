"""Texts of others: every encoding by its mark, and a reason instead of a crash for what is too deep, too long or no
text."""

import json
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepintuit import config, labels, trace
from deepintuit.errors import ConfigError, DeepIntuitError, LabelError
from deepintuit.texts import DEEPEST, decoded, parse_json, parse_toml
from deepintuit_analysis.review.tasks import ReviewTask

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_settings_and_labels_are_read_in_every_encoding_that_names_itself(tmp_path, encoding):
    (path := tmp_path / "a.toml").write_bytes('[grpo]\r\ngroup = 4\r\n[model]\r\npath = "Tür"\r\n'.encode(encoding))
    assert (config.load(path).grpo.group, config.load(path).model.path) == (4, "Tür")
    path.write_bytes('name = "x"\r\nlabels = ["Tür", "b"]'.encode(encoding))
    assert labels.LabelSet.load(path).labels == ("Tür", "b")


@pytest.mark.parametrize(
    "content", [b"\xff\xfea", b"\xfe\xff\xd8\x00", b"a\x00b", "a = 1".encode("utf-16-le"), b"\xff"]
)
def test_what_is_no_text_is_refused_with_a_sentence(tmp_path, content):
    (path := tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ConfigError):
        config.load(path)
    with pytest.raises(LabelError):
        labels.LabelSet.load(path)


@given(
    st.binary() | st.sampled_from(ENCODINGS).flatmap(lambda name: st.text().map(lambda t: t.encode(name, "replace")))
)
def test_any_bytes_are_text_or_a_reason(content):
    try:
        assert "\0" not in decoded(content)
    except UnicodeError:
        pytest.fail("a reason in words is wanted")
    except ValueError:
        pass


HUGE = {
    "a long number": "1" + "0" * 5000, "10^400": "1" + "0" * 400, "a hexadecimal number": "0x" + "f" * 9000,
    "an open list": "[" * 100_000, "a deep list": "[" * 400 + "]" * 400, "an open table": "{a=" * 100_000,
    "a deep table": "{a." + "b." * 5000 + "c=1}", "a long text": f'"{"x" * 20_000}"', "infinity": "inf", "nan": "nan",
    "half a character": '"\\ud800"', "a date": "0001-01-01", "a list with a long number": "[0x" + "f" * 9000 + "]",
}  # fmt: skip


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("key", ["grpo.group", "grpo.learning_rate", "model.path", "clips.text_fields", "seed", "grpo"])
def test_a_setting_out_of_all_bounds_is_refused_in_one_short_sentence(key, value):
    section, _, name = key.rpartition(".")
    for told in (([], f"{f'[{section}]' if section else ''}\n{name} = {value}"), ([f"{key}={value}"], "")):
        started = time.perf_counter()
        try:
            found = config.loads(told[1], told[0])
        except DeepIntuitError as error:
            assert len(str(error)) < 5000
        else:  # a bare word of --set is a text
            assert key in ("model.path", "clips.text_fields") and told[0] and found.dumps()
        assert time.perf_counter() - started < 2


@pytest.mark.parametrize("bad", ["a\udcff", "x" * 10_001])
def test_a_setting_that_no_file_can_hold_is_refused(bad):
    for make in (lambda: config.loads("", [f"model.path={bad}"]), lambda: config.Config(workbench=bad)):
        with pytest.raises(ConfigError):
            make()


@pytest.mark.parametrize("text", ['"a b".', "a.", "a . ", "'a'.", '"', "[[a]]\n", "[a]\n", "x", "[", "-"])
def test_a_megabyte_of_toml_is_read_or_refused_at_once(text):
    started = time.perf_counter()
    with pytest.raises(ValueError) as caught:
        parse_toml(text * ((1 << 20) // len(text)) + "=")
    assert time.perf_counter() - started < 5 and str(caught.value)


def test_json_is_read_to_a_bounded_depth():
    def nested(n: int) -> str:
        return "[" * n + "]" * n

    assert parse_json(nested(DEEPEST))
    for text in (nested(DEEPEST + 1), nested(100_000), "[" * 1_000_000, '{"a":' * 500 + "1" + "}" * 500, "1" * 5000):
        with pytest.raises(ValueError) as caught:
            parse_json(text)
        assert len(str(caught.value)) < 200


def test_a_name_that_stands_twice_in_an_object_is_refused_where_that_matters():
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="'a' twice"):
        parse_json('[{"a": 1, "a": 2}]', unique=True)


@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_json_or_a_reason(text):
    try:
        parse_json(text)
    except ValueError:
        pass


def test_a_message_stays_short_whatever_value_stands_in_it():
    error = ConfigError("x" * 10**6, "y", "Z")
    assert len(str(error)) < 2000 and "…" in str(error) and error.args == (error.what, error.why, error.todo)


# Accents: "é" in one character or in two


WORDS = ("café", "한국", "Tiếng Việt", "Tür", "naïve fall")


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_label_reads_back_however_its_accents_are_encoded(word, forms):
    listed, written = (unicodedata.normalize(form, word) for form in forms)
    found = labels.LabelSet("x", (listed, "other"), aliases={f"{listed} 2": "other"})
    assert (found.resolve(written), found.resolve(f"{written} 2")) == (listed, "other")
    text = unicodedata.normalize(forms[1], trace.render("think-answer", think=f"So {listed}.", answer=f" {listed} "))
    parsed = trace.parse(text, "think-answer", found)
    assert parsed.ok and parsed.label == listed and trace.argued_label(parsed, found) == listed
    blind = ReviewTask("t", {"t1": "c1"}, (listed, "other"), blind=True)
    assert written not in blind.covered(text)
    with pytest.raises(LabelError, match="same word"):
        labels.LabelSet.of("x", [listed, written])


@pytest.mark.parametrize(
    "text", ['".', 'a."', "\u0300\u0316", "\u037e", "ß", " ", "İ", "\u0345\u0300", '"', "ŉ", "\u2000 "]
)
def test_folding_takes_time_in_proportion(text):
    started = time.perf_counter()
    for begin in ("", "a"):
        long = begin + text * (1_000_000 // len(text))
        assert labels.normalise(labels.normalise(long)) == labels.normalise(long)
    assert time.perf_counter() - started < 5
