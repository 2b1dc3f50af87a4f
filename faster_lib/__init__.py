"""FASTER recurrent networks for efficient video classification: models, counting and data for the notebooks."""

import os
import warnings

# Threads that wait spin for a moment, as small layers need, then sleep, so that decoding processes get the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # read once, when torch is imported
# Accelerate imports tqdm's notebook bars, which this project does not use, and they miss a package of widgets.
warnings.filterwarnings("ignore", "IProgress not found")

from faster_lib.flops import count_macs, video_gmacs
from faster_lib.inference import prepare_for_inference, score_videos
from faster_lib.models.aggregators import AGGREGATORS, build_aggregator
from faster_lib.models.backbones import TABLE_1, build_backbone
from faster_lib.models.faster import Faster, Schedule
from faster_lib.profiles import load_profile

__all__ = [
    "AGGREGATORS",
    "TABLE_1",
    "Faster",
    "Schedule",
    "build_aggregator",
    "build_backbone",
    "count_macs",
    "load_profile",
    "prepare_for_inference",
    "score_videos",
    "video_gmacs",
]
