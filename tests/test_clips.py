"""Tests of faster_lib.models.clips against VMZ's printed numbers."""

import torch

from faster_lib.models.clips import normalise


def test_normalise_subtracts_each_colour_s_mean_and_divides_by_its_deviation():
    clips = torch.randint(256, (2, 5, 3, 4, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kept = clips.clone()
    result = normalise(clips)
    assert result.shape == clips.shape and result.dtype == torch.float32 and torch.equal(clips, kept)
    vmz = ((0.432, 0.228), (0.395, 0.221), (0.376, 0.217))  # of 0 to 1; to one decimal of 255 in the code
    for colour, (mean, deviation) in enumerate(vmz):
        expected = (clips[:, :, colour].double() / 255 - mean) / deviation
        torch.testing.assert_close(result[:, :, colour].double(), expected, rtol=0, atol=1e-2)
