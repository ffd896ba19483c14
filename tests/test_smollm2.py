"""Protects: the default backbone is a language model that knows something, and learns what the first lesson teaches."""

import pytest
import torch

from rmkit import RewardModel, TrainConfig, fit, load_backbone, load_preferences
from tests.benchmarks.dequantised import compare


@pytest.mark.parametrize(
    ("text", "continuation"), [("The capital of France is", " Paris"), ("One, two, three, four,", " five")]
)
def test_it_knows_something(smollm2, text, continuation):
    """Weights that were read in a wrong order, or scaled wrongly, write nonsense."""
    ids = smollm2.tokenizer(text, return_tensors="pt")
    written = smollm2.model.generate(**ids, max_new_tokens=2, do_sample=False)[0]
    assert smollm2.tokenizer.decode(written).startswith(text + continuation)


def test_three_steps_lower_the_loss():
    """Full fine-tuning, on pairs that are not those it is measured on: the run that notebook 03 begins with."""
    torch.manual_seed(0)
    model = RewardModel(load_backbone("smollm2-135m"))
    data = load_preferences("json_vs_text")
    config = TrainConfig(batch_size=2, max_steps=3, warmup_ratio=0, eval_every=3)
    history = fit(model, data[::99], data[1::150], config)
    before, after = history.validations
    assert after["loss"] < 0.8 * before["loss"]
    assert history.best_step == 3


def test_the_comparison_with_the_original_sees_no_difference_of_a_model_to_itself_and_one_to_a_noisy_copy(smollm2):
    """What `python -m tests.benchmarks.dequantised` would print of two models that are known."""
    noisy = load_backbone("smollm2-135m")
    with torch.no_grad():
        noisy.model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    texts = ["The capital of France is Paris.", '{"name": "tea"}']
    same, other = (list(compare(smollm2, b, texts).values()) for b in (smollm2, noisy))
    assert same[0] == same[1]
    assert abs(same[2]) < 1e-9
    assert abs(same[3] - 1) < 1e-5
    assert other[0] != other[1]
    assert other[2] > 1e-3
    assert other[3] < 0.9999
