"""How the outputs and gradients of a kernel are compared with those of a reference."""

import torch

TOLERANCE = 2e-6  # of the largest entry


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_gradients(function, inputs, dtype=None):
    """The outputs of `function(**inputs)` and the gradients of all inputs under a fixed random weighting."""
    leaves = {name: tensor.to(dtype or tensor.dtype).detach().requires_grad_() for name, tensor in inputs.items()}
    outputs = function(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((output * normal(*output.shape, seed=9 + i).to(output)).sum() for i, output in enumerate(outputs))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {f"output {i}": output.detach() for i, output in enumerate(outputs)} | dict(
        zip(leaves, gradients, strict=True)
    )


def assert_close(found, expected, tolerance=TOLERANCE, at_least=0.0):
    """Errors relative to the largest entry, which is taken for `at_least` where it is below that."""
    for name, wanted in expected.items():
        assert found[name].isfinite().all(), name
        largest = max(wanted.abs().max().item(), at_least) if wanted.numel() else 0.0
        error = (found[name].double() - wanted).abs().max().item() if wanted.numel() else 0.0
        assert error <= tolerance * largest, f"{name}: {error:.2e} of {largest:.2e}"
