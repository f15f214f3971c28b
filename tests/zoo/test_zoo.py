"""The monitor on every model of the zoo; ``python tests/zoo/page.py`` writes docs/models.md."""

import copy
import io
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntk_monitor import linearize, probe
from ntk_monitor.estimators import Activities
from ntk_monitor.model import Derivative, Linearization
from ntk_monitor.model.derivatives import site_sampling
from ntk_monitor.model.derivatives.site_sampling import SiteSampler
from zoo.cases import CASES, Animal
from zoo.page import PAGE, REST, row

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]


def trace(module: nn.Module) -> list[Any]:
    """Everything that a probe could have left on a module."""
    return [
        {k: dict(v) if isinstance(v, dict) else v for k, v in vars(m).items()}
        for m in module.modules()
    ]


def draw(J: Derivative, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A tangent and a direction of the state."""
    tangent, direction = (
        torch.randn(shape, generator=torch.Generator().manual_seed(2 * seed + i), dtype=J.dtype)
        for i, shape in enumerate((J.shape_in, J.shape_out))
    )
    return tangent, direction


def adjoint_error(lin: Linearization) -> float:
    """The median over a few pairs; that of one depends on how a processor rounds."""
    J, errors = lin.jacobian, []
    for seed in range(9):
        g, z = draw(J, seed)
        product = J.matvec(g)
        gap = (product.double() * z).sum() - (J.rmatvec(z).double() * g).sum()
        errors.append(float(gap.abs() / torch.linalg.vector_norm(product.double())))
    return median(errors)


def saved(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", CASES)
def test_probe(name: str) -> None:
    animal = CASES[name]
    module, batch = animal.make()
    before = trace(module)
    weights = {n: t.clone() for n, t in module.state_dict().items()}
    snapshot = probe(module, batch, state=animal.state, modes=1, max_products=24, tolerance=0.5)
    assert snapshot.trace.is_finite
    assert adjoint_error(linearize(module, batch, state=animal.state)) < 1e-5
    assert str(trace(module)) == str(before)
    for n, t in module.state_dict().items():
        assert torch.equal(t, weights[n]), n
    assert row(name, animal, snapshot) in PAGE.read_text(), "run python tests/zoo/page.py"


@pytest.mark.parametrize("name", CASES)
def test_products_agree_with_finite_differences(name: str) -> None:
    animal = CASES[name]
    module, batch = eager(name)
    lin = linearize(module, batch, state=animal.state, dtype=torch.float64)
    J = lin.jacobian
    g, z = draw(J)
    pulled = J.rmatvec(z)
    g *= pulled != 0  # the padding of an embedding moves the state, and no gradient moves it
    product = J.matvec(g)
    size = torch.linalg.vector_norm(product)

    def agrees(step: float) -> bool:
        ahead, behind = (
            moved(module, lin.parameters, change, batch, animal) for change in (step * g, -step * g)
        )
        gap = torch.linalg.vector_norm(product - (ahead - behind) / (2 * step))
        return float(gap / size) < animal.precision

    assert any(map(agrees, (1e-6, 1e-5, 1e-8, 1e-4)))
    forward, backward = (product * z).sum(), (pulled * g).sum()
    assert float((forward - backward).abs() / size) < 1e-4


def eager(name: str) -> tuple[nn.Module, Any]:
    """A model in float64, which the fused implementation of experts does not have."""
    module, batch = CASES[name].make()
    if hasattr(module, "set_experts_implementation"):
        module.set_experts_implementation("eager")
    return module.double(), batch


@pytest.mark.parametrize("name", [name for name in CASES if name != "Gemma"])  # not by differences
def test_products_at_the_sites(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a weight has more inputs than the state has rows, however small it is."""
    monkeypatch.setattr(site_sampling, "WORTHWHILE", 1)
    monkeypatch.setattr(site_sampling, "DEAR", 10**9)
    module, batch = eager(name)
    lin = linearize(
        module,
        batch,
        state=CASES[name].state,
        dtype=torch.float64,
        method="finite-difference",
        consume=Activities().add,
    )
    factor = lin.sampler(0)
    if not isinstance(factor, SiteSampler):
        pytest.skip("no weight has more inputs than the state has rows")
    _, direction = draw(lin.jacobian)
    assert factor.distance_to_parameters(direction) < max(CASES[name].precision, 1e-5)


UNSETTLED = {"orthogonal weight", "LightningTransformer", "ResNet"}
"""Models in which finite differences of single precision, in place or not, do not settle along some
or all tangents."""


@pytest.mark.parametrize("name", [name for name in CASES if name not in UNSETTLED])
def test_products_in_place(name: str) -> None:
    module, batch = CASES[name].make()
    before = {n: t.clone() for n, t in module.state_dict(keep_vars=True).items()}
    versions = {n: t._version for n, t in module.state_dict(keep_vars=True).items()}
    copied, ours = (
        linearize(module, batch, state=CASES[name].state, method=method)
        for method in ("finite-difference", "in-place")
    )
    assert ours.coverage == copied.coverage
    for site, other in zip(ours.sites, copied.sites, strict=True):
        assert (site.parameters, site.tap, site.units) == (other.parameters, other.tap, other.units)
        torch.testing.assert_close(site.activity, other.activity, rtol=1e-4, atol=1e-5)
    image, wanted = (lin.sampler(0).sample(range(1)) for lin in (ours, copied))
    assert float((image - wanted).norm()) < 0.01 * float(wanted.norm())
    z = draw(copied.jacobian)[1]
    torch.testing.assert_close(ours.jacobian.rmatvec(z), copied.jacobian.rmatvec(z))
    for n, t in module.state_dict(keep_vars=True).items():
        assert torch.equal(t, before[n]), n
        assert t._version == versions[n], n


def moved(
    module: nn.Module, names: tuple[str, ...], change: Tensor, batch: Any, animal: Animal
) -> Tensor:
    """The state after a change of the parameters."""
    module = copy.deepcopy(module)
    offset = 0
    for name in names:
        p = module.get_parameter(name)
        p.data += change[offset : offset + p.numel()].reshape(p.shape)
        offset += p.numel()
    return linearize(module, batch, state=animal.state, dtype=torch.float64).state


@pytest.mark.parametrize("name", CASES)
def test_a_probed_model_is_saved_as_before(name: str) -> None:
    module, batch = CASES[name].make()
    try:
        before = saved(module)
    except Exception as error:
        pytest.skip(f"torch.save cannot save this model in the first place: {error}")
    probe(module, batch, state=CASES[name].state, tier="core")
    assert len(saved(module)) == len(before)


def test_the_page_lists_the_zoo_and_nothing_else() -> None:
    own = PAGE.read_text().partition(REST)[0]
    lines = [line for line in own.splitlines() if line.startswith("| ")]
    names = [line.split("|")[1].strip() for line in lines]
    assert [name for name in names if name != "model"] == list(CASES)
