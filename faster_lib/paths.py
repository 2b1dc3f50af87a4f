"""The repository's folders; `FASTER_RUNS`, `FASTER_FIGURES` and `FASTER_DATA`, if not empty, put some elsewhere."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARAMS = ROOT / "params"
WEIGHTS = PARAMS / "weights"
FIGURES = Path(os.environ.get("FASTER_FIGURES") or ROOT / "figures").expanduser()
RUNS = Path(os.environ.get("FASTER_RUNS") or ROOT / "runs").expanduser()
DATA = Path(os.environ.get("FASTER_DATA") or ROOT / "data").expanduser()  # real videos, where a profile gives no other
