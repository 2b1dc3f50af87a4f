"""Tests of faster_lib.models.torchvision: torchvision's own networks, once more, as clip networks."""

import hashlib
import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.transforms.v2 import functional as F

from faster_lib.flops import count_macs
from faster_lib.inference import fold_batch_norm
from faster_lib.models.backbones import build_backbone, load_weights
from faster_lib.models.clips import normalise
from faster_lib.models.torchvision import TORCHVISION, crop_px_of

CLASSES = 5
every_network = pytest.mark.parametrize("name", TORCHVISION)


def unsettle(network: nn.Module) -> nn.Module:
    """Give every batch norm statistics that matter, and every class a score of its own."""
    generator = torch.Generator().manual_seed(0)
    for key, value in network.state_dict().items():
        if "running" in key:
            value.uniform_(0.5, 1.5, generator=generator)
        elif key.endswith("bias"):
            value.uniform_(-0.5, 0.5, generator=generator)
    return network.eval()


@torch.no_grad()
@every_network
def test_with_torchvisions_weights_the_logits_are_torchvisions_own_at_the_native_size(name, tmp_path):
    torch.manual_seed(0)
    theirs = unsettle(get_model(name, weights=None, num_classes=CLASSES))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = build_backbone(f"torchvision/{name}", CLASSES, weights=tmp_path / "theirs.pth").eval()
    frames = 16 if name == "s3d" else 8
    clips = torch.randn(1, 3, frames, ours.input_px, ours.input_px)
    maps = ours.features(clips)
    assert maps.shape == (1, ours.channels, *ours.feature_size(tuple(clips.shape[2:])))
    expected = theirs(clips)
    torch.testing.assert_close(ours.classify(maps), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 1e-2
    assert type(ours.classifier) is nn.Linear and ours.classifier.weight.shape == (CLASSES, ours.channels)
    save_file(ours.state_dict(), tmp_path / "ours.safetensors")  # with our names for the parts
    again = build_backbone(f"torchvision/{name}", CLASSES, weights=tmp_path / "ours.safetensors")
    assert all(torch.equal(again.state_dict()[key], value) for key, value in ours.state_dict().items())


@torch.no_grad()
def test_longer_clips_too_are_scored_as_torchvisions_s3d_scores_them(tmp_path):
    theirs = unsettle(get_model("s3d", weights=None, num_classes=CLASSES))
    torch.save({"model": theirs.state_dict()}, tmp_path / "theirs.pth")
    ours = build_backbone("torchvision/s3d", CLASSES, weights=tmp_path / "theirs.pth").eval()
    maps = torch.randn(2, 1024, 4, 7, 7)  # of L = 32
    expected = theirs.classifier(theirs.avgpool(maps)).mean(dim=(2, 3, 4))
    torch.testing.assert_close(ours.classify(maps), expected, rtol=1e-4, atol=1e-5)
    assert (ours.classifier(maps.mean(dim=(2, 3, 4))) - expected).abs().max() > 1e-3


@torch.no_grad()
@every_network
@pytest.mark.parametrize("frames", [16, 24])
def test_the_feature_size_is_that_of_the_map(name, frames):
    network = build_backbone(f"torchvision/{name}", CLASSES).eval()
    assert network.input_px == (224 if name == "s3d" else 112)  # torchvision's documentation of the weights
    network.input_px = 32
    maps = network.features(torch.zeros(1, 3, frames, 20, 30))
    assert maps.shape == (1, network.channels, *network.feature_size((frames, 20, 30)))
    network.input_px = 224
    assert network.feature_size((frames, 20, 30))[1:] == ((7, 7) if name == "s3d" else (14, 14))


@torch.no_grad()
def test_a_clip_of_another_size_is_resized_frame_by_frame_and_one_of_the_right_size_is_left():
    network = build_backbone("torchvision/mc3_18", CLASSES).eval()
    network.input_px = 32
    clips = torch.rand(2, 3, 8, 50, 40)
    for given in (clips, clips.contiguous(memory_format=torch.channels_last_3d)):
        frames = F.resize(given.transpose(1, 2), [32, 32], antialias=True)  # (2, 8, 3, 32, 32)
        torch.testing.assert_close(network.features(given), network.features(frames.transpose(1, 2)))
    seen = []
    network.trunk.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network.features(small := clips[..., :32, :32].contiguous())
    assert seen[0] is small
    size = (32, 32)
    assert count_macs(network, clips[:1]) == count_macs(network, torch.zeros(1, 3, 8, *size)) > 1e9


@torch.no_grad()
@every_network
def test_folding_batch_norm_changes_nothing_but_rounding(name):
    network = unsettle(build_backbone(f"torchvision/{name}", CLASSES)).double()
    network.input_px = 32
    clips = torch.randn(1, 3, 16 if name == "s3d" else 8, 32, 32, dtype=torch.float64)
    folded = fold_batch_norm(network)
    kept = sum(isinstance(part, nn.BatchNorm3d) for part in folded.modules())
    assert kept == (16 if name == "r2plus1d_18" else 0)  # those that follow a factorised pair
    torch.testing.assert_close(folded.features(clips), network.features(clips), rtol=1e-8, atol=1e-8)


def test_all_weights_of_the_four_need_clips_normalised_as_ours_are():
    for name in TORCHVISION:  # any published weights of a network, whatever their name, need the size that it takes
        assert {crop_px_of(weights) for weights in get_model_weights(name)} == {224 if name == "s3d" else 112}
    clip = torch.randint(0, 256, (3, 2, 112, 112), dtype=torch.uint8)
    for needed in (weights.transforms() for name in TORCHVISION for weights in get_model_weights(name)):
        theirs = F.normalize(clip.transpose(0, 1) / 255, needed.mean, needed.std).transpose(0, 1)
        assert (normalise(clip) - theirs).abs().max() < 0.01
    for other, mean in (("swin3d_t", 0.485), ("mvit_v2_s", 0.45)):  # why these are refused
        assert get_model_weights(other).DEFAULT.transforms().mean[0] == mean


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        ({"name": "torchvision/mvit_v2_s"}, "mvit_v2_s' cannot be a clip network here: it classifies a token.*s3d$"),
        ({"name": "torchvision/swin3d_t"}, "swin3d_t' cannot be a clip network here: its weights need another.*s3d$"),
        ({"name": "torchvision/resnet50"}, "'torchvision/resnet50' is unknown; choose one of torchvision/r2plus1d_18"),
        ({"name": "s3d"}, "unknown network 's3d'; choose one of r2d_26.*torchvision/s3d"),
        ({"width": 0.5}, "width is 0.5; torchvision/mc3_18 has one width"),
        ({"num_classes": 0}, "num_classes is 0"),
        (
            {"weights": "IMAGENET"},
            "weights is 'IMAGENET'; for torchvision/mc3_18 .* KINETICS400_V1, DEFAULT, or a",
        ),
    ],
)
def test_a_network_that_cannot_be_is_refused_with_the_value_and_the_reason(arguments, quoted):
    with pytest.raises(ValueError, match=quoted):
        build_backbone(**{"name": "torchvision/mc3_18", **arguments})


def test_the_reasons_against_mvit_hold():
    mvit = get_model("mvit_v2_s", weights=None).eval()
    assert mvit.pos_encoding.class_token.shape == (96,)
    with pytest.raises(RuntimeError, match="size"), torch.no_grad():
        mvit(torch.zeros(1, 3, 8, 224, 224))


def test_clips_that_do_not_fit_are_refused_with_their_frames():
    networks = [build_backbone(f"torchvision/{name}", CLASSES) for name in ("s3d", "r3d_18")]
    with pytest.raises(ValueError, match="L is 8; torchvision/s3d takes a multiple of 8 of at least 14 frames"):
        networks[0].features(torch.zeros(1, 3, 8, 224, 224))
    for network in networks:
        with pytest.raises(ValueError, match="L is 12"):
            network.features(torch.zeros(1, 3, 12, 112, 112))
        with pytest.raises(ValueError, match=r"\(1, 16, 3, 112, 112\)"):
            network.features(torch.zeros(1, 16, 3, 112, 112))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Put a file where torchvision looks for mc3_18's published weights, under a hash that may be wrong."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))

    def publish(content: object, digest: str | None = None) -> None:
        torch.save(content, tmp_path / "made.pth")
        digest = digest or hashlib.sha256((tmp_path / "made.pth").read_bytes()).hexdigest()[:8]
        path = (tmp_path / "made.pth").rename(tmp_path / f"mc3_18-{digest}.pth")
        monkeypatch.setattr(get_model_weights("mc3_18").DEFAULT.value, "url", path.as_uri())

    return publish


def test_published_weights_are_taken_by_name_and_their_classifier_if_the_classes_agree(published, caplog):
    theirs = get_model("mc3_18", weights=None, num_classes=400)
    published(theirs.state_dict())
    with caplog.at_level(logging.WARNING):
        network = build_backbone("torchvision/mc3_18", 400, weights="KINETICS400_V1")
        assert torch.equal(network.classifier.weight, theirs.fc.weight) and not caplog.messages
        network = build_backbone("torchvision/mc3_18", CLASSES, weights="DEFAULT")
    assert torch.equal(network.trunk.layer4[1].conv2[0].weight, theirs.layer4[1].conv2[0].weight)
    assert network.classifier.out_features == CLASSES
    assert "DEFAULT classifies 400 classes, not 5: the classifier starts anew" in caplog.text


def test_published_weights_with_a_wrong_hash_are_refused(published):
    network = build_backbone("torchvision/mc3_18", CLASSES)
    published({"fc.bias": torch.ones(5)}, "0badc0de")
    with pytest.raises(RuntimeError, match="invalid hash value"):
        load_weights(network, "DEFAULT")
