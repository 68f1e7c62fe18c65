"""Experts give each token what its own experts give, whatever the backend."""

import pytest
import torch
from torch.nn import functional as F

from data_pipeline.errors import ConfigError
from mixtures import EXPERTS, WIDTH, Dense
from trainer.models.moe.experts import Experts, require_backend


def experts_of(backend: str, dtype: torch.dtype) -> Experts:
    """Four experts that have grown apart."""
    torch.manual_seed(1)
    experts = Experts(Dense(), EXPERTS, backend)
    with torch.no_grad():
        for weight in experts.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return experts.to(dtype)


def by_token(experts: Experts, x: torch.Tensor, gates: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The definition: each token through each of its experts."""
    out = []
    for token, weights, mine in zip(x, gates, chosen.tolist(), strict=True):
        y = torch.zeros_like(token)
        for weight, e in zip(weights, mine, strict=True):
            inner = F.silu(experts.gate_proj[e] @ token) * (experts.up_proj[e] @ token)
            y = y + weight * (experts.down_proj[e] @ inner)
        out.append(y)
    return torch.stack(out)


ROUTES = {
    "even": [[i % 4, (i + 1) % 4] for i in range(24)],
    "uneven": [[0, 3]] * 13 + [[1, 0], [3, 1]],  # nobody goes to expert 2
    "one token": [[2, 1]],
    "all on one pair": [[3, 0]] * 17,
    "all experts": [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]],
}


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("backend", ["grouped", "loop"])
def test_a_backend_gives_what_each_token_s_experts_give_and_so_do_its_gradients(backend, route, dtype, close):
    chosen = torch.tensor(ROUTES[route])
    torch.manual_seed(2)
    x = torch.randn(len(chosen), WIDTH, dtype=dtype, requires_grad=True)
    gates = torch.rand(chosen.shape, dtype=dtype, requires_grad=True)
    weigh = torch.randn(x.shape, dtype=dtype)
    seen = []
    for experts, way in ((experts_of(backend, dtype), None), (experts_of("loop", torch.float64), by_token)):
        exact = way is not None
        inputs = [t.detach().double().requires_grad_() if exact else t for t in (x, gates)]
        out = by_token(experts, *inputs, chosen) if exact else experts(*inputs, chosen)
        over = [*inputs, *experts.parameters()]
        seen.append([out, *torch.autograd.grad(out, over, weigh.to(out.dtype))])
    for ours, exactly in zip(*seen, strict=True):
        scale = float(exactly.detach().abs().max())
        assert float((ours.detach().double() - exactly.detach()).abs().max()) <= close * max(1.0, scale)
    idle = set(range(EXPERTS)) - {e for row in ROUTES[route] for e in row}
    assert all(not g[e].any() for g in seen[0][3:] for e in idle)  # zeros, and not None


def test_the_same_tokens_give_the_same_bits_again():
    experts, x = experts_of("grouped", torch.float32), torch.randn(24, WIDTH)
    chosen, gates = torch.tensor(ROUTES["even"]), torch.rand(24, 2)
    runs = []
    for _ in range(2):
        mine = x.clone().requires_grad_()
        out = experts(mine, gates, chosen)
        runs.append([out, *torch.autograd.grad(out.square().sum(), [mine, *experts.parameters()])])
    assert all(a.equal(b) for a, b in zip(*runs, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("backend", ["grouped", "megablocks"])
@pytest.mark.parametrize("route", ROUTES)
def test_on_cuda_each_backend_gives_what_the_loop_gives(backend, route):
    if backend == "megablocks":
        pytest.importorskip("megablocks")
    chosen = torch.tensor(ROUTES[route], device="cuda")
    torch.manual_seed(2)
    inputs = [torch.randn(len(chosen), WIDTH), torch.rand(chosen.shape)]
    weigh = torch.randn(len(chosen), WIDTH).bfloat16().cuda()
    seen = []
    for way in (backend, "loop"):
        experts = experts_of(way, torch.bfloat16).cuda()
        mine = [t.bfloat16().cuda().requires_grad_() for t in inputs]
        out = experts(*mine, chosen)
        seen.append([out, *torch.autograd.grad(out, [*mine, *experts.parameters()], weigh)])
    for ours, exactly in zip(*seen, strict=True):
        scale = float(exactly.detach().abs().max())
        assert float((ours - exactly).detach().abs().max()) <= 2e-2 * max(1.0, scale)


def test_megablocks_without_a_gpu_is_refused_and_what_it_trained_is_evaluated_all_the_same():
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"megablocks, which needs CUDA.*\n.*backend=grouped"):
            require_backend("megablocks")
    require_backend("grouped")
    chosen, gates, x = torch.tensor(ROUTES["uneven"]), torch.rand(15, 2), torch.randn(15, WIDTH)
    trained, plain = (experts_of(b, torch.float32).eval() for b in ("megablocks", "grouped"))
    assert trained(x, gates, chosen).equal(plain(x, gates, chosen))
