"""Tests of Tables 7 and 8: which methods are ahead, and what is called exact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.video import S3D_Weights

from faster_lib import sota
from faster_lib.flops import count_macs
from faster_lib.models.torchvision import build_s3d
from faster_lib.profiles import load_profile
from faster_lib.report import tables as report

# FASTER from a count in plain arithmetic (docs/discrepancies.md).
COSTS = {"FASTER16": 14.385, "FASTER32": 67.771, "S3D": 71.916}


def compared(s3d_frames):
    rows = sota.cost_rows(COSTS, s3d_frames)
    return report.compare(rows, profile=load_profile("kinetics400"), caption="", command="").frame.droplevel(0)


def test_a_method_without_a_number_of_clips_has_no_total():
    totals = {method.name: method.gmacs for method in sota.methods()}
    assert len(totals) == 15
    unknown = {name for name, total in totals.items() if total is None}
    assert unknown == {"S3D (ImageNet)", "S3D-G", "STC", "S3D (scratch)", "ECO"}
    assert totals["FASTER32"] == pytest.approx(541.6) and totals["R(2+1)D-34"] == 17_480


def test_both_variants_of_faster_are_on_the_frontier_of_table_7():
    names = [method.name for method in sota.frontier(sota.methods())]
    assert names == ["FASTER16", "I3D (ImageNet)", "FASTER32", "NL I3D-50", "NL I3D-101"]


@given(st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(1, 9)), max_size=12))
def test_the_frontier_is_what_nothing_else_beats(points):
    known = [sota.Method(str(i), accuracy, gmacs, False) for i, (accuracy, gmacs) in enumerate(points)]
    found = {(method.accuracy, method.gmacs) for method in sota.frontier(known)}
    costed = {(accuracy, gmacs) for accuracy, gmacs in points if gmacs is not None}
    unbeaten = {p for p in costed if not any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in costed)}
    assert found == unbeaten


def test_only_what_equals_the_printed_cost_is_called_exact():
    table = compared(sota.S3D_FRAMES)
    exact = table.index[table["status"] == "exact"].tolist()
    assert exact == ["FASTER16 × 16"]
    assert table.loc["FASTER32 × 8", "status"].startswith("differs: 67.77")
    assert table.loc["S3D (scratch) × N/A", "difference"] == 5.5
    assert table.loc["S3D (scratch) × N/A", "status"].startswith("differs")
    assert table.loc["STC × N/A", "status"] == "N/A in the paper"
    assert table["measured"].isna().all()


def test_s3d_on_clips_of_another_length_is_not_compared():
    row = compared(16).loc["S3D (ImageNet) × N/A, 16 frames"]
    assert row.isna()["reported"] and row.isna()["difference"] and row["status"] == "counted"


def test_s3d_costs_what_torchvision_says():
    counted = count_macs(build_s3d(), torch.zeros(1, 3, 16, 224, 224)) / 1e9
    assert round(counted, 3) == S3D_Weights.KINETICS400_V1.meta["_ops"]


@pytest.mark.parametrize("frames", [8, "64", True, 64.0])
def test_a_clip_that_s3d_cannot_take_is_refused_with_its_length(frames):
    with pytest.raises(ValueError, match=f"s3d_frames is {frames!r}"):
        sota.count(frames)
