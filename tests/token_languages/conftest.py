"""Fixtures of the token x language matrix."""

import pytest

from tests.token_languages.tokenizers import BUILDERS


@pytest.fixture(params=BUILDERS)
def builder(request):
    """Each kind of tokenizer, as a function of its texts."""
    return BUILDERS[request.param]
