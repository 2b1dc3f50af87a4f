"""Videos small enough for tests. A number that a test relies on is set here or in the test, never by the profile.

The fixtures import the library themselves: of several processes the first hands out files, and needs none of it.
"""

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of the code.
settings.register_profile("no_clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no_clock")


@pytest.fixture(scope="session")
def make_scene():
    """Give a function that makes a small scene, changed as its keywords say; an unknown keyword is an error."""
    from faster_lib.profiles import load_profile

    small = {
        **dict(frames=64, size_px=40, crf=18, gop_frames=16, shots=(2, 3), shortest_shot_frames=12, seed=0),
        **dict(context_share=(0.2, 0.4), action_share=(0.5, 0.5), actors=2, actor_px=8, speed_px=(1.0, 2.0)),
        **dict(context_contrast=(30.0, 30.0), actor_contrast=60.0, flicker_share=0.5, distractor_share=0.3),
        **dict(hard_share=0.0, hard_legibility=(0.0, 0.5)),
        **dict(shake_px=0.4, noise=8.0, fps=25),  # noise also makes every frame of a video different from all others
        "videos": {"train": 6, "test": 4},
    }

    def make(**changes):
        scene = load_profile("tiny").scene
        assert set(small | changes) <= set(type(scene).model_fields)  # model_copy does not look
        return scene.model_copy(update=small | changes)

    return make


@pytest.fixture(scope="session")
def make_data():
    """Give a function that makes a data section whose clips are whole 40-pixel frames, changed as its keywords say."""
    from faster_lib.profiles import load_profile

    small = dict(video_frames=64, train_short_side_px=(40, 40), test_short_side_px=40, crop_px=40, flip=False)

    def make(**changes):
        data = load_profile("tiny").data
        assert set(small | changes) <= set(type(data).model_fields)
        return data.model_copy(update=small | changes)

    return make


@pytest.fixture(scope="session")
def videos(make_scene, make_data, tmp_path_factory):
    """Six generated videos of 64 frames of 40 x 40 pixels."""
    from faster_lib.data.index import load_videos
    from faster_lib.profiles import load_profile

    small = {"scene": make_scene(), "data": make_data()}
    return load_videos(load_profile("tiny").model_copy(update=small), "train", runs=tmp_path_factory.mktemp("runs"))
