"""Errors: three beats, countable reasons, and an offer of the nearest name."""

import pickle

import pytest

from deepintuit import errors

THREE_BEATS = [
    errors.ConfigError,
    errors.LabelError,
    errors.DataError,
    errors.StoreError,
    errors.ModelError,
    errors.TeachError,
]


@pytest.mark.parametrize("kind", THREE_BEATS)
def test_every_error_says_what_came_why_it_cannot_be_and_what_to_do(kind):
    error = kind("grpo.group = 1", "it must be at least 2", "Raise it.")
    assert isinstance(error, errors.DeepIntuitError)
    assert str(error) == "grpo.group = 1: it must be at least 2. Raise it."
    assert (error.what, error.why, error.todo) == ("grpo.group = 1", "it must be at least 2", "Raise it.")


def test_video_error_carries_a_reason_that_can_be_counted():
    error = errors.VideoError("clip 'a.mp4'", "it holds no bytes", "Copy it again", errors.VideoReason.EMPTY_FILE)
    assert error.reason == "empty_file"
    assert str(error) == "clip 'a.mp4': it holds no bytes. Copy it again."


@pytest.mark.parametrize(
    "error", [errors.DataError("a", "b", "c"), errors.VideoError("a", "b", "c", reason=errors.VideoReason.TOO_SLOW)]
)
def test_an_error_crosses_a_process_border_unchanged(error):
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error) and str(back) == str(error)
    assert getattr(back, "reason", None) == getattr(error, "reason", None)


@pytest.mark.parametrize(
    "word, found", [("goup", "group"), ("GROUP", "group"), ("lr", "learning_rate"), ("zzz", None), ("", None)]
)
def test_nearest_offers_a_likely_name_or_none(word, found):
    assert errors.nearest(word, ["group", "learning_rate", "tau"]) == found


def test_nearest_of_nothing_known_is_none():
    assert errors.nearest("group", []) is None
