"""What PyTorch does not promise, and we use, is as it was."""

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ntk_monitor
from ntk_monitor import compat
from ntk_monitor.compat import (
    NormWithStatistics,
    as_strided,
    backward_seen,
    default_device,
    hooks_of,
    only_batched,
    set_default_device,
    tree_leaves,
    without_torch_function,
)

ROOT = Path(ntk_monitor.__file__).parent


def test_nothing_else_uses_private_names_of_torch() -> None:
    private = re.compile(r"torch(?:\.\w+)*\._[A-Za-z]")
    for path in ROOT.rglob("*.py"):
        if path == ROOT / "compat.py":
            continue
        tree = ast.parse(path.read_text())
        imported = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        imported |= {
            alias.asname: alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.asname
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found = [name for name in names if private.match(name)]
            elif isinstance(node, ast.Attribute):
                first, *others = ast.unparse(node).split(".")
                name = ".".join([imported.get(first, first), *others])
                found = [name] if private.match(name) else []
            else:
                continue
            assert not found, f"{path.relative_to(ROOT)} uses {found[0]}: add it to compat.py"


def test_the_default_device_is_told() -> None:
    assert default_device() is None
    try:
        set_default_device("meta")
        assert default_device() == torch.device("meta")
    finally:
        set_default_device(None)
    assert default_device() is None
    assert torch.get_default_device() == torch.device("cpu")


def test_going_backward_is_seen_where_torch_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with torch 2.9; this test has it so whatever the version."""
    seen: list[str] = []
    made: list[Tensor] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
            seen.append(func.__name__)

    hidden = made.append
    monkeypatch.setattr(torch.autograd, "backward", hidden)
    monkeypatch.setattr(compat, "IS_BACKWARD_SEEN", False)
    loss = torch.ones(())
    with backward_seen(), Watch():
        torch.autograd.backward(loss)
    assert (seen, made) == (["backward"], [])
    with backward_seen():
        torch.autograd.backward(loss)
    assert made == [loss]
    assert torch.autograd.backward is hidden


def test_functions_pass_modes_unseen() -> None:
    class Seen(torch.overrides.TorchFunctionMode):
        count = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
            Seen.count += 1
            return func(*args, **(kwargs or {}))

    x = torch.ones(2)
    with Seen():
        torch.sin(x)
        with without_torch_function():
            torch.sin(x)
    assert Seen.count == 1


def test_normalisations_with_statistics_share_a_class() -> None:
    assert isinstance(nn.BatchNorm1d(2), NormWithStatistics)
    assert isinstance(nn.InstanceNorm1d(2), NormWithStatistics)
    assert not isinstance(nn.LayerNorm(2), NormWithStatistics)


def test_operations_that_cannot_be_batched_are_refused() -> None:
    """Without it torch warns of them, in the training of a user."""
    x = torch.randn(4, 2, requires_grad=True)
    y = nn.functional.pdist(x)
    pull = torch.func.vmap(lambda u: torch.autograd.grad(y, x, u, retain_graph=True)[0])
    with only_batched(), pytest.raises(RuntimeError, match="pdist"):
        pull(torch.eye(len(y)))
    with pytest.warns(UserWarning, match="performance drop"):
        assert pull(torch.eye(len(y))).shape == (len(y), 4, 2)


def test_hooks_of_a_parameter_are_found() -> None:
    p = nn.Parameter(torch.ones(2))
    assert hooks_of(p) == []
    p.register_hook(lambda g: g)
    p.register_post_accumulate_grad_hook(lambda t: None)
    assert [len(hooks) for hooks in hooks_of(p)] == [1, 1]


def test_memory_is_viewed() -> None:
    x = torch.arange(6.0)
    assert as_strided(x, (2, 2), (3, 1), 1).tolist() == [[1.0, 2.0], [4.0, 5.0]]


def test_leaves_are_those_of_nested_containers() -> None:
    assert tree_leaves({"a": [1, (2, None)], "b": 3}) == [1, 2, None, 3]
