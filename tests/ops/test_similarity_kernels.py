"""The fused GPU path of vl_cabs against the plain formula: on a GPU, or through Triton's interpreter without one."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rayzero.ops.similarity_attention import vl_cabs_reference
from rayzero.ops.similarity_tiles import Attention

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def engine() -> ModuleType:
    return importlib.import_module("rayzero.ops.similarity_cuda")


def problem(texts: int, images: int, tokens: int, width: int, dtype: torch.dtype, *, bias: bool = False) -> Attention:
    torch.manual_seed(texts + tokens)
    text, image = (
        F.normalize(torch.randn(*shape, device=DEVICE), dim=-1).to(dtype)
        for shape in ((texts, width), (images, tokens, width))
    )
    scale = (0.5 + torch.rand(images, tokens, device=DEVICE)).log()
    scale[0, max(1, tokens // 2) :] = -torch.inf
    return Attention(text, image, scale if bias else None, 0.07, row_max=False)


def oracle(given: Attention, upstream: Tensor) -> tuple[Tensor, ...]:
    """The plain formula on the same rows in float64: scores, and gradients of text, tokens, bias, temperature."""
    rows = [part.double().requires_grad_() for part in (given.text, given.tokens)]
    bias = torch.zeros(given.tokens.shape[:2], device=DEVICE) if given.bias is None else given.bias
    bias = bias.double().requires_grad_()
    tau = torch.tensor(given.temperature, dtype=torch.float64, device=DEVICE, requires_grad=True)
    scores = torch.einsum("td,bnd->btn", *rows) / tau + bias.unsqueeze(1)
    context = torch.einsum("btn,bnd->btd", scores.softmax(dim=-1), rows[1])
    out = torch.einsum("td,btd->bt", rows[0], F.normalize(context, dim=-1))
    return out.detach(), *torch.autograd.grad((out * upstream).sum(), (*rows, bias, tau))


def closeness(got: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((got.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias and padding"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (5, 2, 37, 80), (130, 1, 130, 16)])
def test_equals_the_plain_formula(
    engine: ModuleType, shape: tuple[int, int, int, int], bias: bool, dtype: torch.dtype, bound: float
) -> None:
    given = problem(*shape, dtype, bias=bias)
    # Of one sign: the temperature's gradient is a sum over all pairs, which random signs would cancel.
    upstream = torch.rand(shape[1], shape[0], device=DEVICE)
    expected = oracle(given, upstream.double())
    scores, norms = engine.forward(given)
    assert (scores.double() - expected[0]).abs().max() < (4e-3 if dtype == torch.bfloat16 else 2e-6)
    found = engine.backward(given, scores, norms, upstream)
    if shape[2] == 1:  # one token: the weights cannot change anything, and the oracle's gradients are rounding
        assert closeness(found.tokens, expected[2]) < bound
        return
    assert closeness(found.text, expected[1]) < bound
    assert closeness(found.tokens, expected[2]) < bound
    assert closeness(found.temperature, expected[4]) < bound
    if bias:
        assert closeness(found.bias, expected[3]) < bound


def test_tiles_do_not_change_the_result(engine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(9, 3, 20, 32, torch.float32, bias=True)
    upstream = torch.ones(3, 9, device=DEVICE)
    whole = engine.forward(given)
    monkeypatch.setattr(engine, "_TILE_ELEMENTS", 4 * 20)  # four texts of one image
    tiled = engine.forward(given)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-6)
    small = engine.backward(given, *tiled, upstream)
    monkeypatch.undo()
    torch.testing.assert_close(small, engine.backward(given, *whole, upstream), rtol=1e-4, atol=1e-5)


def test_a_cpu_never_imports_triton() -> None:
    program = (
        "import sys, torch; from rayzero.ops import vl_cabs\n"
        "vl_cabs(torch.eye(2, dtype=torch.bfloat16), torch.eye(2, dtype=torch.bfloat16)[None], 0.1)\n"
        "assert 'rayzero.ops.similarity_kernels' not in sys.modules and 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(DEVICE == "cpu", reason="the dispatch to the kernels needs a GPU")
def test_bfloat16_on_a_gpu_takes_the_kernels() -> None:
    from rayzero.ops import vl_cabs

    given = problem(100, 4, 257, 64, torch.bfloat16)
    scores = vl_cabs(given.text, given.tokens, given.temperature)
    expected = vl_cabs_reference(given.text.double(), given.tokens.double(), given.temperature)
    assert "rayzero.ops.similarity_kernels" in sys.modules
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=4e-3)
