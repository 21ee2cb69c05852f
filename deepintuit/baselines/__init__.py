"""What stands beside every reasoner, trained on the same clips and labels; none sees a policy, a prompt or a teacher.

- `simple`   needs no model: the majority class, the container's metadata, and texts where they are shown
- `encoder`  a conventional video classifier (`classifier`)
- `probe`    logistic regression on the features of a frozen tower

All learn from the clips of all training splits, and every choice (the epoch, the strength of regularisation, the
temperature) is made on validation.
Run it:  deepintuit evaluate --config configs/tiny.toml --reasoner baselines
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from deepintuit import ranks
from deepintuit.baselines.classifier import VideoClassifier
from deepintuit.config import TRAINING, Config
from deepintuit.data import container_features, text_corpus
from deepintuit.errors import ConfigError, DataError, VideoError
from deepintuit.evaluate import run_identity
from deepintuit.evaluate.rows import Rows
from deepintuit.linear import class_probabilities, logistic_regression, text_features
from deepintuit.reasoner import Clip, Scores, Task, identity, refuse_altered, refuse_one_class
from deepintuit.reasoner.embedding import Tower, embedded
from deepintuit.reasoner.local import places_of
from deepintuit.runs import Run, Workbench
from deepintuit.stage import refuse_none
from deepintuit.vlm import VLM
from deepintuit.vlm.finetune import Recipe
from deepintuit.vlm.training import StepLog

_STRENGTHS = np.logspace(-4, 1, 6)
"""Of a probe: the inverse of its regularisation."""


def simple(workbench: Workbench, config: Config, calibrator: str | None = None, progress: bool = False) -> Run:
    """The rows majority, metadata and (where texts or notes are shown) text, as far as there is something to learn
    from: one that has nothing is left out with a remark, in the summary, the log and, with `progress`, on the
    terminal."""
    if calibrator:
        why = "baselines write no trace that a calibrator could read"
        raise ConfigError(f"the calibrator {calibrator!r} was named for the baselines", why, "Leave it out")
    run = _started(workbench, config, run_identity(workbench, config, None), "baselines")
    if run.finished:
        return run
    with run:
        task = Task(workbench.path, config)
        rows, test = Rows(workbench, config, run, task, "baselines", progress), task.clips(config.evaluate.split)
        training, frame = _training(task), task.manifest.usable().set_index("clip_id", drop=False)
        labels = [clip.label for clip in training]
        counts = np.array([labels.count(label) for label in task.labels], float) + 1
        rows.system = "majority"
        rows.add("raw", test, np.tile(counts / counts.sum(), (len(test), 1)))
        models = {"metadata": (StandardScaler(), container_features(frame).fillna(0))}
        if config.clips.text_fields or config.clips.notes_shown:
            models["text"] = text_features(), text_corpus(frame, config.clips.text_fields, config.clips.notes_shown)
        for rows.system, (scaler, features) in models.items():
            inputs, new = (features.loc[[clip.clip_id for clip in clips]] for clips in (training, test))
            try:
                probs = class_probabilities(logistic_regression(scaler), inputs, labels, new, task.labels)
                rows.add("raw", test, probs)
            except DataError as error:
                rows.leave_out(rows.system, error)
        rows.system = "baselines"
        run.finish(rows.summary(len(test)))
    return run


def encoder(workbench: Workbench, config: Config, system: str = "", progress: bool = True) -> Run:
    """Train `encoder.path` and score it on `evaluate.split`. The weights stay in the run's checkpoint."""
    if ranks.count() > 1:
        raise ConfigError(
            f"an encoder in {ranks.count()} processes",
            "it is trained in one, and the others would train it again",
            "Start the command without torchrun",
        )
    splits = _splits(workbench, config)
    torch.manual_seed(config.seed)  # what is new in it is drawn here
    task = Task(workbench.path, config)
    load = partial(VideoClassifier.load, labels=list(task.labels), device=config.model.device, video=config.video)
    classifier = load(config.encoder.path, cache=workbench.cache)
    name = system or f"encoder ({classifier.name})"
    described = {**identity(workbench.path, config, ("clips",)), "encoder": config.encoder.decisive()}
    described["weights"] = classifier.about["recipe"]
    run = _started(workbench, config, described, name)
    if run.finished:
        return run
    with run:
        run.note(device=str(classifier.device), settings=config.to_dict())
        unreadable: dict[str, str] = {}
        clips_of = {split: _readable(classifier, clips, split, unreadable) for split, clips in splits.items()}
        rows = Rows(workbench, config, run, task, name, progress)
        places = {split: places_of(clips) for split, clips in clips_of.items()}
        truth = {split: [task.labels.index(clip.label) for clip in clips] for split, clips in clips_of.items()}
        trained = classifier.finetune(
            places["training"],
            truth["training"],
            (places["validation"], truth["validation"]),
            Recipe.of(config.encoder),
            run.path / "training",
            seed=config.seed,
            log=StepLog(partial(run.append, "steps")),
            progress=progress,
            report_to=config.report_to,
        )
        classifier.save(run.checkpoint)
        scores = {split: _scores(classifier.logits(places[split])) for split in ("test", "validation")}
        rows.add_at_temperatures(
            clips_of["test"], scores["test"], lambda: (clips_of["validation"], scores["validation"])
        )
        run.finish({**rows.summary(len(clips_of["test"])), **trained, "unreadable": unreadable})
    shutil.rmtree(run.path / "training", ignore_errors=True)
    return run


def probe(workbench: Workbench, config: Config, system: str = "", progress: bool = True) -> Run:
    """Logistic regression on embeddings of the frozen tower of `model.path`, or of `encoder.path` where that is given;
    its regularisation is the one of least NLL on validation."""
    splits, task = _splits(workbench, config), Task(workbench.path, config)
    if config.is_given("encoder.path"):
        path = config.encoder.path
        viewer = VideoClassifier.load(path, None, config.model.device, config.video, workbench.cache)
    else:
        viewer = Tower(VLM.load(config.model, config.video, cache=workbench.cache), config.model.path)
    name = system or f"probe ({viewer.about['name']})"
    described = {**identity(workbench.path, config, ("clips",)), "weights": viewer.about["recipe"]}
    run = _started(workbench, config, described, name)
    if run.finished:
        return run
    with run:
        run.note(settings=config.to_dict())
        rows = Rows(workbench, config, run, task, name, progress)
        space, errors = embedded(
            workbench.path, viewer, [clip for clips in splits.values() for clip in clips], progress
        )
        clips_of = {
            name: refuse_none([c for c in clips if c.clip_id not in errors], name) for name, clips in splits.items()
        }
        features = {name: space.vectors([clip.clip_id for clip in clips]) for name, clips in clips_of.items()}
        labels = {name: [clip.label for clip in clips] for name, clips in clips_of.items()}
        truth_V = np.array([task.labels.index(label) for label in labels["validation"]])
        fits = []
        for strength in _STRENGTHS:
            model = logistic_regression(StandardScaler(), strength)
            new = np.concatenate([features["validation"], features["test"]])
            probs = class_probabilities(model, features["training"], labels["training"], new, task.labels)
            loss = log_loss(truth_V, probs[: len(truth_V)], labels=range(len(task.labels)))
            fits.append((loss, strength, np.log(probs)))
        loss, strength, logits = min(fits, key=lambda fit: fit[0])
        validation = clips_of["validation"], _scores(logits[: len(truth_V)])
        rows.add_at_temperatures(clips_of["test"], _scores(logits[len(truth_V) :]), lambda: validation)
        facts = {"validation_nll": loss, "strength": strength, "features": features["test"].shape[1]}
        unreadable = {clip_id: str(error.reason) for clip_id, error in errors.items()}
        run.finish({**rows.summary(len(clips_of["test"])), **facts, "unreadable": unreadable})
    return run


def _splits(workbench: Workbench, config: Config) -> dict[str, list[Clip]]:
    """The labelled clips to train on, to choose by, and to score. DataError where one has none, or nothing to tell
    apart."""
    config.refuse_idle("evaluate")
    task = Task(workbench.path, config)
    training = _training(task)
    refuse_one_class(training, "training")
    return {"training": training, "validation": task.clips("validation"), "test": task.clips(config.evaluate.split)}


def _training(task: Task) -> list[Clip]:
    """The clips of all training splits; DataError where there is none."""
    clips = [clip for split in TRAINING if len(task.manifest.usable(split)) for clip in task.clips(split)]
    return clips or task.clips(TRAINING[0])  # which refuses


def _started(workbench: Workbench, config: Config, described: dict, name: str) -> Run:
    refuse_altered(config.evaluate, "what is trained and scored on the same frames")
    described = {"evaluate": {"split": config.evaluate.split}, **described, "system": name}
    return workbench.start_run("evaluate", described, name=name, seed=config.seed, dataset=config.clips.dataset)


def _readable(classifier: VideoClassifier, clips: Sequence[Clip], split: str, unreadable: dict[str, str]) -> list[Clip]:
    """Those whose frames can be had, which the cache then has."""
    for clip, place in zip(clips, places_of(clips)):
        try:
            classifier.frames(place)
        except VideoError as error:
            unreadable[clip.clip_id] = str(error.reason)
    return refuse_none([clip for clip in clips if clip.clip_id not in unreadable], split)


def _scores(logits_C_K: np.ndarray) -> Scores:
    return Scores(logits_C_K.astype(np.float64), np.full(len(logits_C_K), np.nan))
