"""What lmms-eval calls: the clip and the prompt of a document, and whether an answer is right.

An answer is a label, or an alias of one, after folding case, white space, outer quotes and final punctuation; any other
text is no answer. Nothing is searched for inside it.
"""

import json
from functools import cache
from pathlib import Path

from deepintuit.labels import normalise

FOLDER = Path(__file__).resolve().parents[1]


@cache
def about():
    return json.loads((FOLDER / "benchmark.json").read_text(encoding="utf-8"))


def doc_to_visual(doc):
    return [str(FOLDER / "test" / doc["file_name"])]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return about()["prompt"]


def label_of(answer):
    return about()["answers"].get(normalise(answer), "none")


def process_results(doc, results):
    """Metric → score; `home` is the cluster for standard errors, since clips of one home are alike."""
    label = label_of(results[0])
    accuracy = {"score": float(label == doc["label"]), "home": doc["home"]}
    no_answer = {"score": float(label == "none"), "home": doc["home"]}
    return {"accuracy": accuracy, "no_answer": no_answer, f"accuracy_{doc['slice'].replace(' ', '_')}": accuracy}


def mean(items):
    return sum(item["score"] for item in items) / len(items)
