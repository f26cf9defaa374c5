from .configuration_hymate import HyMaTEConfig

__all__ = ["HyMaTEConfig"]
