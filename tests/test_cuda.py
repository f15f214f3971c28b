"""Probes on a GPU say what they say on the CPU."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import CASES
from harm.evidence import differences
from harm.on_gpu import trained, trained_apart
from harm.worlds import MODELS
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ntk_monitor import linearize, probe
from ntk_monitor.estimators import draw_tangents
from ntk_monitor.model.parameters.pieces import Gaussian, pieces
from ntk_monitor.model.parameters.sharding import Sharding, place_of
from ntk_monitor.probe import Probe
from ntk_monitor.processes import Processes

DEVICE, BACKEND = "cuda", "nccl"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.parametrize("method", ["auto", "finite-difference", "double-backward", "exact"])
@pytest.mark.parametrize("name", CASES)
def test_exact_numbers_agree_with_the_cpu(name: str, method: str) -> None:
    case = CASES[name]
    model, batch = case.make_model(), case.make_batch()
    settings = {"state": case.state, "method": method, "dtype": None, "learning_rate": 0.1}
    here = probe(model, batch, **settings)
    there = probe(model.cuda(), tuple(t.cuda() for t in batch), **settings)
    assert there.core_effective_rank == pytest.approx(here.core_effective_rank, rel=1e-8)
    for ours, theirs in zip(here.target_modes, there.target_modes, strict=True):
        assert theirs.gain == pytest.approx(ours.gain, rel=1e-6)
    # The tangents of a GPU are others, so sampled numbers agree within their errors.
    for metric in ("trace", "effective_rank", "core_cosine"):
        a, b = getattr(here, metric), getattr(there, metric)
        assert abs(a.value - b.value) <= 5 * (a.stderr + b.stderr) + 1e-6 * abs(a.value)


def test_gpt2_size_fits_and_is_left_alone() -> None:
    """GPT-2's shape, 8 x 512 tokens: a probe ends, is finite, and gives all memory back."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, batch_first=True)
    with torch.device("cuda"):
        model = nn.Sequential(nn.TransformerEncoder(layer, 12), nn.Linear(768, 3)).cuda()
        x = torch.randn(8, 512, 768)
    batch, settings = (x, x[..., :3]), {"state": "0", "max_products": 24}
    probe(model, batch, **settings)  # the first leaves the work spaces of the GPU's libraries
    before = torch.cuda.memory_allocated()
    gc.disable()
    try:
        assert probe(model, batch, **settings).is_finite
        assert torch.cuda.memory_allocated() == before
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("kind", MODELS)
def test_training_on_a_gpu_is_the_same(kind: str, precision: str, tmp_path: Path) -> None:
    # The dropout of an LSTM goes on, in cuDNN, from where the process's last training left it.
    train = trained_apart if kind == "LSTM" else trained
    watched, plain = (train(kind, precision, tmp_path, watched=w) for w in (True, False))
    found = differences(watched, plain)
    if found and kind == "LSTM":
        again = train(kind, precision, tmp_path, watched=False)
        if differences(again, plain):
            pytest.skip(f"cuDNN does not repeat this training, watched or not: {found}")
    assert found == set()


def test_a_probe_uses_full_float32_and_leaves_tf32_on() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 4)).cuda()
    x = torch.randn(64, 256, device="cuda")
    wanted = probe(net, x, method="exact", parameters="0.bias")
    torch.set_float32_matmul_precision("high")
    try:
        found = probe(net, x, method="exact", parameters="0.bias")
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found.trace == wanted.trace


def test_out_of_memory_on_a_gpu_costs_a_probe_and_no_more() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).cuda()
    x = torch.randn(4, 8, device="cuda")
    probe(net, x)
    before = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            probe(net, torch.randn(2**20, 8, device="cpu"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.memory_allocated() == before
    assert probe(net, x).is_finite


def bits(module: nn.Module) -> list[bytes]:
    every = [p.detach().cpu().contiguous().flatten() for p in module.parameters()]
    return [p.view(torch.uint8).numpy().tobytes() for p in every]


@pytest.mark.parametrize("name", CASES)
def test_products_in_place_are_those_of_a_copy_and_leave_no_trace(name: str) -> None:
    case = CASES[name]
    model = case.make_model().to(DEVICE)
    batch = tuple(t.to(DEVICE) for t in case.make_batch())
    before = bits(model)
    ours, copied = (
        linearize(model, batch, method=method, state=case.state, dtype=None)
        for method in ("in-place", "finite-difference")
    )
    torch.testing.assert_close(
        ours.sampler(3).sample(range(4)), copied.sampler(3).sample(range(4)), rtol=1e-6, atol=1e-7
    )
    u = torch.randn_like(ours.state)
    pulled, wanted = ours.sampler(3).pull(u), copied.sampler(3).pull(u)
    torch.testing.assert_close(torch.cat([x.flatten() for x in pulled]), wanted)
    assert ours.sampler(3).inner(2, pulled) == pytest.approx(copied.sampler(3).inner(2, wanted))
    assert probe(model, batch, method="in-place", state=case.state, dtype=None).is_finite
    assert bits(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_of_low_precision_stay_what_they_are_to_the_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(32, 700), nn.Tanh(), nn.Linear(700, 200), nn.Linear(200, 2)]
    model = nn.Sequential(*layers).to(DEVICE, dtype)
    before = bits(model)
    x = torch.randn(8, 32, device=DEVICE, dtype=dtype)
    linearize(model, x, method="in-place", dtype=None, accuracy=10.0).sampler(0).sample(range(3))
    assert bits(model) == before


def test_tangents_drawn_piece_by_piece_are_those_drawn_at_once() -> None:
    """A GPU draws in blocks of 2^22 entries, in which parameters begin and end anywhere."""
    sizes = (2**22 + 17, 3 * 2**21, 5)
    parameters = [torch.zeros(size, device=DEVICE) for size in sizes]
    wanted = draw_tangents(sum(sizes), range(3, 4), 7, device=DEVICE)[0]
    spread = Sharding([place_of(p) for p in parameters])
    found = []
    for number, parameter in enumerate(parameters):
        read = Gaussian(7, 3, spread, torch.device(DEVICE)).reader(number, parameter)
        found += [read(piece.start, piece.numbers.numel()) for piece in pieces([parameter])]
    assert torch.equal(torch.cat(found), wanted)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Processes]:
    """The only process of a group."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group(BACKEND, store=store, rank=0, world_size=1)
    yield Processes(dist.group.WORLD, DEVICE)
    dist.destroy_process_group()


def mlp() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 4)]
    return nn.Sequential(*layers).double().to(DEVICE), torch.randn(6, 3).double().to(DEVICE)


def test_processes_meet_on_the_device(group: Processes) -> None:
    riders = torch.tensor([1.5, -2.0], device=DEVICE)
    assert group._meet("here", riders).tolist() == [1.5, -2.0]
    assert group.given > 0
    module, x = mlp()
    measure = Probe(dtype=None, learning_rate=0.1)
    ours, alone = measure(module, x, processes=group), measure(module, x)
    assert ours.trace == alone.trace


def test_a_sharded_model_on_one_device_has_the_numbers_of_a_whole_one(group: Processes) -> None:
    module, x = mlp()
    wanted = Probe(method="in-place", dtype=None, learning_rate=0.1)(module, x).scalars()
    for part in (module[0], module):
        fully_shard(part, mesh=init_device_mesh(DEVICE, (1,)))
    found = Probe(dtype=None, learning_rate=0.1)(module, x, processes=group)
    assert found.method == "in-place"
    for tag, number in found.scalars().items():
        if tag != "ntk/probe_seconds":
            assert number == pytest.approx(wanted[tag], rel=1e-6, abs=1e-9), tag
