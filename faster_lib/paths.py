"""The repository's folders; `FASTER_RUNS`, `FASTER_FIGURES` and `FASTER_DATA` put some of them elsewhere."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARAMS = ROOT / "params"
WEIGHTS = PARAMS / "weights"
FIGURES = Path(os.environ.get("FASTER_FIGURES", ROOT / "figures"))
RUNS = Path(os.environ.get("FASTER_RUNS", ROOT / "runs"))
DATA = Path(os.environ.get("FASTER_DATA", ROOT / "data"))  # real videos, where a profile gives no absolute path
