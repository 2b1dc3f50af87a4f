"""Tests of what the first two notebooks show: Table 1 read off built networks, a video clip by clip, and its cost."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from torch import nn

from faster_lib import studies
from faster_lib.flops import count_macs, running_gmacs, step_macs, video_gmacs
from faster_lib.models.aggregators import build_aggregator
from faster_lib.models.backbones import build_backbone
from faster_lib.models.faster import Faster
from faster_lib.paths import ROOT
from faster_lib.profiles import load_profile
from faster_lib.report import tables as report
from faster_lib.report.figures import Panel, Series, draw_film_strip, draw_panels
from faster_lib.report.layers import describe
from faster_lib.training.evaluation import clip_accuracy_percent, watch
from faster_lib.training.features import FeaturePair, TrainedBackbone

# Layer, kernels with channels, output. Source: Table 1, typed from the page; R3D-50: Tran et al. 2018.
TABLE_1 = {
    "r2d_26": """
        conv1 | 8×7×7, 64                                   | L/8 112
        pool1 | 1×3×3 max                                   | L/8 56
        res2  | [1×1×1, 64 → 1×3×3, 64 → 1×1×1, 256] × 2    | L/8 56
        res3  | [1×1×1, 128 → 1×3×3, 128 → 1×1×1, 512] × 2  | L/8 28
        res4  | [1×1×1, 256 → 1×3×3, 256 → 1×1×1, 1024] × 2 | L/8 14
        res5  | [1×1×1, 512 → 1×3×3, 512 → 1×1×1, 2048] × 2 | L/8 7
    """,
    "r2plus1d_50": """
        conv1 | 1×7×7, 45 → 3×1×1, 64                                    | L/1 112
        pool1 | 1×3×3 max                                                | L/1 56
        res2  | [1×1×1, 64 → 1×3×3, 144 → 3×1×1, 64 → 1×1×1, 256] × 3    | L/1 56
        res3  | [1×1×1, 128 → 1×3×3, 288 → 3×1×1, 128 → 1×1×1, 512] × 4  | L/2 28
        res4  | [1×1×1, 256 → 1×3×3, 576 → 3×1×1, 256 → 1×1×1, 1024] × 6 | L/4 14
        res5  | [1×1×1, 512 → 1×3×3, 1152 → 3×1×1, 512 → 1×1×1, 2048] × 3 | L/8 7
    """,
    "r3d_50": """
        conv1 | 3×7×7, 64                                   | L/1 112
        pool1 | 1×3×3 max                                   | L/1 56
        res2  | [1×1×1, 64 → 3×3×3, 64 → 1×1×1, 256] × 3    | L/1 56
        res3  | [1×1×1, 128 → 3×3×3, 128 → 1×1×1, 512] × 4  | L/2 28
        res4  | [1×1×1, 256 → 3×3×3, 256 → 1×1×1, 1024] × 6 | L/4 14
        res5  | [1×1×1, 512 → 3×3×3, 512 → 1×1×1, 2048] × 3 | L/8 7
    """,
}
STEM_STRIDES = {"r2d_26": "8,2,2 at 8×7×7", "r2plus1d_50": "1,2,2 at 1×7×7", "r3d_50": "1,2,2 at 3×7×7"}


@pytest.mark.parametrize("clip_frames", [8, 24])
@pytest.mark.parametrize("name", TABLE_1)
def test_a_built_network_reads_as_table_1(name, clip_frames):
    with torch.device("meta"):
        *layers, last = describe(build_backbone(name), clip_frames)
    lines = [[cell.strip() for cell in line.split("|")] for line in TABLE_1[name].strip().splitlines()]
    assert [[row.layer, row.kernels] for row in layers] == [line[:2] for line in lines]
    for row, (_, _, size) in zip(layers, lines, strict=True):
        reduction, side = size.removeprefix("L/").split()
        assert row.output == f"{clip_frames // int(reduction)}×{side}×{side}"
    assert [row.stride for row in layers[:2]] == [STEM_STRIDES[name], "1,2,2 at 1×3×3"]
    assert (last.layer, last.kernels) == ("global average pooling, fc", "2048 to 400")


def test_the_rows_come_from_the_network_at_hand_which_stays_as_it_was():
    network = build_backbone("r2d_26", 5, 1 / 16).train()
    network.stages[1][1].residual[2][0] = nn.Conv3d(8, 8, (3, 3, 3), padding=1)  # one block unlike the other
    before = {key: value.clone() for key, value in network.state_dict().items()}
    rows = {row.layer: row for row in describe(network, 16, 33)}
    assert rows["res3"].kernels == "[1×1×1, 8 → 1×3×3, 8 → 1×1×1, 32] × 1 + [1×1×1, 8 → 3×3×3, 8 → 1×1×1, 32] × 1"
    assert rows["res3"].stride == "1,2,2 at 1×3×3" and rows["res3"].shortcut == "1×1×1, 32, stride 1,2,2"
    assert rows["res5"].output == "2×2×2"
    assert network.training and not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with pytest.raises(ValueError, match="L is 12"):
        describe(network, 12)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    networks = [build_backbone(name, 5, 1 / 64) for name in ("r2plus1d_50", "r2d_26")]
    built = Faster(*networks, build_aggregator("fast_gru", 32), "ECCE", 5, feature_scales=(2.0, 3.0)).eval()
    for module in built.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(std=0.5)  # so that all scores differ clearly
    return built


@torch.no_grad()
def test_watching_a_video_gives_each_clips_own_scores_and_those_of_every_beginning(model):
    clips = torch.randn(4, 3, 8, 33, 40, generator=torch.Generator().manual_seed(1))
    alone, so_far = watch(model, clips)
    assert alone.shape == so_far.shape == (4, 5)
    for t, network in enumerate((model.expensive, model.cheap, model.cheap, model.expensive)):
        torch.testing.assert_close(alone[t], network(clips[t : t + 1])[0].softmax(0))
        torch.testing.assert_close(so_far[t], model(clips[None, : t + 1])[0].softmax(0))
    assert (so_far[1:] - so_far[:-1]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="5 clips do not fit"):
        watch(model, torch.cat([clips, clips[:1]]))


def test_each_clip_adds_its_networks_cost_and_from_the_second_on_a_step(model):
    sizes = {"expensive": model.expensive, "cheap": model.cheap, "L": 8, "size_px": 33}
    clip = torch.zeros(1, 3, 8, 33, 33)
    step, cheap = step_macs(model.aggregator, (1, 2, 2)), count_macs(model.cheap, clip)
    expensive = count_macs(model.expensive, clip)
    expected = np.cumsum([expensive, cheap + step, cheap + step, expensive + step]) / 1e9
    spent = running_gmacs(**sizes, aggregator=model.aggregator, schedule="ECCE")
    assert spent == expected.tolist() and step > 0
    assert spent == [video_gmacs(**sizes, aggregator=model.aggregator, schedule="ECCE"[:t]) for t in (1, 2, 3, 4)]
    assert running_gmacs(**sizes, aggregator=None, schedule="EE") == [expensive / 1e9, 2 * expensive / 1e9]


def held(expensive, cheap, targets):
    """Feature maps (videos, views, N, ...) in memory, read as those of a store."""

    def read_each(requests):
        for videos, views, clips in requests:
            yield tuple(part[videos[:, None], views[:, None], clips].float() for part in (expensive, cheap))

    return SimpleNamespace(read_each=read_each, targets=targets, num_clips=expensive.shape[2])


def test_clip_accuracy_is_the_share_of_single_clips_that_are_right():
    maps = torch.zeros(2, 1, 4, 3, 1, 1, 1)  # 2 videos, 1 view, 4 clips, 3 channels, which stand for classes
    targets = torch.tensor([2, 1])
    right = maps.clone()
    right[0, 0, :3, 2], right[0, 0, 3, 0], right[1, 0, :, 1] = 1, 1, 1  # 3 of 4, and 4 of 4
    wrong = maps.clone()
    wrong[0, 0, :, 1], wrong[1, 0, :, 2] = 1, 1  # what would be right for the other video
    wrong[0, 0, 0, 2] = 2
    network = SimpleNamespace(classify=lambda features: features.mean(dim=(-3, -2, -1)))
    trained = SimpleNamespace(network=network)
    features = held(right.half(), wrong.half(), targets)
    pair = SimpleNamespace(num_clips=4, expensive=trained, cheap=trained, open=lambda split: features)
    assert clip_accuracy_percent(pair, "test") == {"E": 87.5, "C": 12.5}


def test_a_film_strip_frames_each_clip_by_its_network_and_ticks_what_is_right():
    frames = [np.full((8, 8, 3), 20 * t, dtype=np.uint8) for t in range(10)]
    said = {"alone": [("left_red", False)] * 9 + [("up_red", True)], "so far": [("up_red", True)] * 10}
    figure = draw_film_strip(frames, "ECCCCECCCC", said, title="A title", caption="A caption")
    pictures = [ax for ax in figure.axes if ax.images]
    assert [ax.images[0].get_array()[0, 0, 0] for ax in pictures] == [20 * t for t in range(10)]
    colours = [to_rgb(ax.spines["left"].get_edgecolor()) for ax in pictures]
    assert len(set(colours)) == 2 and [colour == colours[0] for colour in colours] == [c == "E" for c in "ECCCCECCCC"]
    texts = [[text.get_text() for text in ax.texts] for ax in pictures]
    assert texts[0] == ["left_red ✗", "alone", "up_red ✓", "so far"]
    assert texts[9] == ["up_red ✓", "up_red ✓"] and "alone" in texts[8]
    assert not any(ax.axison for ax in figure.axes if not ax.images)  # what is left of the second row
    plt.close(figure)


def test_labels_of_points_at_one_cost_are_lifted_off_each_other_and_others_left_alone():
    series = [Series("R2D-26", [10, 10, 10, 90], [40.2, 40.0, 60.0, 40.1], labels=["b", "a", "c", "d"])]
    figure = draw_panels([Panel("measured", "x", "y", series)], title="A title", caption="A caption")
    lifts = {text.get_text(): text.xyann[1] - 6 for text in figure.axes[0].texts}
    assert lifts["a"] == lifts["c"] == lifts["d"] == 0 and 9 < lifts["b"] < 12
    plt.close(figure)


def test_table_2_sets_each_network_and_length_beside_its_own_cell_and_judges_them_the_right_way_round():
    built = {name: build_backbone(name, 16, 1 / 64) for name in ("r2plus1d_50", "r2d_26")}
    pairs = {
        n: FeaturePair(load_profile("tiny"), *(TrainedBackbone(name, n, net, "", 0.0) for name, net in built.items()))
        for n in (8, 32)
    }
    marks = {("E", 8): "11110000", ("E", 32): "11111111", ("C", 8): "10000000", ("C", 32): "11000000"}
    measured = {
        n: {
            cell: [{"correct": marks[letter, n], "video@1": 12.5 * marks[letter, n].count("1"), "videos": 8}]
            for letter, cell in studies.cells_of_backbones(pair.num_clips).items()
        }
        for n, pair in pairs.items()
    }
    rows = studies.backbone_rows(pairs, measured, {n: {"E": 30.0, "C": 20.0} for n in pairs})
    videos = {row.name: (row.reported.value, *row.measured) for row in rows if row.quantity == "video@1 (%)"}
    assert videos == {
        "R2D-26 L=8": (63.3, 12.5),
        "R2D-26 L=32": (66.7, 25.0),
        "R(2+1)D-50 L=8": (70.1, 50.0),
        "R(2+1)D-50 L=32": (74.5, 100.0),
    }
    assert [row.measured[0] for row in rows if row.quantity == "clip@1 (%)"] == [20.0, 20.0, 30.0, 30.0]
    costs = [row.counted for row in rows if row.quantity.startswith("MFLOPs")]
    assert costs[1] == pytest.approx(costs[0], rel=2e-3) and costs[3] == pytest.approx(costs[2], rel=2e-3)
    assert costs[0] < costs[2]
    beats, longer = studies.judge_backbones(pairs, measured)
    assert (beats.difference, longer.difference) == (56.25, 31.25) and "L = 32 against 8" in longer.statement
    assert len(studies.judge_backbones({8: pairs[8]}, measured)) == 1
    figure = studies.draw_backbones(pairs, measured)
    drawn = [sorted(text.get_text() for text in ax.texts) for ax in figure.axes]
    assert drawn == [["L=16"] * 2 + ["L=32"] * 2 + ["L=8"] * 2, ["L=32"] * 2 + ["L=8"] * 2]
    plt.close(figure)


@pytest.mark.parametrize(
    ("lengths", "quoted"),
    [([8, 12], "L is 12"), ([8, 24], "L is 24.*8, 16, 32"), ([8, 8], r"\[8, 8\]"), ([], r"\[\]"), ("8", "'8'")],
)
def test_wrong_lengths_are_refused_with_the_value(lengths, quoted):
    with pytest.raises(ValueError, match=quoted):
        report.check_lengths(lengths, load_profile("tiny"))
    assert report.check_lengths([32, 8], load_profile("tiny")) == {32: 8, 8: 32}


@pytest.mark.parametrize("video", [-1, 16, 0.0, True, "0"])
def test_a_video_that_is_not_there_is_refused_with_its_number(video):
    with pytest.raises(ValueError, match=f"video is {video!r}; .* from 0 to 15"):
        report.check_video(video, 16)
    assert report.check_video(15, 16) == 15


def test_the_notebook_runs_from_nothing_and_leaves_its_tables_and_figures(tmp_path):
    folders = {"FASTER_RUNS": str(tmp_path / "runs"), "FASTER_FIGURES": str(tmp_path / "figures")}
    command = [sys.executable, "-m", "papermill", "notebooks/00_quickstart.ipynb", str(tmp_path / "out.ipynb")]
    command += ["-p", "profile", "smoke", "-y", "{L: 8, video: 3}"]
    done = subprocess.run(command, env=os.environ | folders, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    pictured = {"00_quickstart_smoke", "00_quickstart_smoke_cost"}
    assert made == {f"{stem}.{kind}" for stem in pictured for kind in ("csv", "png", "svg")}
    moments, _ = report.load("00_quickstart_smoke", folder=tmp_path / "figures")
    assert [network for _, network in moments.index] == list("ECCCCCCC")
    assert moments["MFLOPs spent"].is_monotonic_increasing
