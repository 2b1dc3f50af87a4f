"""Which frames of a video make up its clips: integer arithmetic only.

A clip is L consecutive frames. A video shorter than a clip is looped.
"""

import torch


def clip_frame_indices(start: int, clip_frames: int, num_frames: int) -> list[int]:
    """List the frames of the clip that begins at `start`, looping over a video that is too short.

    Raises: ValueError if the video has no frame, or `start` lies outside it.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; a video needs at least one frame")
    if not 0 <= start < num_frames:
        raise ValueError(f"a clip cannot start at frame {start} of a video with {num_frames} frames")
    return [(start + i) % num_frames for i in range(clip_frames)]


def random_clip_start(num_frames: int, clip_frames: int, generator: torch.Generator) -> int:
    """Draw the first frame of a clip of L consecutive frames, every possible one equally likely."""
    return int(torch.randint(_last_start(num_frames, clip_frames) + 1, (), generator=generator))


def random_clip_starts(num_frames: int, clip_frames: int, num_clips: int, generator: torch.Generator) -> list[int]:
    """Draw N clips independently and put them in temporal order.

    Source: FASTER, "Setups for learning to aggregate"; the order is ours, the paper does not say.
    """
    return sorted(random_clip_start(num_frames, clip_frames, generator) for _ in range(num_clips))


def uniform_clip_starts(num_frames: int, clip_frames: int, num_clips: int) -> list[int]:
    """Place N clips uniformly, the first at the video's beginning and the last at its end; one clip goes to the middle.

    Source: FASTER, "we uniformly sample N clips to cover the whole video".
    """
    if num_clips < 1:
        raise ValueError(f"num_clips is {num_clips}; at least one clip is needed")
    last = _last_start(num_frames, clip_frames)
    if num_clips == 1:
        return [last // 2]
    return [i * last // (num_clips - 1) for i in range(num_clips)]


def num_clips_covering(video_frames: int, clip_frames: int) -> int:
    """Give the N for which L x N equals the video's frames.

    Raises: ValueError if L does not divide them.
    """
    if video_frames % clip_frames:
        fitting = [length for length in range(8, video_frames + 1, 8) if video_frames % length == 0]
        raise ValueError(
            f"L is {clip_frames}, but L x N must equal the profile's {video_frames} frames; "
            f"choose L from {', '.join(map(str, fitting))}"
        )
    return video_frames // clip_frames


def _last_start(num_frames: int, clip_frames: int) -> int:
    if num_frames < 1 or clip_frames < 1:
        raise ValueError(f"a clip of {clip_frames} frames cannot be taken from a video of {num_frames} frames")
    return max(num_frames - clip_frames, 0)
