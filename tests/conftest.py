"""The scripts live one folder up; tests import them as modules."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers", reason="the oracle of this test: pip install transformers")
