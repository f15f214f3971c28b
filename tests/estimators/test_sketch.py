"""Estimators on matrices of known spectrum."""

import math
from itertools import combinations

import pytest
import torch
from support.operator_suite import random
from torch import Tensor

import ntk_monitor.estimators.kernel.tangent_sketch as sketch_module
from ntk_monitor.estimators import (
    CoreGram,
    Estimate,
    ExactKernel,
    TangentSketch,
    draw_tangents,
)
from ntk_monitor.estimators.kernel import row_sketch as rows_module
from ntk_monitor.estimators.kernel.row_sketch import (
    COPIES,
    LEADING_ROWS,
    SKETCHED_ROWS,
    Room,
    Rows,
    choose_rows,
)
from ntk_monitor.estimators.pairs import PairMoments, Views
from ntk_monitor.estimators.subspace import starting_block, subspace_iteration
from ntk_monitor.uncertainty import (
    jackknife,
    log_jackknife,
    mean_and_deletes,
    pair_mean_and_deletes,
)

K, N = 12, 7


def columns(spectrum: Tensor, seed: int = 0) -> Tensor:
    """The columns of a Jacobian on a ``K x N`` state whose kernel has the given spectrum."""
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(K * N, K * N, generator=generator, dtype=torch.float64)).Q
    return (U[:, : len(spectrum)] * spectrum.sqrt()).T.reshape(-1, K, N)


def core(seed: int = 1) -> CoreGram:
    generator = torch.Generator().manual_seed(seed)
    return CoreGram(torch.randn(K, 4, generator=generator, dtype=torch.float64))


def sketch(J: Tensor, samples: int, seed: int) -> TangentSketch:
    G = draw_tangents(len(J), range(samples), seed, dtype=torch.float64)
    found = TangentSketch(core())
    Y = torch.einsum("sp,pkn->skn", G, J)
    for part in Y.split(5):
        found.extend(part)
    return found


SPECTRA = {
    "flat": torch.ones(K * N, dtype=torch.float64),
    "geometric": 0.8 ** torch.arange(60, dtype=torch.float64),
    "power": 1 / torch.arange(1.0, 61, dtype=torch.float64),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_pair_moments_are_unbiased(name: str) -> None:
    J = columns(SPECTRA[name])
    wanted = ExactKernel(J, core()).statistics
    repeats = [sketch(J, 12, seed).statistics for seed in range(100)]
    moments = (
        "trace_squared",
        "norm_squared",
        "temporal_norm_squared",
        "spatial_norm_squared",
        "core_inner",
    )
    for moment in moments:
        values = torch.stack([getattr(s, moment)[0] for s in repeats])
        truth = getattr(wanted, moment)[0]
        assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(repeats)), moment


def test_plug_in_ranks_would_be_far_off() -> None:
    J = columns(SPECTRA["flat"])
    found = sketch(J, 16, 0)
    S = draw_tangents(len(J), range(16), 0, dtype=torch.float64) @ J.flatten(1)
    gram = S @ S.T
    plug_in = float(gram.trace() ** 2 / gram.square().sum())
    assert plug_in < 0.3 * K * N
    assert found.statistics.effective_rank.value == pytest.approx(K * N, rel=0.4)


def test_samples_may_come_in_any_portions() -> None:
    J = columns(SPECTRA["power"])
    Y = torch.einsum("sp,pkn->skn", draw_tangents(60, range(13), 3, dtype=torch.float64), J)
    whole, parts = TangentSketch(core()), TangentSketch(core())
    whole.extend(Y)
    for part in (Y[:4], Y[4:5], Y[5:]):
        parts.extend(part)
    assert whole.statistics.effective_rank.value == pytest.approx(
        parts.statistics.effective_rank.value, rel=1e-12
    )
    assert whole.statistics.spatial_effective_rank.value == pytest.approx(
        parts.statistics.spatial_effective_rank.value, rel=1e-12
    )


@pytest.mark.parametrize("shape", [(3, 9), (9, 3)])
def test_pair_statistics_are_what_they_say(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    Y = torch.randn(6, *shape, generator=generator, dtype=torch.float64)
    V = torch.randn(shape[0], 2, generator=generator, dtype=torch.float64)
    found = TangentSketch(CoreGram(V))
    found.extend(Y)
    off = ~torch.eye(6, dtype=torch.bool)
    temporal = torch.einsum("ika,jkb->ijab", Y, Y).square().sum((2, 3))[off].mean()
    spatial = torch.einsum("ian,jbn->ijab", Y, Y).square().sum((2, 3))[off].mean()
    norm = torch.einsum("ikn,jkn->ij", Y, Y).square()[off].mean()
    inner = torch.einsum("km,ikn->imn", V, Y).square().sum((1, 2)).mean()
    s = found.statistics
    torch.testing.assert_close(s.temporal_norm_squared[0], temporal)
    torch.testing.assert_close(s.spatial_norm_squared[0], spatial)
    torch.testing.assert_close(s.norm_squared[0], norm)
    torch.testing.assert_close(s.core_inner[0], inner)


def long_samples(temporal: Tensor, units: int = 30) -> Tensor:
    """Samples on many rows whose temporal view has the given spectrum."""
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(600, len(temporal), generator=generator).double()).Q
    Z = torch.randn(10, len(temporal), units, generator=generator, dtype=torch.float64)
    return U @ (temporal.sqrt()[:, None] * Z)


def temporal_ranks(Y: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Estimate, Estimate, bool]:
    """Temporal effective rank as it is taken, and without compression; whether there was one."""
    V = CoreGram(torch.ones(600, 1, dtype=torch.float64))
    found, plain = TangentSketch(V), TangentSketch(V)
    found.extend(Y[:6])
    found.extend(Y[6:])
    monkeypatch.setattr(
        sketch_module, "choose_rows", lambda Y, processes, room: Rows(None, Y.shape[1])
    )
    plain.extend(Y)
    ranks = [s.statistics.temporal_effective_rank for s in (found, plain)]
    return ranks[0], ranks[1], found.rows.W is not None


@pytest.mark.parametrize("tail", [0.0, 2e-5])
def test_compressed_rows_leave_the_temporal_rank_alone(
    tail: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    spectrum = torch.cat([0.6 ** torch.arange(20.0), torch.full((500,), tail)]).double()
    found, plain, compressed = temporal_ranks(long_samples(spectrum), monkeypatch)
    assert compressed
    assert found.value == pytest.approx(plain.value, rel=3e-3)
    assert found.stderr == pytest.approx(plain.stderr, rel=0.05)


@pytest.mark.parametrize("units", [30, 250])
@pytest.mark.parametrize("tail", [2e-5, 1.0])
def test_temporal_eigenpairs_are_those_of_all_samples(units: int, tail: float) -> None:
    spectrum = torch.cat([0.6 ** torch.arange(20.0), torch.full((500,), tail)]).double()
    if tail == 1.0:
        spectrum[:20] *= 1e4
    Y = long_samples(spectrum, units)
    found = TangentSketch(CoreGram(torch.ones(600, 1, dtype=torch.float64)))
    found.extend(Y[:6])
    found.extend(Y[6:])
    values, modes = found.temporal_eigenpairs(8, 0)
    exact, vectors = torch.linalg.eigh(torch.einsum("ian,ibn->ab", Y, Y) / (units * len(Y)))
    torch.testing.assert_close(values, exact.flip(0)[:8], rtol=1e-5, atol=0)
    overlaps = (modes * vectors.flip(1)[:, :8]).sum(0).abs()
    torch.testing.assert_close(overlaps, torch.ones(8).double(), rtol=1e-4, atol=0)


def limited(Y: Tensor, most_entries: float) -> TangentSketch:
    """A sketch of samples of which not all rows may be kept."""
    V = torch.stack([torch.ones(600), torch.linspace(-1, 1, 600)], dim=1).double()
    samples, n = 4000, Y.shape[2]
    numbers = COPIES * most_entries * (samples + 600 / n)
    sketch = TangentSketch(CoreGram(V), Room(numbers, samples))
    sketch.extend(Y[:6])
    sketch.extend(Y[6:])
    return sketch


def test_views_that_are_settled_take_no_more_samples() -> None:
    Y = long_samples(0.6 ** torch.arange(20.0).double(), 12)
    first = limited(Y[:7], math.inf)
    both = limited(Y[:7], math.inf)
    before = first.statistics
    both.settle_views()
    both.extend(Y[7:])
    after, whole = both.statistics, limited(Y, math.inf).statistics
    for name in ("temporal_effective_rank", "spatial_effective_rank", "temporal_core_cosine"):
        ours, theirs = getattr(after, name), getattr(before, name)
        assert ours.value == pytest.approx(theirs.value, rel=1e-10)
        assert ours.stderr == pytest.approx(theirs.stderr, rel=1e-8)
    for name in ("trace", "frobenius_norm", "effective_rank", "core_cosine"):
        ours, theirs = getattr(after, name), getattr(whole, name)
        assert ours.value == pytest.approx(theirs.value, rel=1e-10)
        assert ours.stderr == pytest.approx(theirs.stderr, rel=1e-8)
    assert after.relative_error >= after.relative_error_of_views > 0


VIEWS = ("temporal_effective_rank", "spatial_effective_rank", "effective_rank", "core_cosine")


@pytest.mark.parametrize("units", [10, 30, 900])
def test_rows_that_are_too_many_are_sketched_twice(units: int) -> None:
    tail = torch.cat([0.6 ** torch.arange(20.0), torch.full((400,), 2e-3)]).double()
    Y = long_samples(tail, units)
    whole = limited(Y, math.inf)
    assert whole.rows.W is None
    rows = 400
    found = limited(Y, rows * units)
    assert found.rows.twofold
    assert found.rows.W is not None
    assert 0.9 * rows <= len(found.rows.W) <= rows
    later = Y[6:]
    left = 1 - float(found.rows.lead(found.rows.keep(later)).square().sum() / later.square().sum())
    assert found.rows.noise == pytest.approx(2 * left / math.sqrt((rows - 128) // 2), rel=0.3)
    assert 0.01 < found.rows.noise < 0.1
    for name in (*VIEWS, "trace", "frobenius_norm", "temporal_core_cosine"):
        ours, theirs = (getattr(s.statistics, name) for s in (found, whole))
        noise = found.rows.noise if "cosine" not in name else found.statistics._cosine_noise
        assert abs(ours.value / theirs.value - 1) < 2 * noise, name
        assert ours.stderr >= found.rows.noise * ours.value or name == "trace", name


def test_two_sketches_have_no_bias_where_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    Y = long_samples(torch.ones(500, dtype=torch.float64), 20)
    whole = limited(Y, math.inf).statistics
    ratios: dict[str, list[float]] = {name: [] for name in ("both", "one")}
    for seed in range(12):
        monkeypatch.setattr(rows_module, "SEED", seed)
        found = limited(Y, 300 * 20)
        both = found.rows.views

        def one(kept: Tensor, both: Views = both) -> tuple[Tensor, Tensor]:
            return (both(kept)[0],) * 2

        for kind, view in (("both", both), ("one", one)):
            moments = PairMoments(found.rows.keep(found._gram.factor), view)
            moments.extend(found.rows.keep(Y))
            norm = pair_mean_and_deletes(moments.views[0])[0]
            ratios[kind].append(float(norm / whole.temporal_norm_squared[0]))
    unbiased, biased = (torch.tensor(ratios[kind]) for kind in ("both", "one"))
    error = float(unbiased.std()) / math.sqrt(len(unbiased))
    assert abs(float(unbiased.mean()) - 1) < 4 * error
    assert error < 0.05
    assert float(biased.mean()) > 1.3


@pytest.mark.parametrize("most", [math.inf, 400 * 30])
def test_deflation_and_modes_go_on_in_sketched_rows(most: float) -> None:
    tail = torch.cat([0.6 ** torch.arange(20.0), torch.full((400,), 2e-3)]).double()
    Y = long_samples(tail, 30)
    found, plain = limited(Y, most), limited(Y, math.inf)
    J = Y[:8].flatten(1).T
    U = random(1, 600, 30, seed=3)
    for sketch in (found, plain):
        kept = sketch.rows.lead(sketch.rows.keep(U))
        lifted = sketch.rows.lift(kept)
        sketch.deflate(kept, (lifted.flatten(1) @ J @ J.T).reshape(1, 600, 30))
        assert sketch.atoms == 1
    for name in VIEWS:
        ours, theirs = (getattr(s.statistics, name) for s in (found, plain))
        assert ours.value == pytest.approx(theirs.value, rel=0.2), name


def test_samples_of_few_units_have_few_leading_rows() -> None:
    Y = long_samples(0.02 ** torch.arange(6.0).double(), 2)[:4]
    rows = choose_rows(Y)
    assert rows.W is not None
    assert rows.leading == 6 < LEADING_ROWS[0]
    X = random(6, 2, seed=0)
    torch.testing.assert_close(rows.lead(rows.keep(rows.lift(X))), X)


def test_rows_with_a_long_tail_are_not_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    spectrum = torch.ones(500, dtype=torch.float64)
    found, plain, compressed = temporal_ranks(long_samples(spectrum), monkeypatch)
    assert not compressed
    assert found.value == pytest.approx(plain.value, rel=1e-9)


def test_zero_kernel_has_no_rank_and_no_crash() -> None:
    found = TangentSketch(core())
    found.extend(torch.zeros(6, K, N, dtype=torch.float64))
    s = found.statistics
    assert s.trace == Estimate(0.0, 0.0)
    assert s.frobenius_norm == Estimate(0.0, 0.0)
    assert math.isnan(s.effective_rank.value)
    assert math.isnan(s.core_cosine.value)


def test_non_finite_samples_give_nan() -> None:
    found = TangentSketch(core())
    Y = torch.ones(6, K, N, dtype=torch.float64)
    Y[2, 0, 0] = math.inf
    found.extend(Y)
    assert not found.statistics.effective_rank.is_finite


def test_tangents_depend_on_seed_and_index_alone() -> None:
    whole = draw_tangents(50, range(8), seed=4)
    torch.testing.assert_close(whole[3:6], draw_tangents(50, range(3, 6), seed=4), rtol=0, atol=0)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, draw_tangents(50, range(8), seed=5))
    double = draw_tangents(50, range(8), seed=4, dtype=torch.float64)
    torch.testing.assert_close(double.float(), whole, rtol=0, atol=0)
    long = draw_tangents(20_000, range(2), seed=0)
    assert abs(float(long.mean())) < 0.03
    assert float(long.var()) == pytest.approx(1.0, abs=0.05)
    assert abs(float((long[0] * long[1]).mean())) < 0.03


def test_tangents_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw_tangents(10, range(3), seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_jackknife_of_a_mean_is_the_standard_error() -> None:
    samples = torch.tensor([1.0, 1.1, 0.9, 1.05, 0.95, 1.0], dtype=torch.float64)
    found = log_jackknife(mean_and_deletes(samples))
    assert found.value == pytest.approx(1.0, abs=1e-3)
    assert found.stderr == pytest.approx(float(samples.std() / math.sqrt(6)), rel=0.02)


def test_delete_values_leave_one_sample_out_or_two() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, generator=generator, dtype=torch.float64)
    pairs = torch.outer(x, x)
    found = pair_mean_and_deletes(pairs)
    for i in range(5):
        kept = [j for j in range(5) if j != i]
        rest = pairs[kept][:, kept]
        off = ~torch.eye(4, dtype=torch.bool)
        torch.testing.assert_close(found[1 + i], rest[off].mean())
        torch.testing.assert_close(mean_and_deletes(x)[1 + i], x[kept].mean())
    for position, (i, j) in enumerate(combinations(range(5), 2)):
        kept = [k for k in range(5) if k not in {i, j}]
        rest = pairs[kept][:, kept][~torch.eye(3, dtype=torch.bool)]
        torch.testing.assert_close(found[6 + position], rest.mean())
        torch.testing.assert_close(mean_and_deletes(x)[6 + position], x[kept].mean())


def test_jackknife_does_not_overstate_where_pairs_interact() -> None:
    """The norm of a covariance by pairs: delete-one values alone say too much."""
    generator = torch.Generator().manual_seed(0)
    found, naive = [], []
    for _ in range(500):
        y = torch.randn(14, 30, generator=generator, dtype=torch.float64)
        values = pair_mean_and_deletes((y @ y.T).square()).log()
        found.append(jackknife(values))
        one = values[1:15]
        naive.append(13 / 14 * (one - one.mean()).square().sum())
    observed = torch.tensor([e.value for e in found]).std()
    stated = torch.tensor([e.stderr for e in found]).square().mean().sqrt()
    assert float(torch.stack(naive).mean().sqrt() / observed) > 1.2
    assert float(stated / observed) == pytest.approx(1.0, abs=0.2)


def test_jackknife_removes_the_bias_of_a_ratio() -> None:
    # (mean of x)^2 estimates (E x)^2 = 1 with bias var/s; its square root on the log scale, too.
    generator = torch.Generator().manual_seed(0)
    plain, corrected = [], []
    for _ in range(400):
        x = 1 + 0.8 * torch.randn(8, generator=generator, dtype=torch.float64)
        values = 1 / mean_and_deletes(x.square())
        plain.append(float(values[0]))
        corrected.append(log_jackknife(values).value)
    truth = 1 / (1 + 0.8**2)
    assert abs(sum(corrected) / 400 - truth) < 0.5 * abs(sum(plain) / 400 - truth)


def test_subspace_iteration_of_a_known_matrix() -> None:
    values = 0.5 ** torch.arange(40, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64)).Q
    M = Q * values @ Q.T
    start = starting_block(40, 5, torch.Generator().manual_seed(1), dtype=torch.float64)
    found, vectors = subspace_iteration(lambda X: M @ X, start, 5)
    torch.testing.assert_close(found, values[:5], rtol=1e-10, atol=0)
    torch.testing.assert_close((vectors * Q[:, :5]).sum(0).abs(), torch.ones(5).double())
    assert bool((vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all())


def test_core_gram_is_exact() -> None:
    for shape in ((6, 3), (3, 6)):
        V = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        G, found = V @ V.T, CoreGram(V)
        torch.testing.assert_close(
            found.spectrum, torch.linalg.eigvalsh(G).flip(0)[: min(shape)], rtol=1e-9, atol=1e-12
        )
        assert float(found.norm_squared) == pytest.approx(float(G.square().sum()))
        u = torch.randn(shape[0], generator=torch.Generator().manual_seed(1)).double()
        wanted = float(u @ G @ u / (torch.linalg.matrix_norm(G, 2) * u @ u))
        assert found.overlap(u) == pytest.approx(wanted)
        assert found.overlap(torch.linalg.svd(V).U[:, 0]) == pytest.approx(1.0)
        torch.testing.assert_close(found.factor @ found.factor.T, G)


@pytest.mark.parametrize("shape", [(300, 60), (60, 300)])
def test_core_factor_drops_only_what_rounding_hides(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    U, W = (torch.linalg.qr(torch.randn(s, 60, generator=generator).double()).Q for s in shape)
    V = ((U * 0.3 ** torch.arange(60)) @ W.T).float()
    factor = CoreGram(V).factor
    assert 5 < factor.shape[1] < 15
    torch.testing.assert_close(factor @ factor.T, V @ V.T, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(12.34, 0.5), "12.34 ± 0.50"),
        (Estimate(1234.0, 56.0), "1234 ± 56"),
        (Estimate(0.5), "0.5"),
        (Estimate(math.nan, math.nan), "nan"),
        (Estimate(2e-11, 3e-13), "2e-11 ± 3e-13"),
    ],
)
def test_estimates_print_to_the_digit_they_support(estimate: Estimate, text: str) -> None:
    assert str(estimate) == text


def test_deflation_twice_keeps_its_accuracy_in_compressed_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spectrum = torch.cat([0.6 ** torch.arange(20.0), torch.full((500,), 2e-5)]).double()
    Y = long_samples(spectrum, 30)
    J = Y[:8].flatten(1).T  # a Jacobian of eight columns, whose samples are combinations of them
    G = draw_tangents(8, range(10), 0, dtype=torch.float64)

    directions: list[Tensor] = []

    def twice() -> TangentSketch:
        sketch = TangentSketch(CoreGram(Y[8, :, :3]))
        sketch.extend((G[:6] @ J.T).reshape(6, *Y.shape[1:]))
        if not directions:
            directions.extend(
                sketch.rows.lift(random(2, LEADING_ROWS[0], 30, seed=i)) for i in range(2)
            )
        for U in directions:
            coordinates = sketch.rows.lead(sketch.rows.keep(U))
            sketch.deflate(coordinates, (U.flatten(1) @ J @ J.T).reshape(2, *Y.shape[1:]))
        sketch.extend((G[6:] @ J.T).reshape(4, *Y.shape[1:]))
        return sketch

    found = twice()
    assert found.rows.W is not None
    monkeypatch.setattr(
        sketch_module, "choose_rows", lambda Y, processes, room: Rows(None, Y.shape[1])
    )
    plain = twice()
    assert plain.atoms == found.atoms == 4
    for name in ("trace", "effective_rank", "spatial_effective_rank", "core_cosine"):
        ours, theirs = getattr(found.statistics, name), getattr(plain.statistics, name)
        assert ours.value == pytest.approx(theirs.value, rel=5e-3), name
    values, modes = found.temporal_eigenpairs(4, 0)
    wanted, vectors = plain.temporal_eigenpairs(4, 0)
    torch.testing.assert_close(values, wanted, rtol=1e-3, atol=0)
    cosines = (modes * vectors).sum(0).abs()
    torch.testing.assert_close(cosines, torch.ones(4).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("leading", LEADING_ROWS)
def test_rows_are_as_few_as_the_samples_allow(leading: int) -> None:
    Y = long_samples(torch.ones(leading, dtype=torch.float64))
    rows = choose_rows(Y)
    assert rows.leading == leading
    assert rows.keep(Y).shape == (10, leading + SKETCHED_ROWS, 30)
    X = random(2, leading, 30, seed=0)
    torch.testing.assert_close(rows.lead(rows.keep(rows.lift(X))), X)
    torch.testing.assert_close(rows.lift(rows.lead(rows.keep(Y))), Y)
