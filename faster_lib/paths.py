"""The repository's folders; `FASTER_RUNS` and `FASTER_FIGURES` move what is generated to another place."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARAMS = ROOT / "params"
WEIGHTS = PARAMS / "weights"
FIGURES = Path(os.environ.get("FASTER_FIGURES", ROOT / "figures"))
RUNS = Path(os.environ.get("FASTER_RUNS", ROOT / "runs"))
