"""Label sets: what counts as the same answer, and which sets cannot be one."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepintuit.errors import LabelError
from deepintuit.labels import LabelSet, normalise

HOME = LabelSet(
    "home",
    ("normal", "abnormal", "Package Taken"),
    {"abnormal": "something that needs a look"},
    {"theft": "Package Taken", "vague abnormal": "abnormal"},
)


@pytest.mark.parametrize("text", ["normal", " Normal.", '"NORMAL"', "'normal'.", "\nnormal\n", "“normal”!", "`normal`"])
def test_case_space_quotes_and_final_punctuation_do_not_matter(text):
    assert HOME.resolve(text) == "normal"


@pytest.mark.parametrize("text", ["", "norm", "normal abnormal", "not normal", "none", "ab normal", "normal, abnormal"])
def test_what_is_only_nearly_a_label_is_none(text):
    assert HOME.resolve(text) is None


def test_a_label_that_ends_another_is_told_apart_from_it():
    assert (HOME.resolve("abnormal"), HOME.resolve("normal")) == ("abnormal", "normal")


def test_an_alias_resolves_to_its_label():
    assert HOME.resolve("Vague  Abnormal.") == "abnormal"
    assert HOME.index("theft") == 2


def test_labels_keep_their_order():
    assert list(HOME) == ["normal", "abnormal", "Package Taken"] and len(HOME) == 3
    assert [HOME.index(label) for label in HOME] == [0, 1, 2]


def test_unknown_label_names_the_set_and_the_nearest():
    with pytest.raises(LabelError, match=r"'abnormall' is not one of the 3 labels of 'home'.*Nearest: 'abnormal'"):
        HOME.index("abnormall")


@pytest.mark.parametrize(
    "labels, definitions, aliases, says",
    [
        (("a",), {}, {}, "fewer than two"),
        ((), {}, {}, "fewer than two"),
        (("a", "A "), {}, {}, "same word"),
        (("a", " "), {}, {}, "cannot be written"),
        (("a", "..."), {}, {}, "cannot be written"),
        (("a", "</answer>"), {}, {}, "cannot be written"),
        (("a", 7), {}, {}, "cannot be written"),
        (("a", "None"), {}, {}, "without an answer"),
        (("a", "b"), {"c": "x"}, {}, "definition 'c'"),
        (("a", "b"), {}, {"x": "c"}, "alias 'c'"),
        (("a", "b"), {}, {"B.": "a"}, "already means 'b'"),
        (("a", "b"), {}, {"x": "a", "X": "b"}, "already means 'a'"),
    ],
)
def test_a_set_that_cannot_be_told_apart_is_refused(labels, definitions, aliases, says):
    with pytest.raises(LabelError, match=says):
        LabelSet("bad", labels, definitions, aliases)


def test_one_word_is_not_read_as_its_letters():
    with pytest.raises(LabelError, match="fewer than two"):
        LabelSet.of("bad", "normal")


@given(st.text())
def test_normalising_twice_changes_nothing_more(text):
    assert normalise(normalise(text)) == normalise(text)


WORDS = st.text(st.characters(categories=["L", "N", "Zs"]), min_size=1, max_size=12)


@given(st.lists(WORDS, min_size=2, max_size=6, unique_by=normalise), st.data())
def test_toml_gives_the_same_set_back(tmp_path_factory, words, data):
    words = [word for word in words if normalise(word) not in ("", "none")]
    if len(words) < 2:
        return
    defined = data.draw(st.dictionaries(st.sampled_from(words), st.text(st.characters(exclude_categories=["Cs"]))))
    labels = LabelSet("drawn", tuple(words), defined, {"another wording": words[0]})
    path = tmp_path_factory.mktemp("labels") / "labels.toml"
    path.write_bytes(labels.dumps().encode())
    assert LabelSet.load(path) == labels
    assert all(labels.resolve(f' "{word.upper().lower()}". ') in (None, word) for word in words)
    assert all(labels.resolve(word) == word for word in words)


@pytest.mark.parametrize(
    "text, says",
    [
        ("labels = [", "could not be read"),
        ('labels = ["a", "b"]\nalias = 3', "Nearest: 'aliases'"),
        ('labels = "ab"', "not understood"),
        ('labels = ["a", "b"]\n[definitions]\na = 3', "not a text"),
        ('name = "x"', "fewer than two"),
    ],
)
def test_a_bad_label_file_says_what_is_wrong(tmp_path, text, says):
    path = tmp_path / "labels.toml"
    path.write_text(text)
    with pytest.raises(LabelError, match=says):
        LabelSet.load(path)


def test_a_missing_label_file_is_named(tmp_path):
    with pytest.raises(LabelError, match="nowhere.toml"):
        LabelSet.load(tmp_path / "nowhere.toml")


def test_a_label_set_can_be_hashed_and_sent_to_a_worker():
    back = pickle.loads(pickle.dumps(HOME))
    assert back == HOME and hash(back) == hash(HOME) and back.resolve("theft") == "Package Taken"
