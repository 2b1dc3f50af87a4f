"""Tests of faster_lib.models.weights: no file runs code, common wrappings come off, and a mismatch says which keys."""

import logging
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from faster_lib.models.backbones import build_backbone, load_weights
from faster_lib.models.weights import is_weight_file, read_weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.tensor([1.0])}


class Touch:
    """What makes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("is_raw", [False, True])
def test_code_in_a_weight_file_never_runs_and_the_file_is_named(tmp_path, suffix, is_raw):
    marker, path = tmp_path / "marker", tmp_path / f"evil{suffix}"
    content = {"state_dict": {**TENSORS, "c": Touch(marker)}}
    if is_raw:
        path.write_bytes(pickle.dumps(content, protocol=2))  # torch's own
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"evil\{suffix} is refused, and nothing of it was run"):
        read_weights(path)
    with pytest.raises(ValueError, match=rf"evil\{suffix} is refused"):
        build_backbone("r2d_26", 5, 1 / 64, weights=path)
    assert not marker.exists()
    if is_raw:
        pickle.loads(path.read_bytes())
        assert marker.exists()  # so the file does hold code


def test_the_tensors_are_found_in_every_usual_wrapping(tmp_path):
    parallel = {f"module.{key}": value for key, value in TENSORS.items()}
    for content in (
        TENSORS,
        parallel,
        {"state_dict": TENSORS, "epoch": 3},
        {"model": parallel, "optimizer": {"lr": 0.1}},
        {"model": {"state_dict": TENSORS}},
        {f"_orig_mod.{key}": value for key, value in TENSORS.items()},
        {f"module._orig_mod.{key}": value for key, value in TENSORS.items()},
        {"state_dict": {f"_orig_mod.module.module.{key}": value for key, value in TENSORS.items()}},
        {key.replace(".", "._orig_mod."): value for key, value in TENSORS.items()},  # parts that were compiled
    ):
        torch.save(content, tmp_path / "weights.pth")
        found = read_weights(tmp_path / "weights.pth")
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)
    save_file(parallel, tmp_path / "weights.safetensors")
    assert read_weights(tmp_path / "weights.safetensors").keys() == TENSORS.keys()
    half = {"module.a": TENSORS["b.bias"], "b": TENSORS["b.bias"]}  # a part of that name, no wrapping
    torch.save(half, tmp_path / "half.pt")
    assert read_weights(tmp_path / "half.pt").keys() == half.keys()


@pytest.mark.parametrize(
    ("name", "content", "quoted"),
    [
        ("empty.pth", b"", "empty.pth cannot be read as weights"),
        ("text.pt", b"hello", "text.pt cannot be read as weights"),
        ("text.safetensors", b"hello, no header", "text.safetensors cannot be read as weights"),
        ("code.safetensors", pickle.dumps(Touch(Path("never"))), "code.safetensors cannot be read as weights"),
        ("numbers.pth", {0: TENSORS["b.bias"]}, r"numbers.pth holds \['0'\]; it must hold tensors by name"),
        ("list.pth", [1, 2], r"list.pth holds list; it must hold tensors by name"),
        ("epoch.pth", {"epoch": 3, "x": TENSORS["b.bias"]}, r"epoch.pth holds \['epoch', 'x'\]; it must hold tensors"),
    ],
)
def test_a_file_without_weights_is_refused_by_its_name(tmp_path, name, content, quoted):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=quoted):
        read_weights(tmp_path / name)


def test_a_file_that_is_not_there_and_weights_that_are_no_file_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pth is not there"):
        read_weights(tmp_path / "gone.pth")
    with pytest.raises(ValueError, match="weights is 'DEFAULT'; for a network of Table 1 it must end in"):
        build_backbone("r2d_26", 5, 1 / 64, weights="DEFAULT")
    assert [is_weight_file(name) for name in ("a.pt", "b/c.pth", "d.safetensors", "KINETICS400_V1")] == [1, 1, 1, 0]


def saved(network: nn.Module, path: Path, **changes: torch.Tensor | None) -> Path:
    """Save a network's tensors, some replaced and some (None) left out."""
    content = network.state_dict() | {key.replace("__", "."): value for key, value in changes.items()}
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def test_a_network_of_table_1_takes_its_weights_over_and_their_classifier_if_the_classes_agree(tmp_path, caplog):
    torch.manual_seed(0)
    networks = [build_backbone("r2d_26", classes, 1 / 64) for classes in (5, 5, 7)]
    path = saved(networks[0], tmp_path / "five.pth")
    fresh = networks[2].classifier.weight.clone()
    with caplog.at_level(logging.WARNING):
        load_weights(networks[1], path)
        assert not caplog.messages
        load_weights(networks[2], path)
    assert "five.pth classifies 5 classes, not 7: the classifier starts anew" in caplog.text
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
    others = {key for key, value in states[0].items() if not torch.equal(states[2][key], value)}
    assert all(key.startswith("classifier.") for key in others) and len(others) >= 1
    assert torch.equal(networks[2].classifier.weight, fresh)


def test_weights_that_do_not_match_say_which_keys(tmp_path):
    network = build_backbone("r2d_26", 5, 1 / 64)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    changes = {
        "stem__0__0__weight": None,
        "extra": torch.ones(1),
        "stages__0__0__shortcut__0__weight": torch.ones(2),
    }
    path = saved(build_backbone("r2d_26", 5, 1 / 64), tmp_path / "other.pth", **changes)
    listed = (
        "other.pth does not fit the network: 1 missing: stem.0.0.weight; 1 unexpected: extra; "
        "1 of another shape: stages.0.0.shortcut.0.weight (2,) for (4, 1, 1, 1, 1)"
    )
    with pytest.raises(ValueError, match=re.escape(listed)):
        load_weights(network, path)
    with pytest.raises(ValueError, match=r": 205 missing: stages\.\S+, \S+, \S+, \.\.\.; 81 of another shape"):
        load_weights(build_backbone("r2plus1d_50", 5, 1 / 64), saved(network, path))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())


def test_the_counters_of_batch_norm_may_be_missing_as_in_older_files(tmp_path):
    network = build_backbone("r2d_26", 5, 1 / 64)
    counters = {key.replace(".", "__"): None for key in network.state_dict() if key.endswith("num_batches_tracked")}
    assert counters
    path = saved(network, tmp_path / "old.pth", **counters)
    load_weights(build_backbone("r2d_26", 5, 1 / 64), path)
    with pytest.raises(ValueError, match=r"1 missing: stem\.0\.1\.running_mean$"):
        load_weights(network, saved(network, path, **counters, stem__0__1__running_mean=None))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_in_the_network_are_refused_by_name(tmp_path, value):
    network = build_backbone("r2d_26", 5, 1 / 64)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    weight = network.stem[0][0].weight.detach().double()
    weight[0, 0, 0, 0, 0] = value
    path = saved(network, tmp_path / "burst.pth", stem__0__0__weight=weight)
    with pytest.raises(ValueError, match=r"burst\.pth does not fit the network: 1 not finite: stem\.0\.0\.weight$"):
        load_weights(network, path)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
