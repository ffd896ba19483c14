"""What the tests share: the default backbone, a tiny one, and a machine that looks the same to every developer."""

import contextlib
import os
from pathlib import Path

import pytest
import torch

from rmkit import load_backbone
from tests.notebook_tool import empty_cache
from tests.tiny import make_tiny_backbone


@pytest.fixture(scope="session", autouse=True)
def plain_machine():
    """No RMKIT_BACKBONE of the developer's, and no GPU: tolerances here are those of fp32 on a CPU.

    One thread: where another program keeps the cores busy, two wait for each other at each of a tiny model's
    thousand tiny steps (measured: 500 s in place of 38 s for test_training.py).
    """
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RMKIT_BACKBONE", raising=False)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """What the developer's machine keeps, states and guesses, is neither read nor touched: of it there are the language models alone."""
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(OSError):  # of a Windows that lets nobody make links: then it is the developer's
            patch.setenv("RMKIT_CACHE", empty_cache(tmp_path_factory.mktemp("machine")))
        yield


@pytest.fixture(scope="session")
def smollm2():
    """The default backbone with its real weights, fetched once. Shared by all tests: do not change it."""
    return load_backbone("smollm2-135m")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return make_tiny_backbone(tmp_path_factory.mktemp("backbones") / "tiny")


@pytest.fixture
def tiny(tiny_folder):
    """A fresh tiny backbone, to change at will."""
    return load_backbone(str(tiny_folder))


@pytest.fixture(scope="session")
def hh_rlhf_path():
    """1,200 real preferences between dialogues. Their text is offensive: no test prints it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "hh_rlhf_harmless_base_test_first1200.jsonl.gz"
    path = Path(os.environ.get("RMKIT_HH_RLHF", default))
    if not path.is_file():
        pytest.skip(
            "no HH-RLHF: download harmless-base/test.jsonl.gz of Anthropic/hh-rlhf from the Hugging Face hub, write its "
            "first 1,200 lines to a .jsonl.gz file and set RMKIT_HH_RLHF to its path"
        )
    return path
