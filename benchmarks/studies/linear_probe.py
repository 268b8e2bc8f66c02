"""A linear classifier on fixed features, cross-validated: folds, fit and error.

Every set of features gets the same treatment: centred, and either standardised or divided by one number for all, so
that images have a mean squared norm of 1; then multinomial logistic regression with an L2 penalty. Scaling and penalty
are chosen on the training images of each fold alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA, KernelPCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, RepeatedStratifiedKFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""C of the logistic regression to choose from, for features whose mean squared norm is 1."""

INNER_FOLDS = 3


@dataclass(frozen=True)
class Fold:
    """Which images a classifier is fitted on, and which it is tested on."""

    training: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """Of one fold's test images, 0 to 1."""

    accuracy: float
    balanced: float
    """Mean over classes of the share of their images that are found."""
    strength: float
    """The C that was chosen."""
    standardised: bool
    """Whether each feature had its own scale."""


class UnitNorm(TransformerMixin, BaseEstimator):
    """Divides by one number, so that the images it was fitted on have a mean squared norm of 1.

    One grid of penalties then suits 8 features as well as 76,304.
    """

    def fit(self, x: NDArray, y: object = None) -> UnitNorm:
        """Measure the norm of x [N, D]."""
        self.norm_ = float(np.sqrt(np.square(x).sum(axis=1).mean())) or 1.0
        return self

    def transform(self, x: NDArray) -> NDArray:
        """Divide x [N, D] by it."""
        return x / self.norm_


def cross_validate(
    features: NDArray[np.float32], labels: NDArray, folds: Sequence[Fold], components: int | None = None
) -> list[Score]:
    """Scores of linear probes on `features` [N, D], one a fold; with `components`, on as many principal components."""
    return [_score(features, labels, fold, components) for fold in folds]


def _score(features: NDArray[np.float32], labels: NDArray, fold: Fold, components: int | None) -> Score:
    training, test, truth = features[fold.training], features[fold.test], labels[fold.test]
    if components is not None:
        reduce = principal_components(training.shape, components).fit(training)
        training, test = reduce.transform(training), reduce.transform(test)
    model = fit(training, labels[fold.training])
    found = model.predict(test)
    strength = model[-1].best_params_["C"]
    return Score(accuracy_score(truth, found), balanced_accuracy_score(truth, found), strength, model[0].with_std)


def fit(features: NDArray[np.float32], labels: NDArray) -> Pipeline:
    """The pipeline, fitted: of both scalings and all strengths that with the best log-loss in an inner validation.

    Where there are more features than images, they are first turned onto the axes that the images span. An L2 penalty
    does not see such a turn, and the weights it gives lie in that span, so the classifier is the same to rounding.
    """
    candidates = []
    for standardised in (True, False):
        turn = [principal_components(features.shape)] if features.shape[1] > len(features) else []
        prepare = make_pipeline(StandardScaler(with_std=standardised), UnitNorm(), *turn)
        inner = StratifiedKFold(INNER_FOLDS, shuffle=True, random_state=0)
        regression = LogisticRegression(max_iter=2000)
        search = GridSearchCV(regression, {"C": STRENGTHS}, scoring="neg_log_loss", cv=inner)
        search.fit(prepare.fit_transform(features), labels)
        candidates.append((search.best_score_, Pipeline([*prepare.steps, ("search", search)])))
    return max(candidates, key=lambda candidate: candidate[0])[1]


def principal_components(shape: tuple[int, ...], count: int | None = None) -> PCA | KernelPCA:
    """The first `count` principal components (all that there are: None) of features of `shape` [N, D], exact.

    From the D × D covariances, or the N × N inner products where that is smaller.
    """
    images, dims = shape
    count = min(images, dims) if count is None else min(count, images - 1, dims)
    if dims > images:
        return KernelPCA(count, kernel="linear", eigen_solver="dense")
    return PCA(count, svd_solver="covariance_eigh")


def random_folds(labels: NDArray, splits: int, repeats: int) -> list[Fold]:
    """Stratified folds, shuffled anew in each repeat."""
    chosen = RepeatedStratifiedKFold(n_splits=splits, n_repeats=repeats, random_state=0)
    return [Fold(training, test) for training, test in chosen.split(np.zeros(len(labels)), labels)]


def standard_error(scores: Sequence[float] | NDArray, folds: Sequence[Fold]) -> float:
    """Of the mean of `scores` over `folds`, whose training images overlap.

    The variance over folds times 1/folds + test/training images (Nadeau and Bengio, Inference for the generalization
    error, 2003); without the second term it would be too small.
    """
    ratio = np.mean([len(fold.test) / len(fold.training) for fold in folds])
    return float(np.sqrt((1.0 / len(folds) + ratio) * np.var(scores, ddof=1)))
