import pytest

MARKERS = (
    *("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test"),
    *("is_training_test", "slow"),
)


def pytest_configure(config: pytest.Config):
    for name in MARKERS:
        config.addinivalue_line("markers", f"{name}: of transformers' own tests")
