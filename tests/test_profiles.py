"""Tests of faster_lib.profiles: a profile is right and frozen, or refused with every fault and its value named."""

import copy

import pytest
import yaml
from pydantic import ValidationError

from faster_lib.paths import PARAMS
from faster_lib.profiles import ProfileError, load_profile

PROFILES = sorted(path.stem for path in PARAMS.glob("*.yaml"))
MISSING = "(missing)"  # a text, so that test names are the same in every process


def changed(folder, **changes):
    """Write tiny.yaml into a folder, changed at places such as data__crop_px, and load it."""
    content = yaml.safe_load((PARAMS / "tiny.yaml").read_text(encoding="utf-8"))
    for place, value in changes.items():
        *sections, key = place.split("__")
        section = content
        for name in sections:
            section = section[name]
        if value is MISSING:
            del section[key]
        else:
            section[key] = value
    (folder / "changed.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_profile("changed", folder=folder)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_loads_with_every_value_of_its_file(name):
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return list(value) if isinstance(value, tuple | list) else value

    content = yaml.safe_load((PARAMS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert plain(load_profile(name).model_dump()) == {"name": name, **content}


def test_the_default_profile_is_there_and_small_changes_load(tmp_path):
    assert "tiny" in PROFILES
    profile = changed(tmp_path, data__flip=True, scene__noise=3)  # a whole number is a good float
    assert profile.name == "changed" and profile.data.flip is True and profile.scene.noise == 3.0


@pytest.mark.parametrize(
    ("changes", "quoted"),
    [
        ({"data__crop_pix": 49}, "data.crop_pix: unknown key (its value is 49); did you mean 'crop_px'?"),
        ({"scene__wombat": [1]}, "scene.wombat: unknown key (its value is [1])\n"),
        ({"backbone_trainings": 1}, "did you mean 'backbone_training'?"),
        ({"aggregator_training__dropuot": 0.1}, "did you mean 'dropout'?"),
        ({"backbone_training__learning_rate": "1e-3"}, "'1e-3'; YAML reads 1e-3 as text, write 1.0e-3"),
        ({"data__flip": "no"}, "data.flip: Input should be a valid boolean (it is 'no')"),
        ({"loading__workers": 2.0}, "loading.workers: Input should be a valid integer (it is 2.0)"),
        ({"loading__workers": True}, "loading.workers: Input should be a valid integer (it is True)"),
        ({"loading__workers": -1}, "greater than or equal to 0 (it is -1)"),
        ({"backbone_training__optimiser": "adam"}, "'adamw' or 'sgd' (it is 'adam')"),
        ({"scene__shots": [1, 2, 3]}, "scene.shots"),
        ({"loading": None}, "loading: Input should be an object (it is None)"),
        (
            {"networks__cheap": "r2plus1d_50", "networks__cheap_weights": "a.pth"},
            "expensive and cheap are both 'r2plus1d_50', but expensive_weights is None and cheap_weights is 'a.pth'",
        ),
        ({"networks__width": MISSING}, "networks.width: this key is missing"),
        ({"loading": MISSING}, "loading: this key is missing"),
        ({"data__crop_px": 1000}, "data: crop_px is 1000, more than the shortest side of"),
        ({"data__train_short_side_px": [60, 50]}, "train_short_side_px is [60, 50]; the first must not exceed"),
        ({"data__video_frames": 8}, "but data.video_frames is 8"),
        ({"scene__shortest_shot_frames": 10_000}, "shots of 10000 frames exceed"),
        ({"data__source": "annotated"}, "data.source is 'annotated' and data.annotations None, but there is a scene"),
        ({"data__source": "ucf101", "data__annotations": "lists"}, "data.annotations 'lists', but there is a scene"),
        ({"data__source": "ucf101", "data__root": "videos"}, "whose root is 'videos' need no scene (scene: null)"),
        ({"data__source": "ucf101", "scene": None}, "ucf101 videos whose root is None need a scene"),
        ({"data__root": "videos"}, "root is 'videos', but generated videos have none"),
        ({"scene": None}, "generated videos need a scene section"),
        (
            {"pretraining": {"profile": "smoke"}, "networks__cheap_weights": "a.pth"},
            "'cheap_weights': 'a.pth'}, but pretraining gives both networks",
        ),
    ],
    ids=lambda value: ",".join(value) + "=" + ",".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_wrong_profile_is_refused_with_the_place_the_value_and_what_would_be_right(tmp_path, changes, quoted):
    with pytest.raises(ProfileError) as caught:
        changed(tmp_path, **changes)
    assert "params/changed.yaml has 1 fault(s):" in str(caught.value)
    assert quoted in f"{caught.value}\n"


def test_only_the_papers_networks_on_real_videos_are_of_the_papers_scale():
    kinetics = load_profile("kinetics400")
    other = kinetics.networks.model_copy(update={"cheap": "torchvision/s3d"})
    assert kinetics.is_paper_scale and not kinetics.model_copy(update={"networks": other}).is_paper_scale


def test_all_faults_are_listed_at_once(tmp_path):
    with pytest.raises(ProfileError) as caught:
        changed(tmp_path, data__flip="no", networks__widht=1.0, networks__width=MISSING, loading__workers=-1)
    message = str(caught.value)
    assert message.startswith("params/changed.yaml has 4 fault(s):") and len(message.splitlines()) == 5
    for place in ("data.flip", "networks.widht", "networks.width", "loading.workers"):
        assert f"\n  {place}: " in message


@pytest.mark.parametrize(
    ("pretraining", "changes", "quoted"),
    [
        ("nowhere", {}, "changed.yaml: pretraining.profile is 'nowhere': unknown profile 'nowhere'; choose one of"),
        ("changed", {}, "pretraining.profile is 'changed', which is 'changed' itself or starts from it"),
        ("other", {"pretraining": {"profile": "changed"}}, "other.yaml: pretraining.profile is 'changed', which is"),
        ("other", {"networks": {"width": 0.25}}, "is 'other', whose networks.width is 0.25; here it is 0.125"),
        ("other", {"networks": {"cheap": "r3d_50"}}, "whose networks.cheap is 'r3d_50'; here it is 'r2d_26'"),
    ],
)
def test_a_pretraining_that_is_missing_circular_or_of_other_networks_is_refused(tmp_path, pretraining, changes, quoted):
    content = changed(tmp_path).model_dump(mode="json", exclude={"name"})
    other = copy.deepcopy(content)
    for section, values in changes.items():
        other[section] = {**(other[section] or {}), **values}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        changed(tmp_path, pretraining={"profile": pretraining})
    assert quoted in str(caught.value)


@pytest.mark.parametrize("key", [key for key, value in load_profile("tiny").scene if isinstance(value, tuple)])
def test_a_range_whose_first_number_exceeds_the_second_is_refused(tmp_path, key):
    low, high = (1, 2) if isinstance(getattr(load_profile("tiny").scene, key)[0], int) else (0.25, 0.5)
    changed(tmp_path, **{f"scene__{key}": [low, high]})
    with pytest.raises(ProfileError, match=key):
        changed(tmp_path, **{f"scene__{key}": [high, low]})


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", "params/bad.yaml holds None"),
        ("- data\n", r"params/bad.yaml holds \['data'\]; it must hold sections"),
        ("tiny\n", "params/bad.yaml holds 'tiny'"),
        ("data: [1,\n", "params/bad.yaml is not valid YAML"),
        ("loading: {workers: 1, workers: 2}\n", "params/bad.yaml.*workers"),
    ],
    ids=["empty", "list", "word", "broken", "key written twice"],
)
def test_a_file_that_holds_no_sections_or_a_key_twice_is_refused(tmp_path, text, quoted):
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ProfileError, match=f"(?s){quoted}") as caught:
        load_profile("bad", folder=tmp_path)
    assert "this key is missing" not in str(caught.value)  # the fault itself, not what follows from it


def test_an_unknown_profile_is_refused_with_those_there_are():
    with pytest.raises(ProfileError) as caught:
        load_profile("kinetics")
    assert "unknown profile 'kinetics'" in str(caught.value)
    assert all(name in str(caught.value) for name in PROFILES)


def test_no_value_of_a_profile_can_be_changed():
    profile = load_profile("tiny")
    for section, key, value in ((profile, "name", "x"), (profile.data, "crop_px", 32), (profile.scene, "seed", 5)):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, value)
    assert profile == load_profile("tiny")
