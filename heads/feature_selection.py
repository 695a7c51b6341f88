"""Which few features, and which of them for each class: the choice behind `sparse_features`, as an optimisation.

Of d features choose n, and for each of c classes k of these (its edges; no two classes the same), to maximise

    Σ over edges of gain[f, c]  +  Σ over chosen features of bonus[f]  −  Σ over chosen pairs of penalty[f, g]

It is NP-hard. `select` is greedy and then swaps one feature for another as long as that helps. How much it may have
missed is known all the same: `upper_bound` is the value of the linear programming relaxation (variables in 0..1, pairs
as y_fg ≥ x_f + x_g − 1), approached from above through its Lagrangian dual, every value of which is a bound. So no
solver is needed; the tests hold both to SciPy's HiGHS.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """What to choose, in fp64 on the CPU."""

    gain: Tensor  # d c: of an edge between feature and class
    bonus: Tensor  # d: of a feature
    penalty: Tensor  # d d: of a pair; symmetric, not negative, zero on the diagonal
    num_selected: int  # n
    per_class: int  # k, at most n; n must have at least c subsets of that size


class Selection(NamedTuple):
    """A choice, and how good it is."""

    selected: Tensor  # n int64, rising
    edges: Tensor  # c d bool, k in each row
    objective: float
    bound: float  # no choice has a higher objective

    @property
    def gap(self) -> float:
        """The share of the bound that this choice may have missed."""
        return (self.bound - self.objective) / max(abs(self.bound), 1e-12)


def select(problem: Problem) -> Selection:
    """A good choice: greedy, then swaps; the same for the same problem."""
    chosen: list[int] = []
    for _ in range(problem.num_selected):
        chosen.append(int(_marginal(problem, chosen).argmax()))
    _swap(problem, chosen)
    objective = _swap_distinct(problem, chosen)
    chosen.sort()
    edges = torch.zeros(problem.gain.shape[::-1], dtype=torch.bool)
    for number, features in _distinct_edges(problem, chosen).items():
        edges[number, features] = True
    return Selection(torch.tensor(chosen), edges, objective, upper_bound(problem))


def _marginal(problem: Problem, chosen: list[int]) -> Tensor:
    """What each feature would add to the objective of `chosen`, were classes free to share edges: `d`, −∞ if in it.

    Every class takes the best k of what is chosen, so a feature adds what it is better than a class's k-th.
    """
    gain, k = problem.gain, problem.per_class
    held = gain[chosen]
    replaced = held.topk(k, dim=0).values[-1] if len(chosen) >= k else None
    of_classes = gain.sum(1) if replaced is None else (gain - replaced).clamp(min=0).sum(1)
    marginal = of_classes + problem.bonus - problem.penalty[:, chosen].sum(1)
    marginal[chosen] = -torch.inf
    return marginal


def _swap(problem: Problem, chosen: list[int]) -> None:
    """Replace single features, in place, by the best of all others, until no replacement helps."""
    unchanged = place = 0
    while unchanged < len(chosen):
        rest = chosen[:place] + chosen[place + 1 :]
        marginal = _marginal(problem, rest)
        best = int(marginal.argmax())
        # Rounding must not swap two equals to and fro.
        if marginal[best] > marginal[chosen[place]] + 1e-12:
            chosen[place], unchanged = best, 0
        else:
            unchanged += 1
        place = (place + 1) % len(chosen)


def _swap_distinct(problem: Problem, chosen: list[int]) -> float:
    """As `_swap`, where classes contend for the same edges: by the objective itself, which is returned.

    `_marginal` lets classes share their edges; here the few replacements that it likes best are tried out.
    """
    value, is_contended = _value(problem, chosen)
    tries = min(4, len(problem.bonus) - len(chosen) + 1)
    unchanged = place = 0
    while is_contended and unchanged < len(chosen):
        unchanged += 1
        for candidate in _marginal(problem, chosen[:place] + chosen[place + 1 :]).topk(tries).indices:
            tried = [*chosen[:place], int(candidate), *chosen[place + 1 :]]
            attained, contended = _value(problem, tried)
            if attained > value + 1e-12:
                chosen[:], value, is_contended, unchanged = tried, attained, contended, 0
                break
        place = (place + 1) % len(chosen)
    return value


def _value(problem: Problem, chosen: list[int]) -> tuple[float, bool]:
    """The objective of `chosen`, and whether a class had to leave its best edges to another."""
    gain = problem.gain[chosen]
    of_features = problem.bonus[chosen].sum() - problem.penalty[chosen][:, chosen].sum() / 2
    of_edges = sum(
        problem.gain[features, number].sum() for number, features in _distinct_edges(problem, chosen).items()
    )
    return (of_features + of_edges).item(), bool(of_edges < gain.topk(problem.per_class, dim=0).values.sum() - 1e-12)


def _distinct_edges(problem: Problem, chosen: list[int]) -> dict[int, list[int]]:
    """For each class the best k of `chosen` that no other class has: equal classes could not be told apart.

    Classes choose in turn, first those whose k-th feature is furthest ahead of the next: they have most to lose.
    """
    ranked, order = problem.gain[chosen].T.sort(dim=1, descending=True, stable=True)
    k = problem.per_class
    following = ranked[:, k] if k < len(chosen) else ranked[:, -1]
    taken: set[frozenset[int]] = set()
    edges = {}
    for number in (following - ranked[:, k - 1]).argsort(stable=True).tolist():
        features = [chosen[place] for place in order[number]]
        subsets = ([features[place] for place in places] for places in _best_subsets(ranked[number], k))
        edges[number] = next(subset for subset in subsets if frozenset(subset) not in taken)
        taken.add(frozenset(edges[number]))
    return edges


def _best_subsets(values: Tensor, size: int) -> Iterator[Sequence[int]]:
    """Places of all subsets of `size` of the falling `values`, those with the highest sums first."""
    ranked = values.tolist()
    first = tuple(range(size))
    heap, seen = [(-sum(ranked[:size]), first)], {first}
    while heap:
        cost, places = heapq.heappop(heap)
        yield places
        for number, place in enumerate(places):
            following = place + 1
            if following < len(ranked) and following not in places:
                moved = (*places[:number], following, *places[number + 1 :])
                if moved not in seen:
                    seen.add(moved)
                    heapq.heappush(heap, (cost + ranked[place] - ranked[following], moved))


@torch.enable_grad()
def upper_bound(problem: Problem, steps: int = 300) -> float:
    """A value that no choice exceeds, near that of the linear programming relaxation.

    With a price u_c for an edge of class c, and v_fg ≤ penalty_fg for using both f and g, no choice is worth more than

        k Σ u + Σ v + the n largest of (bonus_f + Σ_c max(gain_fc − u_c, 0) − Σ_g v_fg)

    and the least such value over u and v is the relaxation's. It is sought by Adam's steps; whatever they reach holds.
    First without v, then with v between the features that were worth most: others hardly take part, and d² is many.
    Held and Karp, "The traveling-salesman problem and minimum spanning trees: part II", 1971.
    """
    gain, bonus, penalty, n, k = problem
    prices = gain.topk(min(k + 1, len(gain)), dim=0).values[-1].clone().requires_grad_()
    step = 0.1 * gain.std(correction=0).item() or 1.0

    def worth() -> Tensor:
        return bonus + (gain - prices).clamp(min=0).sum(1)

    def alone() -> Tensor:
        return k * prices.sum() + worth().topk(n).values.sum()

    def in_pairs() -> Tensor:
        paid = among * (shares + shares.T) / 2
        return k * prices.sum() + paid.sum() / 2 + worth().index_add(0, likely, -paid.sum(1)).topk(n).values.sum()

    bound = _descended(alone, [{"params": [prices], "lr": step}], steps)
    likely = worth().detach().topk(min(max(10 * n, 400), len(gain))).indices
    among = penalty[likely][:, likely]
    shares = torch.zeros_like(among).requires_grad_()  # v as a share of the penalty
    groups = [{"params": [prices], "lr": step}, {"params": [shares], "lr": 0.1}]
    return min(bound, _descended(in_pairs, groups, steps, lambda: shares.clamp_(0, 1)))


def _descended(
    value: Callable[[], Tensor], groups: list[dict[str, Any]], steps: int, restrain: Callable[[], object] = lambda: None
) -> float:
    """The least `value` on Adam's way down, its steps fading out; `restrain` puts parameters back where they may be."""
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    least = torch.inf
    for _ in range(steps):
        reached = value()
        least = min(least, reached.item())
        optimizer.zero_grad()
        reached.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            restrain()
    return least
