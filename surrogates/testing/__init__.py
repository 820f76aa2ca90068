"""Contract suites that plug-in authors inherit."""

import pytest

# a failed assertion shows its values in a stranger's test run, too
pytest.register_assert_rewrite("surrogates.testing.contract")
