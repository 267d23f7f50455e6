"""Exact answers about the configurations that meet additive constraints: one point (MILP), or all (tree search).

Both work on relative tables T[c, l, a, w] over choice indices (:meth:`SearchSpace.project`): a configuration meets
the constraints when ``sum_l T[c, l, a_l, w_l] <= limits[c]`` for all c.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qsearch.errors import SpaceError
from qsearch.space.genes import FloatArray, IntArray
from qsearch.space.space import SearchSpace

#: A constraint counts as met up to this relative excess: sums of many floats are not exact.
TOLERANCE = 1e-9

#: HiGHS accepts rows violated by up to 1e-6, so the first attempt keeps twice that distance.
_SOLVER_SLACK = 2e-6
_MAX_CUTS = 32
_NODE_LIMIT = 200_000


def solve(
    space: SearchSpace, tables: FloatArray, limits: FloatArray, objective: FloatArray | None = None
) -> tuple[IntArray, IntArray] | None:
    """Finds a configuration that meets all constraints with a mixed-integer program.

    One binary variable per activation choice of each group (one-hot) and one per legal pair of each layer; the pairs
    of a layer that use activation a sum to the group's variable for a. The solver's answer is recomputed exactly;
    one that misses a bound by the solver's tolerance is cut off and the program solved again.

    Args:
        space: The search space: L layers, G activation groups.
        tables: [C, L, activation index, weight index], relative costs, NaN at illegal pairs.
        limits: [C], relative bounds.
        objective: [L, activation index, weight index] to minimise; None for any feasible configuration.

    Returns:
        Activation indices [G] and weight indices [L], or None when no configuration meets the constraints.

    Raises:
        SpaceError: The solver gave up before it could tell.
    """
    program = _Program(space, tables, objective)
    # Keeping a distance from the bounds gives a safe point, but not the smallest objective.
    for slack in (_SOLVER_SLACK, 0.0) if objective is None else (0.0,):
        program.cuts.clear()
        for _ in range(_MAX_CUTS):
            point = program.solve(limits - slack)
            if point is None:
                break
            activations, weights = point
            cost = tables[:, np.arange(space.n_layers), activations[space.group_of], weights].sum(axis=1)
            if np.all(cost - limits <= TOLERANCE):
                return point
            program.cut(activations, weights)
    return None


class _Program:
    """The mixed-integer program of one space and its tables."""

    def __init__(self, space: SearchSpace, tables: FloatArray, objective: FloatArray | None) -> None:
        # Loading scipy's solver takes longer than all other imports of this room together.
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array, csr_array, vstack

        self._milp, self._linear, self._vstack, self._csr = milp, LinearConstraint, vstack, csr_array
        self._space = space
        self.cuts: list[IntArray] = []

        groups, choices = np.nonzero(
            np.arange(max(len(gene.choices) for gene in space.activation_genes))[None]
            < np.array([len(gene.choices) for gene in space.activation_genes])[:, None]
        )
        self._group_variable = np.full((space.n_groups, choices.max() + 1), -1, dtype=np.int64)
        self._group_variable[groups, choices] = np.arange(len(groups))
        self._layers, self._actives, self._widths = np.nonzero(space.allowed)
        self._first_pair = len(groups)
        pairs = self._first_pair + np.arange(len(self._layers))
        self._n_variables = self._first_pair + len(pairs)

        # One row per group: its choices sum to 1.
        one_hot = coo_array(
            (np.ones(len(groups)), (groups, np.arange(len(groups)))), (space.n_groups, self._n_variables)
        )
        # One row per (layer, activation choice): its pairs sum to the group's variable.
        span = space.allowed.shape[1]
        keys, rows = np.unique(self._layers * span + self._actives, return_inverse=True)
        owners = self._group_variable[space.group_of[keys // span], keys % span]
        link = coo_array(
            (
                np.concatenate([np.ones(len(pairs)), -np.ones(len(keys))]),
                (np.concatenate([rows, np.arange(len(keys))]), np.concatenate([pairs, owners])),
            ),
            (len(keys), self._n_variables),
        )
        self._structure = vstack([one_hot, link]).tocsr()
        self._right = np.concatenate([np.ones(space.n_groups), np.zeros(len(keys))])
        costs = np.zeros((len(tables), self._n_variables))
        costs[:, self._first_pair :] = tables[:, self._layers, self._actives, self._widths]
        self._costs = csr_array(costs)
        self._goal = np.zeros(self._n_variables)
        if objective is not None:
            self._goal[self._first_pair :] = objective[self._layers, self._actives, self._widths]
        self._bounds = Bounds(0, 1)

    def solve(self, limits: FloatArray) -> tuple[IntArray, IntArray] | None:
        rows = [self._linear(self._structure, self._right, self._right)]
        if len(limits):
            rows.append(self._linear(self._costs, -np.inf, limits))
        if self.cuts:
            matrix = np.zeros((len(self.cuts), self._n_variables))
            for row, chosen in enumerate(self.cuts):
                matrix[row, chosen] = 1.0
            rows.append(self._linear(self._csr(matrix), -np.inf, self._space.n_layers - 1.0))
        result = self._milp(
            self._goal, integrality=1, bounds=self._bounds, constraints=rows, options={"node_limit": _NODE_LIMIT}
        )
        if result.x is None:
            # 4 is "infeasible or unbounded": presolve did not tell which, but every variable is bounded.
            if result.status == 2 or (result.status == 4 and "infeasible" in result.message.lower()):
                return None
            raise SpaceError(
                f"could not decide whether the constraints can hold together: {result.message}",
                "loosen a bound a little, or drop one constraint",
            )
        chosen = np.flatnonzero(result.x[self._first_pair :] > 0.5)
        weights = np.zeros(self._space.n_layers, dtype=np.int64)
        activations = np.zeros(self._space.n_groups, dtype=np.int64)
        weights[self._layers[chosen]] = self._widths[chosen]
        activations[self._space.group_of[self._layers[chosen]]] = self._actives[chosen]
        return activations, weights

    def cut(self, activations: IntArray, weights: IntArray) -> None:
        """Forbids one configuration (a no-good cut)."""
        layers = np.arange(self._space.n_layers)
        hit = (self._actives == activations[self._space.group_of][self._layers]) & (
            self._widths == weights[layers][self._layers]
        )
        self.cuts.append(self._first_pair + np.flatnonzero(hit))


def walk(
    space: SearchSpace, tables: FloatArray, limits: FloatArray, rng: np.random.Generator, max_nodes: int
) -> Iterator[tuple[IntArray, IntArray]]:
    """Yields every configuration that meets the constraints once, in random order of branches.

    A depth-first search over the genes. A branch is left as soon as the cheapest completion, exact for each
    constraint on its own, breaks a limit; with a single constraint no branch is a dead end.

    Args:
        space: The search space: L layers, G activation groups.
        tables: [C, L, activation index, weight index], relative costs, NaN at illegal pairs.
        limits: [C], relative bounds.
        rng: Orders the branches.
        max_nodes: Stop silently after this many nodes.

    Yields:
        Activation indices [G] and weight indices [L]; fresh arrays.
    """
    cheapest = np.where(space.allowed, tables, np.inf).min(axis=3, initial=np.inf)  # [C, L, a]
    slots: list[tuple[int, int]] = []  # (group, layer), layer -1 for the activation gene itself
    for group, gene in enumerate(space.activation_genes):
        slots.append((group, -1))
        slots.extend((group, layer) for layer in gene.layers)
    # later[g]: cheapest cost of all groups after g.
    later = np.zeros((space.n_groups + 1, len(limits)))
    for group in range(space.n_groups - 1, -1, -1):
        gene = space.activation_genes[group]
        by_choice = cheapest[:, list(gene.layers), : len(gene.choices)].sum(axis=1)
        later[group] = later[group + 1] + by_choice.min(axis=1)

    activations = np.zeros(space.n_groups, dtype=np.int64)
    weights = np.zeros(space.n_layers, dtype=np.int64)

    def branches(depth: int, spent: FloatArray) -> Iterator[tuple[int, FloatArray]]:
        """Yields (choice, cost so far) of the branches that can still be completed."""
        group, layer = slots[depth]
        gene = space.activation_genes[group]
        a = activations[group]
        if layer < 0:
            options = np.arange(len(gene.choices))
            totals = np.repeat(spent[None], len(options), axis=0)
            rest = cheapest[:, list(gene.layers), : len(gene.choices)].sum(axis=1).T + later[group + 1]
        else:
            options = np.flatnonzero(space.allowed[layer, a])
            totals = spent + tables[:, layer, a, options].T
            following = [other for other in gene.layers if other > layer]
            rest = cheapest[:, following, a].sum(axis=1)[None] + later[group + 1]
        possible = np.flatnonzero(np.all(totals + rest - limits <= TOLERANCE, axis=1))
        for index in rng.permutation(possible):
            yield int(options[index]), totals[index]

    stack = [branches(0, np.zeros(len(limits)))]
    nodes = 0
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
            continue
        nodes += 1
        if nodes > max_nodes:
            return
        choice, spent = step
        group, layer = slots[len(stack) - 1]
        if layer < 0:
            activations[group] = choice
        else:
            weights[layer] = choice
        if len(stack) == len(slots):
            yield activations.copy(), weights.copy()
        else:
            stack.append(branches(len(stack), spent))
