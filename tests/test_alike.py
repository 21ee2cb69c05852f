"""The nearest clips of a clip and the map of clips, as pages and notebooks are given them."""

import json

import numpy as np
import pytest

from deepintuit.embeddings import Space, places_of
from deepintuit.errors import StoreError
from deepintuit_analysis import show
from deepintuit_analysis.index import alike
from deepintuit_analysis.report.clip_map import MOST_GROUPS, about, clip_map
from deepintuit_analysis.report.figures import COLOURS

pytest_plugins = ["embedded"]


def stored(path, clip_ids, vectors, name="a tower") -> Space:
    space = Space(path, {"name": name, "recipe": [len(vectors)]})
    with space.writing():
        space.add(clip_ids, np.asarray(vectors, np.float32))
        space.arrange()
    return space


@pytest.fixture(scope="module")
def world(bench, tmp_path_factory):
    """The embedded clips along a line in the order of the manifest, among clips of another dataset; and a system that
    answers all test clips with one label."""
    own = bench.copy(tmp_path_factory.mktemp("alike") / "own")
    frame = own.manifest.usable()
    ids = frame["clip_id"].tolist()
    angle = np.linspace(0, 3, len(ids))
    line = np.stack([np.cos(angle), np.sin(angle)], 1)
    stored(own.path, [*ids, *(f"other-{k}" for k in range(300))], np.concatenate([line, np.tile(line[:1], (300, 1))]))
    workbench = own.workbench
    with workbench.start_run("evaluate", {}, name="sure", dataset="homecam") as run:
        label = frame["label"].iloc[-1]
        about_all = {"split": "test", "system": "sure", "method": "raw", "predicted": label, "provisional": label}
        rows = [{"clip_id": r.clip_id, "true_label": r.label} for r in frame[frame["split"] == "test"].itertuples()]
        run.append("predictions", [{**row, **about_all, "trace_id": f"t-{row['clip_id']}"} for row in rows])
        run.finish({})
    workbench.refresh()
    return workbench, frame.set_index("clip_id", drop=False), ids, (run.id, "sure", "raw"), label


def test_the_nearest_clips_are_of_the_dataset_and_carry_what_was_answered(world):
    workbench, frame, ids, system, label = world
    found = alike.nearest(workbench, ids[0], "homecam", system)
    order, _ = places_of(workbench.path, ids).nearest(ids[0])
    assert order[0].startswith("other-")
    assert [clip["clip_id"] for clip in found.clips] == [clip_id for clip_id in order if clip_id in ids][:8]
    assert found.viewer == "a tower" and (np.diff([clip["similarity"] for clip in found.clips]) <= 0).all()
    tests = [clip_id for clip_id in ids if frame.loc[clip_id, "split"] == "test"]
    for clip in alike.nearest(workbench, tests[3], "homecam", system, most=50).clips:
        row = frame.loc[clip["clip_id"]]
        assert (clip["label"], clip["split"]) == (row["label"], row["split"])
        assert clip["predicted"] == (label if row["split"] == "test" else None)
        assert clip["right"] is (None if row["split"] != "test" else bool(row["label"] == label))
    assert all(clip["right"] is None for clip in alike.nearest(workbench, tests[3], "homecam").clips)
    assert alike.nearest(workbench, "nobody", "homecam") is None


def test_a_corner_of_the_map_is_a_slice_and_hostile_ids_are_text(world):
    workbench, frame, ids, *_ = world
    with workbench.start_run("coldstart", {"made": "traces"}, dataset="homecam") as run:
        run.append("traces", [{"clip_id": clip_id, "sample": 0, "text": "x"} for clip_id in ids])
        run.finish({})
    workbench.refresh()
    entry = workbench.save_slice("corner", alike.slice_of(ids[3:7]))
    assert sorted(entry.clips()["clip_id"]) == sorted(ids[3:7])
    assert workbench.save_slice("hostile", alike.slice_of(["'; DROP TABLE clips; --", ids[0]])).trace_ids()
    assert len(alike.slice_of(["0123456789abcdef"] * 2)) < 80
    for wrong in ([], [f"{k:016x}" for k in range(alike.MOST_CHOSEN + 1)]):
        with pytest.raises(StoreError, match="clips were chosen"):
            alike.slice_of(wrong)
    most = [f"{k:016x}" for k in range(alike.MOST_CHOSEN)]
    assert workbench.save_slice("many", alike.slice_of(most)).trace_ids() == []


def test_every_point_of_the_map_is_a_clip_in_the_mark_of_its_group(world):
    workbench, frame, ids, *_ = world
    places = places_of(workbench.path, ids)
    figure = clip_map(places, {**frame["label"].to_dict(), "unknown": "theft"}, "Clips by <b>label</b>", ["stray"])
    points = [(clip_id, x, y) for t in figure.data for clip_id, x, y in zip(t.customdata, t.x, t.y)]
    assert sorted(clip_id for clip_id, *_ in points) == sorted(ids)
    for clip_id, x, y in points:
        assert np.allclose(places.map_N_2[places.place_of[clip_id]], [x, y])
    for trace in figure.data:
        [label] = {frame.loc[clip_id, "label"] for clip_id in trace.customdata}
        assert trace.type == "scattergl" and trace.name == f"{label} ({len(trace.x)})"
    assert figure.data[0].name.startswith("stray") and figure.layout.dragmode == "lasso"
    assert len({(t.marker.color, t.marker.symbol) for t in figure.data}) == len(figure.data) == frame["label"].nunique()
    assert "<b>" not in figure.layout.title.text
    words = about(places, len(ids), len(ids) + 2)
    assert "t-SNE" in words and "2 clips have no embedding: run deepintuit embed" in words and "at random" not in words


def test_of_very_many_groups_the_largest_have_a_mark_and_the_rest_is_one():
    rng = np.random.default_rng(0)
    from deepintuit.embeddings import Places

    ids = [f"c{k}" for k in range(400)]
    facts = {"name": "x", "mapped": 100, "variance": 0.5}
    places = Places(ids, rng.normal(size=(400, 3)), rng.normal(size=(400, 2)).astype(np.float32), facts)
    figure = clip_map(places, {c: f"<i>{k % 40:02}" for k, c in enumerate(ids)}, "many")
    assert len(figure.data) == MOST_GROUPS and sum(len(t.x) for t in figure.data) == 400
    assert figure.data[-1].name == "26 others (260)" and "<i>" not in figure.to_json()
    marks = [(t.marker.color, t.marker.symbol) for t in figure.data]
    assert len(set(marks)) == MOST_GROUPS and len({colour for colour, _ in marks[:5]}) == len(COLOURS)
    assert "100 clips drawn at random are mapped" in about(places, 400, 400)


def test_a_hundred_thousand_points_are_a_figure_of_a_few_megabytes():
    rng = np.random.default_rng(0)
    from deepintuit.embeddings import Places

    ids = [f"{k:016x}" for k in range(100_000)]
    facts = {"name": "x", "mapped": 2000, "variance": 0.5}
    places = Places(ids, rng.normal(size=(100_000, 2)), rng.normal(size=(100_000, 2)).astype(np.float32), facts)
    text = clip_map(places, {c: str(k % 6) for k, c in enumerate(ids)}, "many").to_json()
    assert len(text) < 4_000_000
    assert sum(len(trace["customdata"]) for trace in json.loads(text)["data"]) == 100_000


def test_a_notebook_shows_the_map_with_the_line_that_saves_what_is_drawn_around(world):
    workbench, frame, ids, *_ = world
    shown = show.clip_map(workbench, "homecam", include_plotlyjs=False)
    assert "scattergl" in shown and "plotly_selected" in shown and "slice_of" in shown and ids[0] in shown
    by_split = show.clip_map(workbench, "homecam", by="split", include_plotlyjs=False)
    assert "validation (" in by_split
    answers = dict.fromkeys(ids[:5], "</script><b>wrong")
    assert "</script><b>" not in show.clip_map(workbench, "homecam", by=answers, include_plotlyjs=False)
    with pytest.raises(StoreError, match="deepintuit embed"):
        show.clip_map(workbench, "nowhere")
    with pytest.raises(StoreError, match="'labels'"):
        show.clip_map(workbench, "homecam", by="labels")
