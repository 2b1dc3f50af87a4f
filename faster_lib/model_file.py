"""A trained model as one file that can be taken along: it needs no profile, no videos and no results of a study.

The file is safetensors: the tensors of both networks, aggregator and classifier, and a JSON header that says how they
are put together, how clips are cut, what was measured, and where. No code in it is run, and loading never trains.
"""

import hashlib
import json
import queue
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors

from faster_lib.data.datasets import Video, clip_frame_indices, clip_starts, read_views
from faster_lib.data.transforms import cut_frames, draw_cut
from faster_lib.data.video import read_stream
from faster_lib.inference import prepare_for_inference
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.clips import check_clip_frames
from faster_lib.models.faster import Faster, Schedule, StreamState
from faster_lib.store import write_whole
from faster_lib.workers import load_ahead

FORMAT, VERSION = "faster-model", 1


@dataclass(frozen=True)
class About:
    """What a model file says of its model."""

    expensive: str  # this and the next four as `build_backbone` and `build_aggregator` take them
    cheap: str
    width: float
    aggregator: str
    reduction: int
    schedule: str  # which network sees which clip; a stream begins it again after its last clip
    classes: tuple[str, ...]  # in the order of the scores
    clip_frames: int  # L, consecutive frames of a clip
    test_short_side_px: int  # to which a frame's short side is scaled
    crop_px: int  # the side of the square that is then cut from its centre
    gmacs: float  # counted, of one video with all clips of the schedule, in 1e9 multiply-accumulates
    measured: dict[str, Any]  # accuracies in percent, of how many videos of which split; may be empty
    made: dict[str, Any]  # versions, device, commit, time and profile


def save_model(model: Faster, about: About, path: str | Path) -> None:
    """Write a trained model and what is known of it into one file; half precision where that loses nothing.

    Raises: ValueError if a value is not finite; RuntimeError if the model is not what `about` says.
    """
    tensors = {}
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{name} of the model holds a value that is not finite; it cannot be saved")
        half = value.half() if value.is_floating_point() else value
        tensors[name] = (half if torch.equal(half.to(value.dtype), value) else value).contiguous().cpu()
    _build(about).load_state_dict(tensors)
    header = {"format": FORMAT, "version": str(VERSION), "about": json.dumps(asdict(about))}
    sha256 = hashlib.sha256(_body(write_tensors(tensors)) + header["about"].encode()).hexdigest()
    write_whole(Path(path), write_tensors(tensors, metadata=header | {"sha256": sha256}))


def load(path: str | Path, *, device: str | torch.device = "cpu", is_compiled: bool = False) -> "Model":
    """Read a model file; its model is ready to predict. Compiling takes a minute, and is worth it for many videos.

    Raises: FileNotFoundError; ValueError for a file that is no model file, is damaged, or has a newer format.
    """
    content = Path(path).read_bytes()
    try:
        header = json.loads(content[8 : -len(_body(content)) or None])["__metadata__"]
        version = {FORMAT: int(header["version"])}[header["format"]]
    except (struct.error, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no model file of this kit, or its beginning is damaged; copy it anew") from None
    if version > VERSION:
        raise ValueError(f"{path} has format {version}, this kit reads up to {VERSION}; install a newer one")
    if hashlib.sha256(_body(content) + header["about"].encode()).hexdigest() != header["sha256"]:
        raise ValueError(f"{path} is damaged: its content is not what its header says; copy it anew")
    stated = json.loads(header["about"])
    about = About(**stated | {"classes": tuple(stated["classes"])})
    model = _build(about)
    model.load_state_dict({name: value.float() for name, value in read_tensors(content).items()})
    return Model(prepare_for_inference(model, device=device, is_compiled=is_compiled), about)


def _build(about: About) -> Faster:
    check_clip_frames(about.clip_frames)
    classes = len(about.classes)
    expensive, cheap = (build_backbone(name, classes, about.width) for name in (about.expensive, about.cheap))
    aggregator = build_aggregator(about.aggregator, expensive.channels, about.reduction)
    return Faster(expensive, cheap, aggregator, Schedule(about.schedule), classes)


def _body(content: bytes) -> bytes:
    """Give what follows the header of a safetensors file, which begins with the header's length."""
    return content[8 + struct.unpack("<Q", content[:8])[0] :]


@dataclass(frozen=True)
class Prediction:
    """What a model says of a video."""

    label: str  # the most probable class
    probabilities: dict[str, float]  # of every class, 0 to 1
    gmacs: float  # spent on it, in 1e9 multiply-accumulates
    seconds: float  # from the file to here
    clips_seen: int


@dataclass(frozen=True)
class Moment:
    """What a model says of a stream after one more clip."""

    label: str
    probabilities: dict[str, float]
    frame: int  # number of the clip's last frame in the stream, from 0
    clips_seen: int  # since the stream began, or since the last reset
    dropped: int  # number of frames so far that a live stream lost, since the networks were slower


class Model:
    """A trained model out of a file."""

    def __init__(self, network: Faster, about: About):
        self.network, self.about = network, about

    def predict(self, path: str | Path) -> Prediction:
        """Classify a video file by clips over all of its length; raises VideoError if it cannot be read."""
        begin, about, state = time.perf_counter(), self.about, None
        reader = Video(Path(path)).open()
        cut = draw_cut(reader.size_px, about)

        def read(start: int) -> torch.Tensor:
            return read_views(reader, [(clip_frame_indices(start, about.clip_frames, len(reader)), cut)])[0]

        starts = clip_starts(len(reader), about.clip_frames, len(about.schedule))
        for frames in load_ahead(read, starts, workers=1):  # while the clip before is computed
            state, said = self._step(frames, state)
        return Prediction(*said, about.gmacs, time.perf_counter() - begin, len(starts))

    def watch(
        self, frames: Iterable[Any] | str | Path, *, is_live: bool = False, cut_at: float | None = None
    ) -> "Stream":
        """Classify a stream for as long as it lasts: a `Moment` after every clip of L frames.

        Args:
            frames: any iterator of frames (H, W, 3), uint8, RGB, such as a camera's; or the name of a file.
            is_live: whether frames are dropped, and counted, while the networks are busy; else the stream waits.
            cut_at: begin anew where the colours of two frames differ by more than this share, 0 to 1; None never does.
        Raises: ValueError for what is no frame, or no frame at all; VideoError for a file that cannot be read.
        """
        return Stream(self, read_stream(frames) if isinstance(frames, str | Path) else frames, is_live, cut_at)

    def _step(self, frames: torch.Tensor, state: StreamState | None) -> tuple[StreamState, tuple]:
        """Take in a clip: (L, crop, crop, 3) uint8 -> state, (label, probabilities)."""
        if state is not None:
            state = state._replace(num_clips=state.num_clips % len(self.about.schedule))  # the schedule begins again
        with torch.inference_mode():
            clip = frames.movedim(-1, 0)[None].to(self.network.feature_scales.device)
            state, logits = self.network.step(clip, state)
        probabilities = dict(zip(self.about.classes, logits[0].softmax(-1).tolist(), strict=True))
        return state, (max(probabilities, key=probabilities.get), probabilities)


class Stream:
    """The results of a stream, clip after clip; frames are read and cut in a thread of their own, ahead."""

    def __init__(self, model: Model, frames: Iterable[Any], is_live: bool, cut_at: float | None):
        self.model, self.frames, self.is_live, self.cut_at = model, frames, is_live, cut_at
        self.dropped, self._is_reset, self._is_over = 0, False, False
        self._waiting: queue.Queue = queue.Queue(2 * model.about.clip_frames)  # (number, frame or error), None at last

    def reset(self) -> None:
        """Forget what was seen: the next frame begins the first clip."""
        self._is_reset = True

    def __iter__(self) -> Iterator[Moment]:
        threading.Thread(target=self._read, daemon=True).start()
        clip, state, clips_seen, before, length = [], None, 0, None, self.model.about.clip_frames
        try:
            for number, frame in iter(self._waiting.get, None):
                if isinstance(frame, Exception):
                    raise frame
                if self._is_reset or self._is_cut(before, frame):
                    clip, state, clips_seen, self._is_reset = [], None, 0, False
                clip.append(before := frame)
                if len(clip) == length:
                    state, said = self.model._step(torch.cat(clip), state)
                    clip, clips_seen = [], clips_seen + 1
                    yield Moment(*said, number, clips_seen, self.dropped)
            if clip and not clips_seen:  # shorter than a clip: looped, as in training
                _, said = self.model._step(torch.cat([clip[i % len(clip)] for i in range(length)]), None)
                yield Moment(*said, number, 1, self.dropped)
        finally:
            self._is_over = True

    def _read(self) -> None:
        number = -1
        try:
            for number, frame in enumerate(map(torch.as_tensor, self.frames)):
                if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != torch.uint8:
                    raise ValueError(f"frame {number} is {frame.dtype} {(*frame.shape,)}; it must be uint8 (H, W, 3)")
                self._put((number, cut_frames(frame[None], draw_cut(frame.shape[:2], self.model.about))), self.is_live)
                if self._is_over:
                    return
            if number < 0:
                raise ValueError("the stream ended without a frame")
        except Exception as error:
            self._put((number, error))
        self._put(None)

    def _put(self, item: Any, may_drop: bool = False) -> None:
        while not self._is_over:
            try:
                return self._waiting.put(item, timeout=0 if may_drop else 0.1)
            except queue.Full:
                if may_drop:
                    self.dropped += 1
                    return None

    def _is_cut(self, before: torch.Tensor | None, after: torch.Tensor) -> bool:
        if self.cut_at is None or before is None:
            return False
        shares = [torch.histc(each.float(), 32, 0, 256) / each.numel() for each in (before, after)]
        return 0.5 * (shares[0] - shares[1]).abs().sum().item() > self.cut_at
