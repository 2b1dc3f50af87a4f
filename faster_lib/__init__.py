"""FASTER recurrent networks for efficient video classification: models, counting and data for the notebooks."""

import importlib

_MODULES = {  # each public name's; imported when the name is first asked for, so that the models need torch alone
    "AGGREGATORS": "models.aggregators",
    "TABLE_1": "models.backbones",
    "Faster": "models.faster",
    "Schedule": "models.faster",
    "build_aggregator": "models.aggregators",
    "build_backbone": "models.backbones",
    "count_macs": "flops",
    "load_profile": "profiles",
    "prepare_for_inference": "inference",
    "score_videos": "inference",
    "video_gmacs": "flops",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
