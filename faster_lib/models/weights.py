"""Weight files of any origin: read without running code from them, and matched with a network key by key."""

import functools
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt")
_WRAPPINGS = ("state_dict", "model_state_dict", "model_state", "model")  # under which trainings keep the tensors
_COUNTERS = "num_batches_tracked"  # of batch norm, which older files lack and no network here uses


def is_weight_file(weights: str | Path) -> bool:
    """Whether `weights` names a file, by its ending, and not some published weights."""
    return Path(weights).suffix in SUFFIXES


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a weight file by their names; no code in it is ever run.

    Tensors under "state_dict" or "model" are found. The names lose what torch.compile ("_orig_mod.") and parallel
    training (a "module." before all of them) put there.

    Raises: FileNotFoundError without the file; ValueError, naming the file, if it holds code or no tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; weights must name a file ending in {', '.join(SUFFIXES)}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file as load  # here, since all else needs torch alone
    else:
        load = functools.partial(torch.load, map_location="cpu", weights_only=True)
    try:
        content = load(path)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL [\w.]+|operand \d+", str(error))
        why = f"beside tensors it holds Python code or objects ({asked[0] if asked else 'unknown'})"
        remedy = "save the network's state_dict alone, best as .safetensors"
        raise ValueError(f"{path} is refused, and nothing of it was run: {why}; {remedy}") from None
    except Exception as error:  # whatever a file that is no such file makes a reader raise
        raise ValueError(f"{path} cannot be read as weights: {type(error).__name__}: {error}") from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> dict[str, torch.Tensor]:
    while isinstance(content, dict) and (inner := [content[k] for k in _WRAPPINGS if isinstance(content.get(k), dict)]):
        content = inner[0]
    pairs = content.items() if isinstance(content, dict) else [(content, None)]
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in pairs):
        found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} holds {found}; it must hold tensors by name, as a state_dict does")
    content = {key.replace("_orig_mod.", ""): value for key, value in content.items()}
    while content and all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return content


def fit_weights(network: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Put weights into a network; a classifier of another number of classes is left as it is, with a warning.

    Raises: ValueError naming `source` and the keys that are missing, unexpected, of another shape or not finite.
    """
    own = network.state_dict()
    classes, wanted = (len(state.get("classifier.bias", ())) for state in (weights, own))
    if classes and classes != wanted:
        log.warning("%s classifies %d classes, not %d: the classifier starts anew", source, classes, wanted)
        kept = {key: value for key, value in own.items() if key.startswith("classifier.")}
        weights = {key: kept.get(key, value) for key, value in weights.items()}
    shapes = {key: (tuple(weights[key].shape), tuple(own[key].shape)) for key in own.keys() & weights.keys()}
    faults = {
        "missing": [key for key in own.keys() - weights.keys() if not key.endswith(_COUNTERS)],
        "unexpected": weights.keys() - own.keys(),
        "of another shape": [f"{key} {given} for {must}" for key, (given, must) in shapes.items() if given != must],
        "not finite": [key for key in weights if not weights[key].float().isfinite().all()],  # NaN, or infinite
    }
    if found := {kind: sorted(keys) for kind, keys in faults.items() if keys}:
        listed = (f"{len(k)} {kind}: {', '.join(k[:3])}{', ...' * (len(k) > 3)}" for kind, k in found.items())
        raise ValueError(f"{source} does not fit the network: {'; '.join(listed)}")
    network.load_state_dict(weights, strict=False)  # of what may be missing, only the counters are
