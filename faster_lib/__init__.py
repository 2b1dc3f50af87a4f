"""FASTER recurrent networks for efficient video classification: models, counting and data for the notebooks."""

import importlib

_NAMES = {  # by module, which is imported when one of its names is first asked for, so that the models need torch alone
    "models.backbones": ("TABLE_1", "build_backbone"),
    "models.aggregators": ("AGGREGATORS", "build_aggregator"),
    "models.faster": ("Faster", "Schedule"),
    "profiles": ("load_profile",),
    "flops": ("count_macs", "video_gmacs"),
    "inference": ("prepare_for_inference", "score_videos"),
    "model_file": ("load",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
