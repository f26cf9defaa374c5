import pytest

import hymate_native


@pytest.fixture(params=hymate_native.runnable_builds())
def build(request, monkeypatch):
    """Each build that this processor runs, in turn."""
    monkeypatch.setenv("HYMATE_NATIVE_ISA", request.param)
    return request.param
