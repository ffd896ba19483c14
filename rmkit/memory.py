"""How much memory a run will take, and did."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from rmkit.base import MICRO_BATCH_TOKENS, BaseRewardModel, evaluating
from rmkit.batching import Batch, Encoded

ROOM = 0.9  # of what is free: the allocator's gaps and the kernels' working memory want the rest
ENOUGH_TOKENS = 2048  # smaller micro-batches would leave a GPU waiting: sooner compute layers twice


class PeakMemory:
    """The highest memory inside a `with`, in bytes: of this process on a CPU (asked 20 times a second), of tensors on a GPU."""

    def __init__(self, device: torch.device):
        self.device, self.peak, self._done = device, 0, threading.Event()

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            gc.collect()
            with contextlib.suppress(
                OSError, AttributeError, TypeError
            ):  # glibc keeps what was freed: give it back, or it counts
                ctypes.CDLL(None).malloc_trim(0)
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _watch(self):
        process, done = psutil.Process(), False
        while not done:
            self.peak = max(self.peak, process.memory_info().rss)
            done = self._done.wait(0.05)

    def __exit__(self, *_):
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._done.set()
            self._thread.join()


@dataclass(frozen=True)
class MemoryPlan:
    """How a run will fit into memory: micro-batches of so many tokens, and whether layers are computed twice to save room."""

    micro_batch_tokens: int
    checkpointing: bool
    bytes_needed: float  # beside the weights that are there already
    bytes_free: float


def plan_memory(
    model: BaseRewardModel, encoded: Sequence[Encoded], micro_batch_tokens: int | None, parts: int = 1
) -> MemoryPlan:
    """Decide before a run how it will fit: smaller micro-batches first, then gradient checkpointing (arXiv:1604.06174).

    Neither changes the gradient; checkpointing computes every layer's forward pass a second time. What a token keeps for
    the way back is measured on two small batches, the rest is counted: see `fixed_bytes`.
    parts: into how many FSDP will cut the model, which is whole now.
    Raises MemoryError, on a GPU, where not even the longest preference fits, with what there is to change; warns on a
    CPU, where the operating system may still find room.
    """
    wanted = micro_batch_tokens or MICRO_BATCH_TOKENS[model.device.type]
    # one that is longer than the budget is a micro-batch of its own
    longest = max(model.lay_out([e]).input_ids.numel() for e in _longest(encoded))
    free, fixed = free_bytes(model.device), fixed_bytes(model, parts)
    try:
        with evaluating(model):  # which draws no random numbers
            a_token = bytes_a_token(model)
    except torch.OutOfMemoryError:  # of a GPU that holds the weights, and little more
        a_token = math.inf
    layers = sum(any(p.requires_grad for p in layer.parameters()) for layer in model.body.layers) or 1
    # with checkpointing, each layer keeps what enters it, in fp32, and one at a time all the rest
    again = a_token / layers + 4 * model.body.config.hidden_size * layers
    for checkpointing, each in ((False, a_token), (True, again)):
        needed = fixed + max(longest, min(wanted, ENOUGH_TOKENS)) * each
        if needed <= ROOM * free:
            affordable = int((ROOM * free - fixed) / each) if each else wanted
            tokens = min(wanted, max(affordable, 1))
            return MemoryPlan(tokens, checkpointing, fixed + max(longest, tokens) * each, free)
    rest = f"{(needed - fixed) / 1e9:.1f} GB" if math.isfinite(needed) else "more than there is"
    message = (
        f"training {model.settings['trainable']!r} of {model.backbone_name} takes about {fixed / 1e9:.1f} GB beside the "
        f"weights, for gradients and AdamW's moments, and {rest} for the longest preference "
        f"({longest} tokens); {free / 1e9:.1f} GB are free on {model.device}. Train less of it ('lora', 'last:2', 'head'), cut "
        "rows with a smaller max_length, or take a smaller backbone"
    )
    if model.device.type == "cuda":
        raise MemoryError(message)
    warnings.warn(message, stacklevel=4)
    return MemoryPlan(min(wanted, longest), True, needed, free)


def free_bytes(device: torch.device) -> float:
    """What this process may still take, of the GPU or of the machine, which it shares with those that train beside it."""
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by `accelerate launch`


def fixed_bytes(model: BaseRewardModel, parts: int = 1) -> float:
    """What training takes whatever the batch: of each trained parameter the fp32 gradient and AdamW's two moments, 12 bytes;
    of each matrix the copy that autocast makes, 2 bytes; on a CPU the best weights so far, 4 bytes.

    Of a model in several parts, a process keeps one of all that trains, and gives the whole weights away; it gathers what is
    outside the layers and two layers at a time, with their gradients, and of frozen weights it has a part more.
    """
    trained = model.trainable_parameters()
    kept = 0 if model.device.type == "cuda" else 4
    copies = 2 * sum(p.numel() for p in model.body.parameters() if p.ndim >= 2) if model.autocast else 0
    if parts == 1:
        return (12 + kept) * trained + copies
    everything = sum(p.numel() for p in model.parameters())
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.body.layers]
    gathered = 8 * (everything - sum(layers) + 2 * max(layers))
    return (12 * trained + 4 * everything) / parts + kept * trained - 4 * trained + gathered + copies


def bytes_a_token(model: BaseRewardModel) -> float:
    """What one token more of a training batch keeps for the way back: the difference of two small batches, measured.

    Rows of a shared prompt, where the model has them, which keep a little more than others: their attention wants a mask, and
    the keys and values of a group repeated. The mask's share grows with the row: a tenth more at some 1,000 tokens.
    """
    if not any(p.requires_grad for p in model.body.parameters()):
        return 0.0
    tokens, kept = [], []
    for length in (8, 16):
        ids = (model.tokenizer.pad_token_id,) * length
        batch = model.lay_out([Encoded(ids, (ids, ids), (0, 1))])
        tokens.append(batch.input_ids.numel())
        kept.append(_saved_bytes(model, batch))
    return (kept[1] - kept[0]) / (tokens[1] - tokens[0])


def _saved_bytes(model: BaseRewardModel, batch: Batch) -> int:
    """Bytes of what a forward pass keeps for the backward one, each storage once. Parameters are among them in any batch."""
    kept = {}

    def keep(tensor: torch.Tensor) -> None:
        """And give the graph nothing to hold: an output that a step keeps for itself would hold it, and it the weights, for ever."""
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        model.hidden_states(batch).sum()
    return sum(storage.nbytes() for storage in kept.values())


def _longest(encoded: Sequence[Encoded]) -> list[Encoded]:
    """The one with the widest row, and the one with the most tokens."""
    return [
        max(encoded, key=lambda e: e.length),
        max(encoded, key=lambda e: len(e.prompt) + sum(map(len, e.completions))),
    ]
