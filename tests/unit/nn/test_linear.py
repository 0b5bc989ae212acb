import pytest
import torch
from torch import nn

from distgnn.config import ModelConfig
from distgnn.nn.linear import Linear, multiply_in
from distgnn.nn.model import GraphRecommender


def rounded(x):
    return x.detach().to(torch.bfloat16).double()


@pytest.fixture
def maps():
    torch.manual_seed(0)
    ours, plain = Linear(64, 32), nn.Linear(64, 32)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def test_without_a_dtype_it_is_torchs(maps):
    ours, plain = maps
    x = torch.randn(50, 64)
    assert torch.equal(ours(x), plain(x))


def test_products_are_those_of_rounded_operands_forward_and_backward(maps):
    ours, _ = maps
    multiply_in(ours, torch.bfloat16)
    x = torch.randn(50, 64, requires_grad=True)
    grad = torch.randn(50, 32)
    out = ours(x)
    out.backward(grad)
    assert out.dtype == torch.float32 and ours.weight.grad.dtype == torch.float32
    unit = 2.0**-8  # of the result: each product of bfloat16 operands is rounded once
    for got, expected in (
        (out - ours.bias, rounded(x) @ rounded(ours.weight).T),
        (x.grad, rounded(grad) @ rounded(ours.weight)),
        (ours.weight.grad, rounded(grad).T @ rounded(x)),
    ):
        torch.testing.assert_close(got.double(), expected, rtol=unit, atol=unit * 0.02)
    torch.testing.assert_close(ours.bias.grad, grad.sum(0))
    assert not torch.equal(out.double(), x.double() @ ours.weight.double().T + ours.bias.double())


@pytest.mark.parametrize(("encoder", "tower", "n"), [("graphsage", "mlp", 2 * 2 + 2 * 2), ("gcn", "identity", 2)])
def test_every_linear_map_of_the_model_takes_part(encoder, tower, n):
    model = GraphRecommender(ModelConfig(encoder=encoder, tower=tower, matmul="bfloat16"), 2)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == n
    assert all(module.matmul is torch.bfloat16 for module in linear)
