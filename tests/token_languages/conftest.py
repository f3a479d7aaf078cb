"""Fixtures of the token x language matrix."""

import pytest

from tests.token_languages.tokenizers import BUILDERS
from utils.token_languages.matrix import TokenLanguages


@pytest.fixture(params=BUILDERS)
def builder(request):
    """Each kind of tokenizer, as a function of its texts."""
    return BUILDERS[request.param]


@pytest.fixture(scope="session")
def default_matrix(offline_tokenizer):
    """What `--token_languages corpus` makes of the repository's own word counts."""
    return TokenLanguages.build(offline_tokenizer)
