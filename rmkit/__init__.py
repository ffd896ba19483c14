"""The module that the notebooks of the Reward Models Workbook share: one file a concept, in reading order."""

from rmkit.smollm2 import BackboneUnavailable, cache_folder
from rmkit.backbones import Backbone, load_backbone
from rmkit.preferences import Preference, PreferenceError, load_preferences, split_preferences
from rmkit.batching import Batch, Encoded, collate, encode
from rmkit.model import RewardModel
from rmkit.losses import bradley_terry
from rmkit.graded import GradedAnswer, GradedPair, GradedPrompt, graded_pairs, load_graded_answers
from rmkit.annotators import Annotator, Ceilings, ceilings, panel_ratings
from rmkit.metrics import Accuracy, Estimate, pairwise_accuracy, wilson_interval
from rmkit.trunk import Trunk, computed_once, features
from rmkit.checkpoints import CheckpointError
from rmkit.training import History, NonFiniteLoss, TrainConfig, fit
from rmkit.diagnosis import diagnose
from rmkit.reporting import Report, report
from rmkit.dpo import ImplicitRewardModel, LogProbabilities, log_probabilities
from rmkit.lesson import claim, outcome, predict, predictions, start
from rmkit.widgets import Playground, SliderFigure
from rmkit.quizzes import quiz

__all__ = [
    "Accuracy", "Annotator", "Backbone", "BackboneUnavailable", "Batch", "Ceilings", "CheckpointError", "Encoded",
    "Estimate", "GradedAnswer", "GradedPair", "GradedPrompt", "History", "ImplicitRewardModel", "LogProbabilities", "NonFiniteLoss", "Preference",
    "Playground", "PreferenceError", "Report", "RewardModel", "SliderFigure", "TrainConfig", "Trunk", "bradley_terry", "cache_folder",
    "ceilings", "claim", "collate", "computed_once", "diagnose", "encode", "features", "fit", "graded_pairs",
    "load_backbone", "load_graded_answers", "load_preferences", "log_probabilities", "outcome", "pairwise_accuracy", "panel_ratings",
    "predict", "predictions", "quiz", "report", "split_preferences", "start", "wilson_interval",
]  # fmt: skip
