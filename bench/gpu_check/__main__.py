"""`python bench/gpu_check`, or `python -m bench.gpu_check` in the root of the repository."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.gpu_check.running import main

if __name__ == "__main__":
    main()
