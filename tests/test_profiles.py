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


def plain(value):
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple | list) else value


def stated(name: str) -> dict:
    return yaml.safe_load((PARAMS / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_has_every_value_of_its_file_and_of_its_base_what_it_does_not_state(name):
    found, own = plain(load_profile(name).model_dump()), stated(name)
    base = plain(load_profile(own["base"]).model_dump()) if "base" in own else {}
    for section in found.keys() - {"name"}:
        if section in own and own[section] is None:
            assert found[section] is None
            continue
        expected = (base.get(section) or {}) | (own.get(section) or {})
        assert (found[section] or {}) == expected
        same = [key for key, value in (own.get(section) or {}).items() if (base.get(section) or {}).get(key) == value]
        assert name not in ("smoke", "tiny_kinetics", "tiny_ucf101") or not same, f"{section} repeats {same}"


def write_yaml(folder, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


@pytest.fixture
def based(tmp_path):
    """A folder with the default profile, so that others can be based on it."""
    write_yaml(tmp_path, tiny=(PARAMS / "tiny.yaml").read_text(encoding="utf-8"))
    return tmp_path


def test_bases_form_a_chain_of_which_each_changes_some_keys_and_null_drops_a_section(based):
    write_yaml(
        based,
        a="base: tiny\ndata: {crop_px: 33}\nscene: {videos: {train: 5}, seed: 3}\n",
        b="base: a\ndata: {source: folders, root: x, num_classes: 2}\nscene: null\n",
        c="base: b\ndata: {flip: true}\n",
    )
    tiny, a, c = (load_profile(name, folder=based) for name in ("tiny", "a", "c"))
    assert (a.data.crop_px, a.scene.seed, a.scene.videos, a.scene.noise) == (33, 3, {"train": 5}, tiny.scene.noise)
    assert a.networks == tiny.networks and a.name == "a"
    assert (c.scene, c.data.flip, c.data.root, c.data.crop_px) == (None, True, "x", 33)


@pytest.mark.parametrize(
    ("files", "quoted"),
    [
        (
            {"a": "base: tony\n"},
            "params/a.yaml: base is 'tony': unknown profile 'tony'; choose one of a, tiny, or write",
        ),
        ({"a": "base: 3\n"}, "params/a.yaml: base is 3: unknown profile 3"),
        ({"a": "base: a\n"}, "params/a.yaml: base is 'a', which leads back to 'a'"),
        (
            {"a": "base: b\n", "b": "base: tiny\nnetworks: {pretrained_in: none}\n"},
            "params/b.yaml: networks.pretrained_in is 'none': unknown profile 'none'",
        ),
        ({"a": "base: b\n", "b": "base: c\n", "c": "base: b\n"}, "params/c.yaml: base is 'b', which leads back to 'b'"),
        ({"a": "base: b\n", "b": "base: tiny\ndata: {crop_pix: 3}\n"}, "'crop_px'? (in params/b.yaml)"),
        ({"a": "base: b\ndata: {flip: no way}\n", "b": "base: tiny\ndata: {flip: 3}\n"}, "(it is 'no way')"),
        ({"a": "base: b\n", "b": "base: tiny\ndata: {crop_px: 999}\n"}, "shortest side of 40 (in params/b.yaml)"),
        ({"a": "base: b\n", "b": "base: tiny\nlodaing: 3\n"}, "did you mean 'loading'? (in params/b.yaml)"),
    ],
    ids=[
        "unknown",
        "no name",
        "itself",
        "pretraining of a base",
        "a circle",
        "key of a base",
        "own key",
        "own section",
        "section of a base",
    ],
)
def test_a_wrong_base_or_a_fault_in_one_is_refused_with_the_file_in_which_it_stands(based, files, quoted):
    write_yaml(based, **files)
    with pytest.raises(ProfileError) as caught:
        load_profile("a", folder=based)
    assert quoted in str(caught.value)
    assert "fault(s)" not in str(caught.value) or "params/a.yaml has 1 fault(s):" in str(caught.value)


def test_a_trial_of_the_papers_size_has_its_networks_and_clips_and_two_videos():
    trial, kinetics = load_profile("paper_size"), load_profile("kinetics400")
    assert trial.networks == kinetics.networks and trial.engine == kinetics.engine
    sizes = ("video_frames", "train_short_side_px", "test_short_side_px", "crop_px")
    assert all(getattr(trial.data, key) == getattr(kinetics.data, key) for key in sizes)
    assert trial.scene.videos == {"train": 2, "test": 1} and not trial.is_paper_scale
    assert trial.backbone_training.iterations <= 2 and trial.aggregator_training.epochs == 1


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
        ({"aggregator_training__epohcs": 1}, "did you mean 'epochs'?"),
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
            "but {'expensive_weights': None, 'cheap_weights': 'a.pth'}; one network has one start",
        ),
        ({"networks__width": MISSING}, "networks.width: this key is missing"),
        ({"loading": MISSING}, "loading: this key is missing"),
        ({"data__crop_px": 1000}, "data: crop_px is 1000, more than the shortest side of"),
        ({"data__train_short_side_px": [60, 50]}, "train_short_side_px is [60, 50]; no number may exceed the next"),
        ({"data__video_frames": 8}, "but data.video_frames is 8"),
        ({"scene__shortest_shot_frames": 10_000}, "shots of 10000 frames exceed"),
        ({"data__source": "folders"}, "root is None, but folders videos need the folder that they are in"),
        ({"data__root": "videos"}, "root is 'videos', but generated videos have none"),
        ({"data__source": "folders", "data__root": "videos"}, "folders videos need no scene (scene: null)"),
        ({"scene": None}, "generated videos need a scene section"),
        (
            {"data__source": "ucf101", "data__root": "x", "scene": None},
            "fold is None, but ucf101 videos have three folds",
        ),
        (
            {"data__source": "folders", "data__root": "x", "data__fold": 2, "scene": None},
            "fold is 2, but folders videos",
        ),
        ({"data__annotations": "lists"}, "annotations is 'lists', but generated videos have no lists elsewhere"),
        ({"data__fold": 1, "scene__videos": {"train": 31, "test": 16}}, "'train': 31}; three folds need twice as many"),
        (
            {"networks__pretrained_in": "smoke", "networks__cheap_weights": "a.pth"},
            "'cheap_weights': 'a.pth'} stand beside pretrained_in, which gives both networks",
        ),
        (
            {"networks__pretrained_in": "smoke", "backbone_training__grown_from": "smoke"},
            "grown_from are ('smoke', 'smoke'); leave one of the two null",
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
    ("pretrained_in", "changes", "quoted"),
    [
        ("nowhere", {}, "changed.yaml: networks.pretrained_in is 'nowhere': unknown profile 'nowhere'; choose one of"),
        ("changed", {}, "networks.pretrained_in is 'changed', which leads back to 'changed'; it must come before"),
        ("other", {"networks": {"pretrained_in": "changed"}}, "networks.pretrained_in is 'changed', which leads back"),
        ("other", {"networks": {"width": 0.25}}, "is 'other', whose networks.width is 0.25; here it is 0.125"),
        ("other", {"networks": {"cheap": "r3d_50"}}, "whose networks.cheap is 'r3d_50'; here it is 'r2d_26'"),
    ],
)
def test_a_pretraining_that_is_missing_circular_or_of_other_networks_is_refused(
    tmp_path, pretrained_in, changes, quoted
):
    content = changed(tmp_path).model_dump(mode="json", exclude={"name"})
    other = copy.deepcopy(content)
    for section, values in changes.items():
        other[section] = {**(other[section] or {}), **values}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        changed(tmp_path, networks__pretrained_in=pretrained_in)
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


def test_only_a_profile_that_states_a_fold_has_others():
    folds = [load_profile("tiny_ucf101").in_fold(fold) for fold in (1, 2, 3)]
    assert [profile.data.fold for profile in folds] == [1, 2, 3] and folds[0] == load_profile("tiny_ucf101")
    for name, fold in (("tiny_ucf101", 4), ("tiny", 1), ("kinetics400", 2)):
        with pytest.raises(ValueError, match=f"fold is {fold}; only a profile that states data.fold has folds, 1 to 3"):
            load_profile(name).in_fold(fold)


def test_no_value_of_a_profile_can_be_changed():
    profile = load_profile("tiny")
    for section, key, value in ((profile, "name", "x"), (profile.data, "crop_px", 32), (profile.scene, "seed", 5)):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, value)
    assert profile == load_profile("tiny")


def test_a_profile_may_lie_in_a_file_of_its_own_over_a_base_in_params(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: tiny\naggregator_training: {epochs: 2}\n")
    mine = load_profile(str(path))
    assert (mine.name, mine.aggregator_training.epochs) == ("mine", 2)
    assert load_profile(path).networks == load_profile("tiny").networks
    path.write_text("base: tiny\nloading: {workerz: 2}\n")
    with pytest.raises(ProfileError, match=rf"{path} has 1 fault.*\n.*did you mean 'workers'"):
        load_profile(path)
    with pytest.raises(ProfileError, match=r"unknown profile 'none'; choose one of .*tiny.* or write .*none.yaml"):
        load_profile(tmp_path / "none.yaml")
