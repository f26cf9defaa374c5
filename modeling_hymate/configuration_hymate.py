from configuration_hymate import (
    HyMaTEConfig,
)  # a saved folder holds the real file under this name: see save_pretrained

__all__ = ["HyMaTEConfig"]
