"""The kit's folders; `FASTER_RUNS`, `FASTER_FIGURES` and `FASTER_DATA`, if not empty, put some elsewhere.

In a clone they lie beside the library. From a wheel, params/ lies in the library, and all else in the working folder.
"""

import os
from pathlib import Path

_LIBRARY = Path(__file__).resolve().parent
IS_CLONE = not (_LIBRARY / "params").is_dir()
ROOT = _LIBRARY.parent if IS_CLONE else Path.cwd()
PARAMS = (ROOT if IS_CLONE else _LIBRARY) / "params"
WEIGHTS = PARAMS / "weights"
RESULTS = PARAMS / "results.csv"
FIGURES = Path(os.environ.get("FASTER_FIGURES") or ROOT / "figures").expanduser()
RUNS = Path(os.environ.get("FASTER_RUNS") or ROOT / "runs").expanduser()
DATA = Path(os.environ.get("FASTER_DATA") or ROOT / "data").expanduser()  # where a profile gives no absolute path
