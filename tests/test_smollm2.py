"""Protects: the default backbone is a language model that knows something, and learns what the first lesson teaches."""

import pytest
import torch

from rmkit import RewardModel, TrainConfig, fit, load_backbone, load_preferences


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
    config = TrainConfig(batch_size=2, micro_batch_size=2, max_steps=3, warmup_ratio=0, eval_every=3)
    history = fit(model, data[::99], data[1::150], config)
    before, after = history.validations
    assert after["loss"] < 0.8 * before["loss"]
    assert history.best_step == 3
