"""What bad input gets: three beats in every error of the package, and a few of them met live."""

import ast
import functools
import re
from pathlib import Path

import pytest
from rooms import ROOT, SOURCES

from deepintuit import config, errors, labels, trace, video

KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.DeepIntuitError)
}
BEATS = ("what", "why", "todo")
# After stripping: `str()` ends a beat itself, and takes a full stop or a colon that stands there already.
DOUBLED = re.compile(r"[,;:!?]$|(?<!\.)\.\.$|[,;:!?]\s*[.:]$")
MACHINE = re.compile(r"/(?:home|root|Users|work|mnt)/\w")


@functools.cache
def calls() -> dict[str, ast.Call]:
    """Every place in the package that makes one of our errors, by `file:line`."""
    found = {}
    for path in SOURCES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
                if name in KINDS:
                    found[f"{path.relative_to(ROOT)}:{node.lineno} {name}"] = node
    return found


def beats(call: ast.Call) -> list[ast.expr]:
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    return [*call.args[: len(BEATS)], *(named[beat] for beat in BEATS[len(call.args) :] if beat in named)]


def texts(beat: ast.expr) -> list[str]:
    """The wordings that a beat can take, as far as they stand in the source; a value put in reads ‹›."""
    match beat:
        case ast.Constant(value=str() as text):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(part.value if isinstance(part, ast.Constant) else "‹›" for part in parts)]
        case ast.IfExp(body=one, orelse=other):
            return texts(one) + texts(other)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return [one + other for one in texts(left) or ["‹›"] for other in texts(right) or ["‹›"]]
    return []


def wordings() -> list[tuple[str, str]]:
    return [(place, text) for place, call in calls().items() for beat in beats(call) for text in texts(beat)]


def test_every_error_is_made_of_three_beats():
    short = [
        place
        for place, call in calls().items()
        if len(beats(call)) != len(BEATS) and not any(isinstance(argument, ast.Starred) for argument in call.args)
    ]
    assert calls() and not short


def test_every_video_error_names_its_reason():
    silent = [
        place
        for place, call in calls().items()
        if place.endswith("VideoError")
        and len(call.args) + len(call.keywords) != len(BEATS) + 1
        and not any(isinstance(argument, ast.Starred) for argument in call.args)
    ]
    assert not silent


def test_no_beat_is_empty_or_ends_in_doubled_punctuation():
    bad = [(place, text) for place, text in wordings() if not text.strip() or DOUBLED.search(text.strip())]
    assert not bad


def test_no_message_holds_a_path_of_somebodys_machine():
    assert not [(place, text) for place, text in wordings() if MACHINE.search(text)]


def test_nothing_is_raised_that_users_cannot_read():
    """A bare Exception, RuntimeError or assert says what broke, not what to do."""
    bare = []
    for path in SOURCES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            raised = getattr(node, "exc", None) if isinstance(node, ast.Raise) else None
            name = getattr(getattr(raised, "func", raised), "id", None)
            if name in {"Exception", "BaseException", "RuntimeError", "AssertionError"} or isinstance(node, ast.Assert):
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not bare


LIVE = {
    "an unknown key": lambda folder: config.load(None, ["grpo.gruop=4"]),
    "a wrong type": lambda folder: config.load(None, ["grpo.group=many"]),
    "an impossible value": lambda folder: config.load(None, ["video.frames=0"]),
    "a config file that is not there": lambda folder: config.load(folder / "none.toml"),
    "a config file that is not TOML": lambda folder: config.loads("[grpo", source="mine.toml"),
    "one label": lambda folder: labels.LabelSet.of("kitchen", ["pouring"]),
    "a label twice": lambda folder: labels.LabelSet.of("kitchen", ["Pouring", "pouring"]),
    "an unknown grammar": lambda folder: trace.grammar_named("think-anwser"),
    "a video that is not there": lambda folder: video.probe(folder / "none.mp4"),
    "an empty video": lambda folder: video.probe(written(folder / "empty.mp4", b"")),
    "a text named as video": lambda folder: video.probe(written(folder / "text.mp4", b"not a video\n" * 9)),
}


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", LIVE)
def test_bad_input_is_told_what_came_why_it_cannot_be_and_what_to_do(case, tmp_path):
    with pytest.raises(errors.DeepIntuitError) as caught:
        LIVE[case](tmp_path)
    error = caught.value
    said = str(error).replace(str(tmp_path), "…")
    assert all(getattr(error, beat).strip() for beat in BEATS)
    assert said.endswith(".") and not re.search(r"(?<!\.)\.\.(?!\.)|[,;:!?]\.|: :|\s[.,:;]", said), said
    assert "\n" not in said and "Traceback" not in said and "object at 0x" not in said


@pytest.mark.parametrize(
    ("came", "offered"), [("grpo.gruop=4", "grpo.group"), ("gpro.group=4", "grpo"), ("grpo.objective=dpao", "dapo")]
)
def test_a_near_miss_is_offered_the_nearest_name(came, offered):
    with pytest.raises(errors.ConfigError, match=re.escape(offered)):
        config.load(None, [came])
