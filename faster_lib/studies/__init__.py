"""What each experiment of the paper compares: its cells, the rows of its table, its figure, the claims it tests."""

from faster_lib.studies.aggregation import (
    NAMES,
    aggregator_rows,
    count_aggregators,
    draw_aggregators,
    judge_aggregators,
)
from faster_lib.studies.backbones import (
    NETWORKS,
    backbone_rows,
    cells_of_backbones,
    count_backbones,
    draw_backbones,
    judge_backbones,
)
from faster_lib.studies.generalization import (
    cells_of_generalization,
    count_generalization,
    draw_generalization,
    generalization_rows,
    judge_generalization,
)
from faster_lib.studies.growth import cells_of_growth, count_growth, draw_growth, growth_rows, judge_growth
from faster_lib.studies.points import seconds_of, video1, video_mflops
from faster_lib.studies.ratios import (
    cells_of_ratios,
    count_ratios,
    draw_ratios,
    join_ratio_studies,
    judge_ratios,
    ratio_rows,
)
from faster_lib.studies.transfer import (
    check_epochs,
    check_folds,
    draw_transfer,
    fast_gru,
    judge_transfer,
    mean_over_folds,
    measure_transfer,
    seconds_of_transfer,
    transfer_rows,
)

__all__ = [
    "NAMES",
    "NETWORKS",
    "aggregator_rows",
    "backbone_rows",
    "cells_of_backbones",
    "cells_of_generalization",
    "cells_of_growth",
    "cells_of_ratios",
    "check_epochs",
    "check_folds",
    "count_aggregators",
    "count_backbones",
    "count_generalization",
    "count_growth",
    "count_ratios",
    "draw_aggregators",
    "draw_backbones",
    "draw_generalization",
    "draw_growth",
    "draw_ratios",
    "draw_transfer",
    "fast_gru",
    "generalization_rows",
    "growth_rows",
    "join_ratio_studies",
    "judge_aggregators",
    "judge_backbones",
    "judge_generalization",
    "judge_growth",
    "judge_ratios",
    "judge_transfer",
    "mean_over_folds",
    "measure_transfer",
    "ratio_rows",
    "seconds_of",
    "seconds_of_transfer",
    "transfer_rows",
    "video1",
    "video_mflops",
]
