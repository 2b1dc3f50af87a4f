"""For all of pytest, notebooks included: figures that a test draws do not replace the committed ones."""

import os
from pathlib import Path

os.environ.setdefault("FASTER_FIGURES", str(Path(__file__).parent / "runs" / "figures"))
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # others are processes that import torch again
