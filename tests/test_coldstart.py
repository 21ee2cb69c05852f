"""Cold start: imitate what the teacher wrote, or the labels; go on after a kill; train again only when something
that matters changed."""

import pytest
from embedded import assert_same_weights, short_trace, survivor, undisturbed

from deepintuit import coldstart
from deepintuit.errors import DataError, StoreError
from deepintuit.reasoner import LocalReasoner, Task
from deepintuit.vlm import VLM

pytest_plugins = ["embedded"]


def test_the_form_is_learned(bench, cold):
    config = bench.settings()
    for checkpoint, low, high in ((None, 0, 0.05), (cold.checkpoint, 0.7, 1)):
        vlm = VLM.load(config.model, config.video, checkpoint=checkpoint, cache=bench.workbench.cache)
        reasoner = LocalReasoner(vlm, Task(bench.path, config))
        groups = reasoner.groups(reasoner.task.clips("test"), range(4), temperature=1.0, max_tokens=24)
        formed = [reasoner.task.parse(sample.text, sample.truncated).ok for _, _, group in groups for sample in group]
        assert low <= sum(formed) / len(formed) <= high
    loss = cold.read("steps").query("name == 'loss'").sort_values("step")["value"].to_numpy()
    assert loss[-5:].mean() < 0.3 * loss[:5].mean()
    assert cold.summary["tower_passes"] == len(bench.manifest.usable("coldstart")), (
        "one a clip, though each clip has eight traces and twelve epochs"
    )


def test_tower_and_merger_are_left_as_they_were(bench, cold):
    config = bench.settings()
    before, after = (
        VLM.load(config.model, config.video, checkpoint=c).model.model.visual.state_dict()
        for c in (None, cold.checkpoint)
    )
    assert all(before[name].equal(after[name]) for name in before)


def test_only_kept_traces_of_the_cold_start_split_are_imitated(bench):
    clips = bench.manifest.usable()
    inside, outside = clips[clips["split"] == "coldstart"], clips[clips["split"] == "test"]
    with bench.workbench.start_run("teach", {"made": "mixed"}, name="mixed", dataset="homecam") as run:
        for number, (clip_id, kept) in enumerate(
            [(inside.clip_id.iloc[0], 1.0), (inside.clip_id.iloc[1], 0.0), (outside.clip_id.iloc[0], 1.0)]
        ):
            run.append(
                "traces",
                [
                    {
                        "trace_id": str(number),
                        "clip_id": clip_id,
                        "sample": 0,
                        "text": "<think> a </think><answer> theft </answer>",
                    }
                ],
            )
            run.append("scores", [{"trace_id": str(number), "name": "kept", "value": kept}])
        run.finish({})
    trained = coldstart.run(
        bench.workbench, bench.settings("coldstart.epochs=1"), teacher=run.id, name="mixed", progress=False
    )
    assert trained.summary["rows"] == 1


def test_labels_alone_can_be_imitated_on_several_splits(bench):
    config = bench.settings("coldstart.target=label", "coldstart.splits=coldstart,grpo", "coldstart.epochs=1")
    run = coldstart.run(bench.workbench, config, teacher=None, progress=False)
    assert run.summary["rows"] == len(bench.manifest.usable("coldstart")) + len(bench.manifest.usable("grpo"))


def test_no_teacher_an_unknown_one_and_a_teacher_who_kept_nothing_are_refused(bench, tmp_path):
    own = bench.copy(tmp_path / "own")
    known = {run.id for run in own.workbench.runs()}
    for teacher in (None, "teach-nobody"):
        with pytest.raises(StoreError):
            coldstart.run(own.workbench, own.settings(), teacher=teacher, progress=False)
    assert {run.id for run in own.workbench.runs()} == known, "refused before a run began"
    with own.workbench.start_run("teach", {"made": "nothing"}, name="nothing", dataset="homecam") as run:
        run.finish({})
    with pytest.raises(StoreError, match="kept no trace"):
        coldstart.run(own.workbench, own.settings(), teacher=run.id, name="nothing", progress=False)


def test_videos_that_went_away_are_counted_and_all_of_them_is_a_sentence(bench, tmp_path):
    own = bench.copy(tmp_path / "own")
    manifest = own.manifest
    clips = manifest.frame["split"] == "coldstart"
    manifest.frame.loc[manifest.frame.index[clips][:3], "path"] = str(tmp_path / "gone.mp4")
    manifest.save()
    features = own.path / "cache"
    if features.exists():  # what other tests of this file have computed
        features.rename(tmp_path / "elsewhere")
    assert not features.exists()
    teacher = own.teach(short_trace, each=1, name="one")
    run = coldstart.run(
        own.workbench, own.settings("coldstart.epochs=1"), teacher=teacher.id, name="gone", progress=False
    )
    assert len(run.summary["unreadable"]) == 3 and run.summary["rows"] == clips.sum() - 3
    manifest.frame.loc[clips, "path"] = str(tmp_path / "gone.mp4")
    manifest.save()
    (own.path / "cache").rename(tmp_path / "elsewhere too")
    with pytest.raises(DataError, match="can be read"):
        coldstart.run(
            own.workbench, own.settings("coldstart.epochs=1"), teacher=teacher.id, name="all-gone", progress=False
        )


def test_a_setting_of_another_stage_does_not_train_again(bench, cold):
    config = bench.settings(
        "coldstart.epochs=12", "coldstart.learning_rate=2e-3", "grpo.learning_rate=1e-5", "evaluate.bins=7"
    )
    assert coldstart.run(bench.workbench, config, teacher=bench.teach(short_trace).id, progress=False).id == cold.id


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.thorough), 4])
def test_a_killed_run_continues_to_the_same_weights(bench, tmp_path, rank):
    teacher = bench.teach(short_trace).id
    sets = (f"model.lora_rank={rank}", "coldstart.epochs=3", "coldstart.save_steps=4", "coldstart.learning_rate=2e-3")
    one, other = bench.copy(tmp_path / "one"), bench.copy(tmp_path / "other")
    whole = undisturbed(one, "coldstart", sets, teacher=teacher)
    moments = [0.3, "training/checkpoint-4/complete", "training/checkpoint-12", "training/checkpoint-20/complete"]
    run, kills = survivor(other, "coldstart", moments, sets, teacher=teacher)
    assert kills == len(moments) and run.summary["steps"] == whole.summary["steps"] == 30
    assert_same_weights(whole, run)
    assert not (run.path / "training").exists()
