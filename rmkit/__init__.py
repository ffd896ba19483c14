"""The module that the notebooks of the Reward Models Workbook share: one file a concept, in reading order."""

from rmkit.smollm2 import BackboneUnavailable, cache_folder
from rmkit.backbones import Backbone, load_backbone
from rmkit.preferences import Preference, PreferenceError, load_preferences, split_preferences
from rmkit.batching import Batch, Encoded, collate, encode
from rmkit.model import RewardModel
from rmkit.losses import bradley_terry
from rmkit.metrics import Accuracy, pairwise_accuracy, wilson_interval
from rmkit.trunk import Trunk, computed_once
from rmkit.checkpoints import CheckpointError
from rmkit.training import History, NonFiniteLoss, TrainConfig, fit
from rmkit.diagnosis import diagnose
from rmkit.lesson import claim, outcome, predict, start
from rmkit.widgets import SliderFigure

__all__ = [
    "Accuracy", "Backbone", "BackboneUnavailable", "Batch", "CheckpointError", "Encoded", "History",
    "NonFiniteLoss", "Preference", "PreferenceError", "RewardModel", "SliderFigure", "TrainConfig", "Trunk",
    "bradley_terry", "cache_folder", "claim", "collate", "computed_once", "diagnose", "encode", "fit",
    "load_backbone", "load_preferences", "outcome", "pairwise_accuracy", "predict", "split_preferences", "start",
    "wilson_interval",
]  # fmt: skip
