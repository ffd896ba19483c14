"""Protects: heads fitted many at once are what a trusted library fits one by one."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rmkit import Preference, graded_pairs, load_graded_answers
from rmkit.heads import differences, fit_heads


@pytest.fixture
def sets():
    """Three training sets of 40 noisy pairs with 6 features."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 40, 6, generator=generator)
    truth = torch.randn(3, 6, 1, generator=generator)
    return x * torch.where(torch.rand(3, 40, 1, generator=generator) < torch.sigmoid(x @ truth), 1, -1)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_they_are_scikit_learns_logistic_regressions(sets, ridge):
    """C is the inverse of ridge times the number of pairs; both orders of a pair count there, so twice of it."""
    for set_, head in zip(sets, fit_heads(sets, ridge), strict=True):
        both, won = torch.cat([set_, -set_]), [1] * 40 + [0] * 40
        trusted = LogisticRegression(C=1 / (ridge * 80), fit_intercept=False, tol=1e-8, max_iter=1000).fit(both, won)
        torch.testing.assert_close(head, torch.tensor(trusted.coef_[0]).float(), rtol=1e-2, atol=1e-3)


def test_each_set_has_its_own_ridge(sets):
    many = fit_heads(sets, torch.tensor([0.01, 0.1, 10.0]))
    for i, ridge in enumerate((0.01, 0.1, 10.0)):
        torch.testing.assert_close(many[i : i + 1], fit_heads(sets[i : i + 1], ridge), rtol=1e-2, atol=1e-3)


def test_one_feature_without_ridge_finds_the_log_odds():
    """Three of four pairs won: the lead is log 3."""
    head = fit_heads(torch.tensor([[[1.0], [1.0], [1.0], [-1.0]]]), 0.0)
    assert head.item() == pytest.approx(math.log(3), abs=1e-3)


def test_differences_are_better_minus_other():
    """Whatever the order in which a judgement names the two answers."""
    prompts = load_graded_answers()[:3]
    features = torch.arange(3 * 4 * 2.0).reshape(3, 4, 2)
    pair = graded_pairs(prompts)[7]
    places = [pair.prompt.ranked.index(answer) for answer in (pair.first, pair.second)]
    for better, worse in ((0, 1), (1, 0)):
        texts = tuple((pair.first.text, pair.second.text)[i] for i in (better, worse))
        found = differences(features, prompts, [Preference(pair.prompt.prompt, texts)])
        assert torch.equal(found[0], features[1, places[better]] - features[1, places[worse]])


@pytest.mark.parametrize(
    ("shape", "ridge"), [((4, 3), 1.0), ((2, 4, 3), -1.0), ((2, 4, 3), torch.ones(3)), ((2, 4, 3), torch.ones(2, 1))]
)
def test_other_shapes_and_ridges_are_refused(shape, ridge):
    with pytest.raises(ValueError, match=r"differences are \[S, M, H\]"):
        fit_heads(torch.ones(shape), ridge)
