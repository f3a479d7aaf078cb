"""The campaign's cases are still about this code: each planted fault finds the place that it spoils."""

import pytest

from tests.campaign import faults
from tests.scripts import PROJECT_DIR


@pytest.mark.parametrize("case", faults.cases(), ids=lambda case: case.name.replace(" ", "_"))
def test_a_planted_fault_finds_its_place(case):
    text = (PROJECT_DIR / case.path).read_text(encoding="utf-8")
    assert case.old in text and text.replace(case.old, case.new) != text
