"""The linear head, one of the ways to a class distribution: fitted on hidden states, kept beside the calibrator's
weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from deepintuit import disk
from deepintuit.errors import ModelError
from deepintuit.metrics import apply_temperature, nll

HEAD = "head.safetensors"
"""Its file in the checkpoint of a calibrate run."""


@dataclass(frozen=True)
class LinearHead:
    """`weight_K_D`, `bias_K`, over features standardised by `mean_D` and `scale_D`."""

    weight_K_D: np.ndarray
    bias_K: np.ndarray
    mean_D: np.ndarray
    scale_D: np.ndarray

    def __call__(self, hidden_C_D: np.ndarray) -> np.ndarray:
        if hidden_C_D.shape[1] != len(self.mean_D):
            raise ModelError(
                f"a linear head over {len(self.mean_D)} features on hidden states of {hidden_C_D.shape[1]}",
                "it was fitted on another backbone",
                "Score the reasoner that the calibrate run started from, with its model.path",
            )
        return ((hidden_C_D - self.mean_D) / self.scale_D) @ self.weight_K_D.T + self.bias_K

    def save(self, path: Path) -> None:
        with disk.replacing(path) as temporary:
            save_file({name: np.ascontiguousarray(value) for name, value in self.__dict__.items()}, temporary)

    @classmethod
    def load(cls, path: Path) -> LinearHead:
        """Raises `ModelError` where the file is damaged, or its tensors are not those of a head."""
        try:
            head = cls(**load_file(path))
            classes, width = head.weight_K_D.shape
            fits = head.bias_K.shape == (classes,) and head.mean_D.shape == head.scale_D.shape == (width,)
            why = "" if fits else "its tensors are of different shapes"
            if fits and not all(np.isfinite(value).all() for value in head.__dict__.values()):
                why = "it holds values that are no numbers"
        except (OSError, TypeError, ValueError, SafetensorError) as error:
            why = str(error).splitlines()[0]
        if why:
            raise ModelError(
                f"the linear head {str(path)!r} cannot be used",
                why,
                "Remove the run, and run `deepintuit calibrate` again",
            )
        return head


def fit_head(
    hidden_R_D: np.ndarray, targets_R: np.ndarray, held_out_V_D: np.ndarray, truth_V: np.ndarray, classes: int
) -> LinearHead:
    """Logistic regression on hidden states, its strength chosen by NLL on the held-out ones. A class
    without a row gets almost nothing."""
    scaler = StandardScaler().fit(hidden_R_D)
    heads = []
    for strength in (0.001, 0.01, 0.1, 1.0):
        model = LogisticRegression(C=strength, max_iter=500).fit(scaler.transform(hidden_R_D), targets_R)
        weight, bias = np.zeros((classes, hidden_R_D.shape[1])), np.full(classes, -20.0)
        if len(model.classes_) == 2:
            weight[model.classes_[1]], bias[model.classes_] = model.coef_[0], (0.0, model.intercept_[0])
        else:
            weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
        heads.append(LinearHead(weight, bias, scaler.mean_, scaler.scale_))
    return min(heads, key=lambda head: nll(apply_temperature(head(held_out_V_D), 1.0), truth_V))
