"""What the frozen layers compute, computed once for each text and kept on disk (notebook 03)."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from rmkit.base import BaseRewardModel, evaluating
from rmkit.batching import PROMPT, Batch, Encoded, ranks_tensor
from rmkit.checkpoints import fingerprint
from rmkit.model import POOLINGS, RewardModel
from rmkit.preferences import Preference
from rmkit.smollm2 import cache_folder

DEFAULT_GB = 2.0  # of disk, for all models and data sets together
DIGEST = 16  # bytes in front of every entry, by which a damaged one is known
OVERHEAD = 120  # bytes of an entry that are not states
# of a config: what a name, a head or a generation wants, and no hidden state depends on
UNIMPORTANT = (
    "_name_or_path", "transformers_version", "dtype", "architectures", "problem_type", "id2label", "label2id",
    "pad_token_id", "bos_token_id", "eos_token_id", "use_cache", "tie_word_embeddings",
)  # fmt: skip


class Trunk:
    """The frozen part of a reward model, and the store of what it gave for every text.

    With `trainable="head"` that is the whole body, and what is kept is what the head reads: one vector [H] a completion.
    With `"last:n"` it is the embedding and the layers below the last n, and what is kept is what enters those n: a
    hidden state [H] for every token, of a prompt [P, H] once and of each of its completions [C, H].

    Nothing is approximated: an entry is found by a hash of the frozen weights, their number of layers, the precision
    that they compute in, and the tokens that it was computed from, and a token sees nothing but those before it. What
    is read differs from what would be computed by the rounding of another batch's sums.
    """

    def __init__(self, model: BaseRewardModel):
        self.model, self.body = model, model.body
        frozen = frozen_layers(model)
        if not frozen:
            raise ValueError(
                f"with trainable={model.settings['trainable']!r} no layer is frozen: there is nothing to keep"
            )
        self.whole = frozen == len(self.body.layers)
        self.bottom = _part(self.body, slice(0, frozen), self.body.norm if self.whole else nn.Identity())
        self.top = _part(self.body, slice(frozen, None), self.body.norm)
        self.folder = trunk_folder() / self._key()
        self.room = 0.0  # bytes that may still be written
        self.computed = 0  # preferences that went through the frozen layers

    def hidden(self, encoded: Sequence[Encoded], batch: Batch) -> torch.Tensor:
        """What enters the part that trains, as `batch` lays it out: [B, K, H] for the head, else [N, T, H]."""
        size = (*(batch.ranks if self.whole else batch.segment).shape, self.body.config.hidden_size)
        hidden = torch.zeros(size)
        for b, parts in enumerate(self.states(encoded)):
            for places, part in zip(self._places(batch, b, len(encoded[b].completions)), parts, strict=True):
                for place in places:
                    hidden[place] = part
        return hidden

    def states(self, encoded: Sequence[Encoded]) -> list[list[torch.Tensor]]:
        """The parts of every preference, on the CPU: read where they are kept and sound, else computed and kept."""
        states = [[self._read(path) for path in self._paths(e)] for e in encoded]
        missing = [i for i, parts in enumerate(states) if any(part is None for part in parts)]
        if missing:
            for i, parts in zip(missing, self._compute([encoded[i] for i in missing]), strict=True):
                states[i] = parts
                for path, part in zip(self._paths(encoded[i]), parts, strict=True):
                    self._keep(path, part)
        return states

    @torch.no_grad()
    def _compute(self, encoded: Sequence[Encoded]) -> list[list[torch.Tensor]]:
        self.computed += len(encoded)
        batch = self.model.lay_out(encoded)
        hidden = self.model.run(self.bottom, batch)  # (N, T, H)
        if self.whole:
            hidden = POOLINGS[self.model.settings["pooling"]](hidden, batch)  # (B, K, H)
        hidden, batch = hidden.float().cpu(), batch.to("cpu")
        return [
            [hidden[places[0]].clone() for places in self._places(batch, b, len(e.completions))]
            for b, e in enumerate(encoded)
        ]

    def _places(self, batch: Batch, b: int, completions: int) -> list[list[tuple]]:
        """Where each part of preference b stands in `hidden`. A prompt stands in every row of its completions."""
        if self.whole:
            return [[(b, k)] for k in range(completions)]
        rows, slots = batch.row[b, :completions].tolist(), batch.slot[b, :completions].tolist()
        prompt = [(row, batch.segment[row] == PROMPT) for row in set(rows)]
        return [prompt, *([(row, batch.segment[row] == slot)] for row, slot in zip(rows, slots, strict=True))]

    def _paths(self, encoded: Encoded) -> list[Path]:
        """The file of each part. A prompt is the same whatever answers it."""
        texts = [(encoded.prompt, completion) for completion in encoded.completions]
        if not self.whole:
            texts.insert(0, (encoded.prompt,))
        names = [hashlib.sha256(json.dumps(text).encode()).hexdigest()[:32] for text in texts]
        return [self.folder / name[:2] / name for name in names]

    def make_room(self, encoded: Sequence[Encoded]) -> None:
        """Delete what these preferences do not need, the longest unused first, until what they still miss will fit.

        Two processes at once may each fill the same room; the next one to begin deletes what is too much.
        """
        needed = {}  # each file once, whatever the number of judgements on a prompt, and the vectors that it holds
        for e in encoded:
            lengths = [1] * len(e.completions) if self.whole else [len(e.prompt), *map(len, e.completions)]
            needed.update(zip(self._paths(e), lengths, strict=True))
        for path in needed:
            with contextlib.suppress(OSError):
                os.utime(path)
        kept = [(path in needed, used, size, path) for path, used, size in entries()]
        self.room = size_cap() - sum(size for _, _, size, _ in kept)
        size = self.body.config.hidden_size
        wanted = sum(4 * size * vectors + OVERHEAD for path, vectors in needed.items() if not path.is_file())
        for is_needed, _, size, path in sorted(kept):
            if self.room >= (0 if is_needed else wanted):
                break
            with contextlib.suppress(OSError):  # of a store that others only read
                path.unlink(missing_ok=True)
                self.room += size
        if self.room < wanted:
            warnings.warn(
                f"the frozen layers' states of these preferences take {(wanted - self.room) / 1e9:.2g} GB more than the "
                f"store may hold ({size_cap() / 1e9:g} GB): what does not fit is computed anew whenever it is read. "
                "RMKIT_TRUNK_GB sets the size",
                stacklevel=2,
            )

    def _read(self, path: Path) -> torch.Tensor | None:
        """An entry; None where there is none. One whose bytes are not those that were written is deleted."""
        try:
            content = path.read_bytes()
            digest, blob = content[:DIGEST], content[DIGEST:]
            if hashlib.blake2b(blob, digest_size=DIGEST).digest() == digest:
                return safetensors.torch.load(blob)["states"]
            path.unlink()
            self.room += len(content)
        except OSError:
            pass
        return None

    def _keep(self, path: Path, part: torch.Tensor) -> None:
        """Write an entry, whole or not at all. A disk that takes no more is told once; the training goes on without."""
        blob = safetensors.torch.save({"states": part})
        content = hashlib.blake2b(blob, digest_size=DIGEST).digest() + blob
        if self.room < len(content) or path.is_file():  # there, as a prompt that two preferences share
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix="writing-") as work:
                (Path(work) / path.name).write_bytes(content)
                os.replace(Path(work) / path.name, path)
            self.room -= len(content)
        except OSError as error:
            self.room = 0
            warnings.warn(
                f"the frozen layers' states cannot be kept in {trunk_folder()}: {error}. Training goes on without; "
                "free some room there, or set RMKIT_CACHE to a folder that has it",
                stacklevel=2,
            )

    def _key(self) -> str:
        """A hash of all that the states depend on beside the tokens."""
        config = self.bottom.config.to_dict()
        for unimportant in UNIMPORTANT:
            config.pop(unimportant, None)
        setting = [config, str(self.model.autocast), self.model.device.type]
        if self.whole:
            setting.append(self.model.settings["pooling"])
        setting.append(fingerprint(self.bottom.state_dict()))
        return hashlib.sha256(json.dumps(setting, sort_keys=True, default=str).encode()).hexdigest()[:32]


@contextlib.contextmanager
def computed_once(model: BaseRewardModel, encoded: Sequence[Encoded]) -> Iterator[Trunk | None]:
    """Within it, `model.batch` reads what the frozen layers give from disk, and keeps there what it had to compute.

    encoded: the preferences that will be read, for which there should be room.

    None, and nothing kept, where every layer trains, where the frozen ones drop at random, or where
    `RMKIT_TRUNK_GB` is 0.
    """
    if model.trunk:  # one within another
        model.trunk.make_room(encoded)
        yield model.trunk
        return
    if frozen_layers(model) and not getattr(model.body.config, "attention_dropout", 0) and size_cap():
        model.trunk = Trunk(model)
        try:
            model.trunk.make_room(encoded)
            yield model.trunk
        finally:
            model.trunk = None
    else:
        yield None


@torch.no_grad()
def features(
    model: RewardModel, preferences: Sequence[Preference], micro_batch_tokens: int | None = None
) -> torch.Tensor:
    """What the head reads of every completion, [N, K, H] in fp32 on the CPU, 0 where there is none; without dropout.

    Where the body is frozen (`trainable="head"`) the store keeps it. A linear head trained on these is the same model
    as `fit` trains, in milliseconds, and the differences of two completions are what Bradley–Terry regresses on.
    micro_batch_tokens: as in `BaseRewardModel.micro_batches`.
    """
    if not isinstance(model, RewardModel):
        raise TypeError(f"features wants a RewardModel, whose head reads them: got {type(model).__name__}")
    encoded = model.encode(preferences)
    if not encoded:
        return torch.zeros(0, 0, model.body.config.hidden_size)
    hidden = torch.zeros(*ranks_tensor(encoded).shape, model.body.config.hidden_size)
    with evaluating(model), computed_once(model, encoded):
        for micro in model.micro_batches(encoded, micro_batch_tokens):
            pooled = model.pooled(model.batch([encoded[i] for i in micro])).cpu()
            hidden[micro, : pooled.shape[1]] = pooled
    return hidden.masked_fill((ranks_tensor(encoded) < 0)[..., None], 0.0)


def frozen_layers(model: BaseRewardModel) -> int:
    """How many layers, counted from the embedding up, train nothing. The final norm counts with the last layer."""
    *lower, last = model.body.layers
    parts = [model.body.embed_tokens, *lower, nn.ModuleList([last, model.body.norm])]
    trains = [any(p.requires_grad for p in part.parameters()) for part in parts]
    return max(trains.index(True) - 1, 0) if any(trains) else len(model.body.layers)


def trunk_folder() -> Path:
    """Where the entries are: `trunk` in rmkit's cache folder."""
    return cache_folder() / "trunk"


def size_cap() -> float:
    """Bytes that the store may hold: `RMKIT_TRUNK_GB`, else 2 GB. Raises ValueError for what is no size."""
    said = os.environ.get("RMKIT_TRUNK_GB") or str(DEFAULT_GB)
    try:
        gigabytes = float(said)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        raise ValueError(
            f"RMKIT_TRUNK_GB is {said!r}: it wants gigabytes, such as {DEFAULT_GB:g}, or 0 to keep nothing"
        )
    return gigabytes * 1e9


def _part(body: nn.Module, layers: slice, norm: nn.Module) -> nn.Module:
    """The body with some of its layers alone. The weights are shared, so what trains in one trains in the other."""
    part = copy.copy(body)
    part._modules = body._modules.copy()  # which copy.copy leaves shared
    part.config = copy.deepcopy(body.config)
    part.layers, part.norm = body.layers[layers], norm
    part.config.num_hidden_layers = len(part.layers)
    if getattr(body.config, "layer_types", None):  # of Qwen: how each layer attends
        part.config.layer_types = body.config.layer_types[layers]
    return part


def entries() -> list[tuple[Path, float, int]]:
    """(path, time of last use, bytes) of everything that is kept, for any model."""
    found = []
    for path in trunk_folder().glob("*/*/*"):
        with contextlib.suppress(FileNotFoundError):  # another process may be making room, too
            stat = path.stat()
            if path.is_file():  # and no folder in which an entry is being written
                found.append((path, stat.st_mtime, stat.st_size))
    return found
