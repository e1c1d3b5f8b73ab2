"""The scripts live one folder up; tests import them as modules."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
