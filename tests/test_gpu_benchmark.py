"""The benchmark of a GPU, where there is none: its script runs from end to end, and it counts operations right."""

import os
import subprocess
import sys

import pytest
from torch.utils.flop_counter import FlopCounterMode

from rmkit import RewardModel, bradley_terry
from tests.benchmarks import gpu
from tests.notebook_tool import ROOT


def test_every_row_is_measured(tmp_path):
    """In miniature on the CPU. Of what it compares with, TRL alone may be missing."""
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--smoke", "--out", str(tmp_path / "report.md")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = (tmp_path / "report.md").read_text("utf-8")
    assert "its numbers mean nothing" in report and report in done.stdout
    rows = [line for line in report.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) > 40
    assert [row for row in rows if "Error" in row and "No module named 'trl'" not in row] == []
    assert not any("skipped" in row for row in rows)


@pytest.mark.parametrize("trainable", ["all", "last:2"])
def test_operations_are_those_that_torch_counts(trainable):
    """Rows of one length, none shared, no padding. torch counts attention whole, where a token sees half of it at most."""
    backbone = gpu.random_backbone(gpu.SMOKE, None)
    backbone.model.set_attn_implementation("eager")  # whose products torch counts, one by one
    model = RewardModel(backbone, trainable=trainable)
    encoded = gpu.Shape(2, 4, 12, 12).draw(gpu.SMOKE.config.vocab_size)
    batch = model.collate(encoded)
    with FlopCounterMode(display=False) as counter:
        bradley_terry(model(batch), batch.ranks).sum().backward()
    rows, width = batch.input_ids.shape
    config = gpu.SMOKE.config
    trained = config.num_hidden_layers if trainable == "all" else 2
    unseen = 4 * config.hidden_size * rows * width * (width - 1) // 2  # in a layer, forward
    unseen *= config.num_hidden_layers + 2 * trained
    head = (
        2 * 4 * config.hidden_size * 2
    )  # of 4 completions, forward and the weight's gradient; its states' where the body trains
    assert gpu.flops(model, [batch]) == pytest.approx(counter.get_total_flops() - unseen, abs=2 * head)
